"""The simulator against runs of the real engine."""
