"""Serves models to workers from one process that owns them and joins their requests into batches."""
