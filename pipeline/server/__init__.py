"""PipelineService, and the worker that runs what is queued."""

from steadfeast.pipeline.server.service import check_recipes, serve
from steadfeast.pipeline.server.worker import Worker

__all__ = ["Worker", "check_recipes", "serve"]
