"""The durable offline queue: batches and their files, in Redis and on any fsspec storage."""
