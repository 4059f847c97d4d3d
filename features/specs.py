"""The one list of windowed features. Everything that counts events is derived from `WINDOWED_FEATURES`.

To add a feature, add a line to the list. The tiles' columns (`features.tiles`), the Flink SQL, the Spark SQL,
the Feast views, the quality rules and the ranker's inputs follow from it.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from features.events import COMPLETION_PERCENT, EventType
from features.names import MS_PER_DAY, MS_PER_HOUR, MS_PER_MINUTE

FINE_WINDOW_MAX_MS = 2 * MS_PER_DAY
"""Windows up to this long are read from streamed tiles alone; longer ones round their tail to the day (UTC)."""


class Entity(StrEnum):
    """What a feature describes."""

    USER = "user"
    USER_CATEGORY = "user_category"
    ITEM = "item"
    CREATOR = "creator"
    CATEGORY = "category"


KEY_FIELDS: dict[Entity, tuple[str, ...]] = {
    Entity.USER: ("user_id",),
    Entity.USER_CATEGORY: ("user_id", "category"),
    Entity.ITEM: ("item_id",),
    Entity.CREATOR: ("creator_id",),
    Entity.CATEGORY: ("category",),
}
"""The event fields that make up each entity's key, which are its Feast join keys too."""


class Aggregate(StrEnum):
    """How the selected events of a window become one value."""

    COUNT = "count"
    SUM = "sum"
    """Sum of an integer field."""
    MEAN = "mean"
    """Sum of an integer field over the count; the default when no event is selected."""
    RATE = "rate"
    """Count of one selection over the count of another; the default when the latter is empty."""
    SINCE_LAST = "since_last"
    """Milliseconds from the last selected event to the instant of reading, never below 0; else the default."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which events count: the types, and for watches the least share of the duration, in percent."""

    name: str
    """Plural noun used in tile columns, such as `clicks`."""
    event_types: frozenset[EventType]
    min_watch_percent: int | None = None


def _select(name: str, *event_types: EventType, min_watch_percent: int | None = None) -> Selection:
    return Selection(name=name, event_types=frozenset(event_types), min_watch_percent=min_watch_percent)


IMPRESSIONS = _select("impressions", EventType.IMPRESSION)
CLICKS = _select("clicks", EventType.CLICK)
WATCHES = _select("watches", EventType.WATCH)
COMPLETIONS = _select("completions", EventType.WATCH, min_watch_percent=COMPLETION_PERCENT)
LIKES = _select("likes", EventType.LIKE)
SHARES = _select("shares", EventType.SHARE)
FOLLOWS = _select("follows", EventType.FOLLOW)
HIDES = _select("hides", EventType.HIDE)


@dataclass(frozen=True, kw_only=True)
class WindowedFeature:
    """One feature over a window of event time that ends at the instant of reading.

    `field` names the integer event field that SUM and MEAN add up; `per` is RATE's denominator.
    `default` is the value where the aggregate has nothing to say. Counts and sums default to 0.
    """

    name: str
    entity: Entity
    aggregate: Aggregate
    events: Selection
    window_ms: int
    field: str | None = None
    per: Selection | None = None
    default: float = 0.0

    def __post_init__(self) -> None:
        needs_field = self.aggregate in (Aggregate.SUM, Aggregate.MEAN)
        if needs_field != (self.field is not None) or (self.aggregate is Aggregate.RATE) != (self.per is not None):
            raise ValueError(
                f"feature {self.name}: got aggregate={self.aggregate}, field={self.field}, per={self.per}; allowed: "
                "a field for sum and mean only, per for rate only. Correct its line in features/specs.py."
            )
        if self.window_ms > FINE_WINDOW_MAX_MS and self.window_ms % MS_PER_DAY:
            raise ValueError(
                f"feature {self.name}: got window_ms={self.window_ms}; allowed above {FINE_WINDOW_MAX_MS}: whole days."
            )

    @property
    def is_integer(self) -> bool:
        """Whether the value is a 64-bit integer (counts, sums, durations); otherwise a 64-bit float."""
        return self.aggregate in (Aggregate.COUNT, Aggregate.SUM, Aggregate.SINCE_LAST)


WINDOW_NAMES: dict[str, int] = {
    "10m": 10 * MS_PER_MINUTE,
    "1h": MS_PER_HOUR,
    "24h": MS_PER_DAY,
    "7d": 7 * MS_PER_DAY,
    "30d": 30 * MS_PER_DAY,
}
MAX_WINDOW_MS = max(WINDOW_NAMES.values())


def _features(
    entity: Entity,
    noun: str,
    aggregate: Aggregate,
    events: Selection,
    windows: str,
    *,
    field: str | None = None,
    per: Selection | None = None,
    default: float = 0.0,
) -> list[WindowedFeature]:
    """One feature a window in `windows` (names separated by spaces), called `<entity>_<noun>_<window>`."""
    return [
        WindowedFeature(
            name=f"{entity}_{noun}_{window}",
            entity=entity,
            aggregate=aggregate,
            events=events,
            window_ms=WINDOW_NAMES[window],
            field=field,
            per=per,
            default=default,
        )
        for window in windows.split()
    ]


_COUNT, _SUM, _MEAN, _RATE, _SINCE = (
    Aggregate.COUNT,
    Aggregate.SUM,
    Aggregate.MEAN,
    Aggregate.RATE,
    Aggregate.SINCE_LAST,
)
_U, _UC, _I, _CR, _CA = Entity.USER, Entity.USER_CATEGORY, Entity.ITEM, Entity.CREATOR, Entity.CATEGORY
NEVER_MS = float(MAX_WINDOW_MS)
"""What `since_last` says when the window holds no such event: as long ago as the longest window."""

WINDOWED_FEATURES: tuple[WindowedFeature, ...] = (
    *_features(_U, "impressions", _COUNT, IMPRESSIONS, "1h 24h 7d"),
    *_features(_U, "clicks", _COUNT, CLICKS, "10m 1h 24h 7d 30d"),
    *_features(_U, "ctr", _RATE, CLICKS, "24h 7d 30d", per=IMPRESSIONS),
    *_features(_U, "completion_rate", _RATE, COMPLETIONS, "24h 7d 30d", per=WATCHES),
    *_features(_U, "watch_ms", _SUM, WATCHES, "1h 24h 7d", field="watch_ms"),
    *_features(_U, "mean_watch_ms", _MEAN, WATCHES, "7d 30d", field="watch_ms"),
    *_features(_U, "likes", _COUNT, LIKES, "24h 30d"),
    *_features(_U, "shares", _COUNT, SHARES, "30d"),
    *_features(_U, "follows", _COUNT, FOLLOWS, "30d"),
    *_features(_U, "hides", _COUNT, HIDES, "24h 30d"),
    *_features(_U, "ms_since_click", _SINCE, CLICKS, "30d", default=NEVER_MS),
    *_features(_UC, "impressions", _COUNT, IMPRESSIONS, "1h 7d"),
    *_features(_UC, "clicks", _COUNT, CLICKS, "10m 1h 24h 7d 30d"),
    *_features(_UC, "ctr", _RATE, CLICKS, "24h 7d 30d", per=IMPRESSIONS),
    *_features(_UC, "watch_ms", _SUM, WATCHES, "10m 24h 30d", field="watch_ms"),
    *_features(_UC, "completion_rate", _RATE, COMPLETIONS, "30d", per=WATCHES),
    *_features(_UC, "likes", _COUNT, LIKES, "1h 30d"),
    *_features(_UC, "hides", _COUNT, HIDES, "30d"),
    *_features(_UC, "ms_since_click", _SINCE, CLICKS, "30d", default=NEVER_MS),
    *_features(_I, "impressions", _COUNT, IMPRESSIONS, "1h 24h 7d"),
    *_features(_I, "clicks", _COUNT, CLICKS, "1h 24h 7d"),
    *_features(_I, "ctr", _RATE, CLICKS, "1h 24h 7d 30d", per=IMPRESSIONS),
    *_features(_I, "completion_rate", _RATE, COMPLETIONS, "24h 30d", per=WATCHES),
    *_features(_I, "mean_watch_ms", _MEAN, WATCHES, "7d", field="watch_ms"),
    *_features(_I, "like_rate", _RATE, LIKES, "7d 30d", per=IMPRESSIONS),
    *_features(_I, "share_rate", _RATE, SHARES, "30d", per=IMPRESSIONS),
    *_features(_I, "hide_rate", _RATE, HIDES, "30d", per=IMPRESSIONS),
    *_features(_CR, "clicks", _COUNT, CLICKS, "24h 7d"),
    *_features(_CR, "ctr", _RATE, CLICKS, "24h 7d 30d", per=IMPRESSIONS),
    *_features(_CR, "completion_rate", _RATE, COMPLETIONS, "30d", per=WATCHES),
    *_features(_CA, "clicks", _COUNT, CLICKS, "1h 24h"),
    *_features(_CA, "ctr", _RATE, CLICKS, "24h 7d", per=IMPRESSIONS),
    *_features(_CA, "completion_rate", _RATE, COMPLETIONS, "7d", per=WATCHES),
)


def features_of(entity: Entity) -> tuple[WindowedFeature, ...]:
    """The entity's features, in the list's order, which is the order of every array of them."""
    return tuple(feature for feature in WINDOWED_FEATURES if feature.entity is entity)


def version(features: tuple[WindowedFeature, ...] = WINDOWED_FEATURES) -> str:
    """Eight hexadecimal digits of the SHA-256 of the list: equal if and only if the definitions are."""
    lines = sorted(_canonical(feature) for feature in features)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def _canonical(feature: WindowedFeature) -> str:
    def selection(chosen: Selection | None) -> str:
        return "-" if chosen is None else f"{sorted(chosen.event_types)}>={chosen.min_watch_percent}"

    parts = (
        feature.name,
        feature.entity,
        feature.aggregate,
        selection(feature.events),
        selection(feature.per),
        feature.field,
        feature.window_ms,
        feature.default,
    )
    return "|".join(str(part) for part in parts)
