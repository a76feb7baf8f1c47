"""The command line: `conserve ...`."""
