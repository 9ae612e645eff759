"""Worlds that tests share: small repos, daemons, clients and oracles."""
