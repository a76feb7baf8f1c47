"""Processes of the offline queue that are killed at random moments while batches run, and who counts afterwards."""
