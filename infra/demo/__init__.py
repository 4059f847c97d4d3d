"""`millrace demo`: the whole chain on real parts, from seeded events to a report."""


class DemoError(RuntimeError):
    """One sentence: which part of the demo did not get there, where to look, what to do."""
