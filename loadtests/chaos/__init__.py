"""Faults of every kind, drawn with a seed, in an application that answers chats and runs batches; see docs/chaos.md."""
