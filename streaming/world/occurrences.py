"""What happened, as columns: events before they are written as records.

Shapes: N events, S slates, P positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from features.events import SCHEMA_VERSION, EventType
from streaming.records import uuid7
from streaming.world.behaviour import Reactions
from streaming.world.catalogue import CATEGORY_NAMES, Catalogue, Ints, creator_id, item_id
from streaming.world.population import DEVICES, Population, user_id

EVENT_TYPES = (
    EventType.IMPRESSION,
    EventType.CLICK,
    EventType.WATCH,
    EventType.LIKE,
    EventType.SHARE,
    EventType.FOLLOW,
    EventType.HIDE,
)
"""The types that the world produces; an event's type code is its place here."""
_AFTER_WATCH_MS = 2
"""Distance between the end of a watch, a like, a share and a follow."""


@dataclass(frozen=True, kw_only=True)
class Occurrences:
    """Events in order of their slates, as indices into the world's users and items."""

    time_ms_N: Ints
    type_N: Ints
    user_N: Ints
    item_N: Ints
    slate_N: Ints
    """Index of the slate among those that these events came from."""
    position_N: Ints
    watch_ms_N: Ints
    """0 where the event is no watch."""

    def __len__(self) -> int:
        return len(self.time_ms_N)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All parts' events, one part after the other."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def taken(self, chosen: Ints) -> Self:
        """The events at the given places, in their order."""
        return type(self)(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})


def occurrences_of(
    reactions: Reactions, start_ms_S: Ints, user_S: Ints, item_SP: Ints, first_slate: int
) -> Occurrences:
    """The events of slates and the reactions to them: every position is an impression at the slate's start.

    Slates are numbered from `first_slate` on.
    """
    looked_SP = start_ms_S[:, None] + reactions.looked_after_ms_SP
    watched_SP = start_ms_S[:, None] + reactions.watched_after_ms_SP
    start_SP = np.broadcast_to(start_ms_S[:, None], item_SP.shape)
    when = (
        (EventType.IMPRESSION, np.ones_like(item_SP, dtype=np.bool_), start_SP),
        (EventType.CLICK, reactions.clicked_SP, looked_SP),
        (EventType.WATCH, reactions.clicked_SP, watched_SP),
        (EventType.LIKE, reactions.liked_SP, watched_SP + _AFTER_WATCH_MS),
        (EventType.SHARE, reactions.shared_SP, watched_SP + 2 * _AFTER_WATCH_MS),
        (EventType.FOLLOW, reactions.followed_SP, watched_SP + 3 * _AFTER_WATCH_MS),
        (EventType.HIDE, reactions.hidden_SP, looked_SP),
    )
    parts = []
    for event_type, happened_SP, time_ms_SP in when:
        slate_N, position_N = np.nonzero(happened_SP)
        is_watch = event_type is EventType.WATCH
        parts.append(
            Occurrences(
                time_ms_N=time_ms_SP[slate_N, position_N],
                type_N=np.full(len(slate_N), EVENT_TYPES.index(event_type)),
                user_N=user_S[slate_N],
                item_N=item_SP[slate_N, position_N],
                slate_N=slate_N + first_slate,
                position_N=position_N,
                watch_ms_N=reactions.watch_ms_SP[slate_N, position_N] if is_watch else np.zeros_like(slate_N),
            )
        )
    joined = Occurrences.joined(parts)
    return joined.taken(np.lexsort((joined.time_ms_N, joined.slate_N)))


def event_ids(rng: np.random.Generator, time_ms_N: Ints) -> list[str]:
    """A UUIDv7 for each instant."""
    high_N = rng.integers(1 << 12, size=len(time_ms_N)).tolist()
    low_N = rng.integers(1 << 62, size=len(time_ms_N)).tolist()
    return [
        uuid7(time_ms, high << 62 | low) for time_ms, high, low in zip(time_ms_N.tolist(), high_N, low_N, strict=True)
    ]


def wire_fields(
    occurrences: Occurrences,
    ids: Sequence[str],
    request_ids: Sequence[str],
    catalogue: Catalogue,
    population: Population,
) -> Iterator[dict[str, Any]]:
    """The contract's fields of each event, in order; None where a type does not carry one.

    `request_ids` is indexed by `slate_N`. Nothing latent can pass: what is written here is all there is.
    """
    o = occurrences
    names = [str(event_type) for event_type in EVENT_TYPES]
    watch = EVENT_TYPES.index(EventType.WATCH)
    columns = zip(
        ids,
        o.time_ms_N.tolist(),
        o.type_N.tolist(),
        o.user_N.tolist(),
        o.item_N.tolist(),
        o.slate_N.tolist(),
        o.position_N.tolist(),
        o.watch_ms_N.tolist(),
        catalogue.category_I[o.item_N].tolist(),
        catalogue.creator_I[o.item_N].tolist(),
        catalogue.duration_ms_I[o.item_N].tolist(),
        population.device_U[o.user_N].tolist(),
        strict=True,
    )
    for own_id, time_ms, code, user, item, slate, position, watch_ms, category, creator, duration_ms, device in columns:
        yield {
            "event_id": own_id,
            "event_type": names[code],
            "event_time_ms": time_ms,
            "user_id": user_id(user),
            "item_id": item_id(item),
            "category": CATEGORY_NAMES[category],
            "creator_id": creator_id(creator),
            "request_id": request_ids[slate],
            "position": position,
            "watch_ms": watch_ms if code == watch else None,
            "duration_ms": duration_ms if code == watch else None,
            "device": DEVICES[device],
            "schema_version": SCHEMA_VERSION,
        }
