"""Replicas and clusters in virtual time, driven by the same policies as the engine, the harvester and the controller."""
