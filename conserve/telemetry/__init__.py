"""What the outside sees of a running ConServe."""
