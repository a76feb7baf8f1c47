"""The inference engine: the only package that imports vLLM."""
