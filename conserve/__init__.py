"""ConServe: serves interactive LLM requests and harvests the idle capacity of the same engines for batch work."""

__version__ = "0.1.0"
