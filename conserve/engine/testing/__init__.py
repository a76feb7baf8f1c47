"""Fakes for tests of the scheduler: an engine with vLLM's real scheduler and KV cache manager, and no model."""
