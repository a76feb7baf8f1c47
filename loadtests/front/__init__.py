"""Load through the front door: what clients of the HTTP API see of it."""
