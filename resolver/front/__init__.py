"""Fronts: transports. They move bytes and nothing else."""
