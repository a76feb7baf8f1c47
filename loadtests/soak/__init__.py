"""An application under a load that changes, for long: does anything grow that should not? See docs/chaos.md."""
