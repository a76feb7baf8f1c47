"""Fuzzing: what strangers may send to each surface, and whether it is answered as it should be (docs/fuzzing.md)."""
