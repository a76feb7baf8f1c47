"""The gRPC front: the methods that Serve calls, messages as requests of the HTTP API and back, errors as statuses."""
