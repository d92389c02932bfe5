"""The HTTP front: API, public pages, health and metrics."""
