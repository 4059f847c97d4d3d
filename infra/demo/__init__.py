"""`millrace demo`: the whole chain on real parts, from seeded events to a report."""
