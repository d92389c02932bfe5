"""Loading inside the process: the registry's bulk entrance without a server around it.

The one part of the bench, besides peers and limits, that sees the registry: what it measures is
the registry itself, at sizes no client could send in time.
"""
