"""All features together (extra `multivariate`). Imported module by module."""
