"""What is known of the request that runs in this context: for its span, its log lines and its counts.

The interceptor (`serving.observed_requests`) opens it, the servicer fills it in, and log lines in between take the
ids from it.
"""

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from serving import ranking_pb2 as pb
from serving.stages import Progress

PERSONAL_FIELDS = frozenset(
    {"user_id", "item_id", "item_ids", "allow_item_ids", "block_item_ids", "creator_id", "event_id", "page_token"}
)
"""Request fields whose values say who somebody is or what they did; neither logs nor traces ever hold them."""
PLAIN_FIELDS = frozenset(
    {
        "surface",
        "device",
        "locale",
        "experiment_arm",
        "categories",
        "block_categories",
        "languages",
        "category",
        "event_type",
        "request_id",
    }
)
"""The other text fields of requests; a test holds that every one is named here or above."""
API_KEY = "x-api-key"

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(kw_only=True)
class Observation:
    """One request while it runs. What is not known yet is empty."""

    method: str = ""
    """The method's name, such as `Recommend`."""
    started_s: float = 0.0
    """On `time.perf_counter`, as are the times of `progress`."""
    request: object = None
    metadata: Metadata = ()
    trace_id: str = ""
    """32 hexadecimal digits, the caller's or ours."""
    request_id: str = ""
    wanted: int = 0
    """How many items were asked for."""
    progress: Progress | None = None
    slate: pb.Slate | None = None
    """The answer, once there is one."""

    def personal(self) -> set[str]:
        """Every value of the request that must not be written down."""
        found = {value for name, value in self.metadata if name == API_KEY and isinstance(value, str)}
        if isinstance(self.request, Message):
            found.update(_personal(self.request))
        return found - {""}


_NOBODY = Observation()
_current: ContextVar[Observation] = ContextVar("observation", default=_NOBODY)


def enter(observation: Observation) -> None:
    """Makes it the one of this context: a task's, or a thread's that runs in a copy of it."""
    _current.set(observation)


def observed() -> Observation:
    """The request of this context; outside a request one that nobody reads."""
    found = _current.get()
    return Observation() if found is _NOBODY else found


def _personal(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        values: Sequence[Any] = value if field.is_repeated else (value,)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in values:
                yield from _personal(inner)
        elif field.name in PERSONAL_FIELDS:
            yield from values
