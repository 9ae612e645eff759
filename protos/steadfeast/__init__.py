"""Steadfeast's protocols."""
