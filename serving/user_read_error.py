"""Why the online store said nothing of a user."""


class UserReadError(RuntimeError):
    """The store gave no answer in time; the message says why, in one clause, and `kind` in one word of `KINDS`."""

    KINDS = ("failed", "timeout", "closed", "busy", "no_time")

    def __init__(self, message: str, kind: str = "failed") -> None:
        super().__init__(message)
        self.kind = kind
