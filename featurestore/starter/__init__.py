"""Projects that start in one command: definitions, sample data, a recipe and a configuration.

Below `cli`, which asks for one; nothing else imports it.
"""

from steadfeast.featurestore.starter.project import Template, create, next_steps

__all__ = ["Template", "create", "next_steps"]
