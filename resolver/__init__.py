"""Serving: resolver core, steps, fronts. The composition root is `__main__`."""
