"""Decisions: values in, a decision out, the time as an argument. No vLLM, Ray, Redis or clocks in here."""
