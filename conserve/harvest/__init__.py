"""Harvesting: what replicas report, what the controller allots them, and how a replica works off its allotment."""
