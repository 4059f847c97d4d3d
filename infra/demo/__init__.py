"""`millrace demo`: the whole chain on real parts, from seeded events to a report."""

SLATE_ITEMS = 10
"""How many items every slate of the demo has, in every arm."""


class DemoError(RuntimeError):
    """One sentence: which part of the demo did not get there, where to look, what to do."""
