"""What the online store says of one user at one instant: the single read behind a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.events import EventType

HISTORY_MAX = 100
"""Most recent interactions kept (every event type but impressions, undoings included)."""
SEEN_MAX = 1_000
"""Most recently seen items kept: any event on an item makes it seen."""


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """One row of the interactions topic: a valid event, counted once, with what the keyed sets need of it."""

    event_id: str
    event_type: EventType
    event_time_ms: int
    user_id: str
    item_id: str
    category: str
    creator_id: str
    watch_ms: int | None = None
    duration_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class UserState:
    """A user's finalised features and keyed sets at `instant_ms`. An unknown user has defaults and empty sets.

    F features in the order of `features.specs.features_of(entity)`; K categories with at least one tile.
    """

    user_id: str
    instant_ms: int
    features_F: npt.NDArray[np.float64]
    """The user's windowed features."""
    categories: tuple[str, ...]
    """The K categories, sorted."""
    category_features_KF: npt.NDArray[np.float64]
    """The user × category windowed features. A category not listed has `empty_category_features_F`."""
    empty_category_features_F: npt.NDArray[np.float64]
    """The user × category features of a category without events."""
    history: Sequence[Interaction]
    """At most `HISTORY_MAX` interactions, newest first by (event_time_ms, event_id)."""
    seen: Mapping[str, int]
    """At most `SEEN_MAX` item ids, each with the event time of its latest event."""
    hidden: frozenset[str]
    """Items hidden and not unhidden since."""
    followed: frozenset[str]
    """Creators followed and not unfollowed since."""
    newest_event_ms: int | None
    """Event time of the newest event that windows and sets both reflect (one of them where the other has nothing stored
    and the event is older than streamed tiles live); None for an unknown user, and until both have the first event of a
    new one."""
