"""One request: read, decode, run on-demand code, answer."""

from steadfeast.featurestore.serving.assembly import EntityRows, rows_in
from steadfeast.featurestore.serving.decoder import Block, Judged
from steadfeast.featurestore.serving.features import OnlineFeatures, settled
from steadfeast.featurestore.serving.reader import Reader, Request

__all__ = [
    "Block",
    "EntityRows",
    "Judged",
    "OnlineFeatures",
    "Reader",
    "Request",
    "rows_in",
    "settled",
]
