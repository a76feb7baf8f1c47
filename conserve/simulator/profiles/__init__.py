"""GPU profiles as data: datasheets, shapes of models, and what is assumed besides."""
