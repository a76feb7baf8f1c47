"""Replicas and clusters in virtual time, driven by the policies of the engine, the harvester and the controller."""
