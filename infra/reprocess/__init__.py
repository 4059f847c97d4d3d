"""`millrace reprocess`: the features rebuilt from Kafka beside the running ones, then switched to without a gap.

`choice` says which version is built, `day_tiles` copies what the stream does not compute, `catch_up` waits, and `run`
does it all in an order that can be interrupted anywhere and run again. infra/adr/0007-feature-versions.md says why.
"""


class ReprocessError(RuntimeError):
    """One sentence for the user: what is in the way, where to look, what to do."""
