"""A call that is refused with a status of its own."""

import grpc


class CallError(RuntimeError):
    """The status and one sentence for the caller."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
