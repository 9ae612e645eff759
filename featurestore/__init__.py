"""The feature store: plain Feast definitions, Feast plugins, and the guarantee on top of them."""
