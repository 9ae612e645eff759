"""The reference retraining pipeline: recipe, runs, gates, registry, promotion."""
