"""Load, demonstrations and benchmarks: what ConServe is measured with, over HTTP or on an engine directly."""
