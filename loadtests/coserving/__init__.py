"""The co-serving benchmark: online and offline work on one engine, stock vLLM's and ours side by side."""
