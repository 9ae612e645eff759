"""Point-in-time joins on a Spark cluster: Spark moves rows, DuckDB decides values.

`SparkOfflineStore` is a plain Feast plugin. Nothing of the semantics is written here: executors
read a source, cut its rows by a hash of the join key and pass them on as Arrow blocks; whoever
has all rows of a key runs the join of one machine on them. pyspark is an extra, and is imported
when a method needs it.
"""

from steadfeast.featurestore.offline.spark.store import SparkOfflineStore, SparkOfflineStoreConfig

__all__ = ["SparkOfflineStore", "SparkOfflineStoreConfig"]
