"""`millrace reprocess`: the features rebuilt beside the running ones, then switched to without a gap.

`choice` says which version is built, `day_tiles` copies what the stream does not compute, `source` sends what the lake
alone knows, `catch_up` waits, and `run` does it all in an order that can be interrupted anywhere and run again.
infra/adr/0007-feature-versions.md says why.
"""

from enum import StrEnum


class Source(StrEnum):
    """Where the events before the first one of the events topic are."""

    KAFKA = "kafka"
    """Nowhere: the topic still holds its very first."""
    LAKE = "lake"


class ReprocessError(RuntimeError):
    """One sentence for the user: what is in the way, where to look, what to do."""
