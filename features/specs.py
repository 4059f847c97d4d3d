"""The one list of windowed features. Everything that counts events is derived from `WINDOWED_FEATURES`.

To add a feature, add a line to the list. The tiles' columns (`features.tiles`), the Flink SQL, the Spark SQL,
the Feast views, the quality rules and the ranker's inputs follow from it.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from features.events import COMPLETION_PERCENT, EVENT_TIME_BITS, MAX_WATCH_MS, EventType
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
    """Sum of a value."""
    MEAN = "mean"
    """Sum of a value over the count; the default when no event is selected."""
    RATE = "rate"
    """Count of one selection over the count of another; the default when the latter is empty."""
    MAX = "max"
    """Greatest value; the default when no event is selected."""
    LAST = "last"
    """Value at the latest event; of two at one millisecond the greater; the default when no event is selected."""
    DISTINCT = "distinct"
    """How many of a small domain's values occur."""
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


@dataclass(frozen=True, kw_only=True)
class EventValue:
    """An integer in `[0, size)` that a selected event has; `sql` computes it in the SQL that Flink and Spark share."""

    name: str
    sql: str
    size: int
    meaning: str


MAX_DISTINCT_SIZE = 52
"""A set of a domain's values is a bit mask, made by a power of two that a double holds exactly."""
MAX_LAST_SIZE = 2 ** (63 - EVENT_TIME_BITS)
"""`last` keeps event time and value in one signed 64-bit integer."""

_DAY_PART_MS = 4 * MS_PER_HOUR
_KINDS = (EventType.CLICK, EventType.WATCH, EventType.LIKE, EventType.SHARE, EventType.FOLLOW, EventType.HIDE)


def _quotient(dividend: str, divisor: object) -> str:
    """Integer division of integers from 0, in SQL whose `/` divides integers (Flink) or not (Spark)."""
    return f"CAST(({dividend} - MOD({dividend}, {divisor})) / {divisor} AS BIGINT)"


WATCH_MS = EventValue(name="watch_ms", sql="watch_ms", size=MAX_WATCH_MS + 1, meaning="milliseconds watched")
WATCH_PERCENT = EventValue(
    name="watch_percent",
    sql=f"CASE WHEN watch_ms >= duration_ms THEN 100 ELSE {_quotient('watch_ms * 100', 'duration_ms')} END",
    size=101,
    meaning="share of the item's duration that was watched, in whole percent, 100 at most",
)
KIND = EventValue(
    name="kind",
    sql="CASE event_type" + "".join(f" WHEN '{kind}' THEN {place}" for place, kind in enumerate(_KINDS)) + " END",
    size=len(_KINDS),
    meaning=f"type of the event: {', '.join(_KINDS)}",
)
DAY_PART = EventValue(
    name="day_part",
    sql=_quotient(f"MOD(event_time_ms, {MS_PER_DAY})", _DAY_PART_MS),
    size=MS_PER_DAY // _DAY_PART_MS,
    meaning="four-hour part of the UTC day",
)

IMPRESSIONS = _select("impressions", EventType.IMPRESSION)
CLICKS = _select("clicks", EventType.CLICK)
WATCHES = _select("watches", EventType.WATCH)
COMPLETIONS = _select("completions", EventType.WATCH, min_watch_percent=COMPLETION_PERCENT)
LIKES = _select("likes", EventType.LIKE)
SHARES = _select("shares", EventType.SHARE)
FOLLOWS = _select("follows", EventType.FOLLOW)
HIDES = _select("hides", EventType.HIDE)
ENGAGEMENTS = _select("engagements", *_KINDS)


VALUE_SIZES: dict[Aggregate, int] = {
    Aggregate.SUM: MAX_WATCH_MS + 1,
    Aggregate.MEAN: MAX_WATCH_MS + 1,
    Aggregate.MAX: MAX_WATCH_MS + 1,
    Aggregate.LAST: MAX_LAST_SIZE,
    Aggregate.DISTINCT: MAX_DISTINCT_SIZE,
}
"""The aggregates that read a value, and how many values it may have."""


@dataclass(frozen=True, kw_only=True)
class WindowedFeature:
    """One feature over a window of event time that ends at the instant of reading.

    `value` is what SUM, MEAN, MAX, LAST and DISTINCT read of each event; `per` is RATE's denominator.
    `default` is the value where the aggregate has nothing to say. Counts and sums default to 0.
    """

    name: str
    entity: Entity
    aggregate: Aggregate
    events: Selection
    window_ms: int
    value: EventValue | None = None
    per: Selection | None = None
    default: float = 0.0

    def __post_init__(self) -> None:
        needs_value = self.aggregate in VALUE_SIZES
        if needs_value != (self.value is not None) or (self.aggregate is Aggregate.RATE) != (self.per is not None):
            raise ValueError(
                f"feature {self.name}: got aggregate={self.aggregate}, value={self.value}, per={self.per}; allowed: "
                f"a value for {', '.join(VALUE_SIZES)} only, per for rate only. Correct its line in features/specs.py."
            )
        if self.value is not None and self.value.size > VALUE_SIZES[self.aggregate]:
            raise ValueError(
                f"feature {self.name}: got {self.aggregate} of {self.value.name}, which has {self.value.size} values; "
                f"allowed: at most {VALUE_SIZES[self.aggregate]}. Choose a coarser value."
            )
        if self.window_ms > FINE_WINDOW_MAX_MS and self.window_ms % MS_PER_DAY:
            raise ValueError(
                f"feature {self.name}: got window_ms={self.window_ms}; allowed above {FINE_WINDOW_MAX_MS}: whole days."
            )

    @property
    def is_integer(self) -> bool:
        """Whether the value is a 64-bit integer (counts, sums, values, durations); otherwise a 64-bit float."""
        return self.aggregate not in (Aggregate.MEAN, Aggregate.RATE)

    @property
    def meaning(self) -> str:
        """The definition in words, such as `sum of watch_ms of watches over 7d`."""
        of_value = "" if self.value is None else f" of {self.value.name}"
        over = "" if self.per is None else f" per {self.per.name}"
        window = next((name for name, ms in WINDOW_NAMES.items() if ms == self.window_ms), f"{self.window_ms} ms")
        return f"{self.aggregate}{of_value} of {self.events.name}{over} over {window}"


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
    value: EventValue | None = None,
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
            value=value,
            per=per,
            default=default,
        )
        for window in windows.split()
    ]


_COUNT, _SUM, _MEAN, _RATE, _MAX, _LAST, _DISTINCT, _SINCE = Aggregate
_U, _UC, _I, _CR, _CA = Entity.USER, Entity.USER_CATEGORY, Entity.ITEM, Entity.CREATOR, Entity.CATEGORY
NEVER_MS = float(MAX_WINDOW_MS)
"""What `since_last` says when the window holds no such event: as long ago as the longest window."""

WINDOWED_FEATURES: tuple[WindowedFeature, ...] = (
    *_features(_U, "impressions", _COUNT, IMPRESSIONS, "1h 24h 7d"),
    *_features(_U, "clicks", _COUNT, CLICKS, "10m 1h 24h 7d 30d"),
    *_features(_U, "ctr", _RATE, CLICKS, "24h 7d 30d", per=IMPRESSIONS),
    *_features(_U, "completion_rate", _RATE, COMPLETIONS, "24h 7d 30d", per=WATCHES),
    *_features(_U, "watch_ms", _SUM, WATCHES, "1h 24h 7d", value=WATCH_MS),
    *_features(_U, "mean_watch_ms", _MEAN, WATCHES, "7d 30d", value=WATCH_MS),
    *_features(_U, "likes", _COUNT, LIKES, "24h 30d"),
    *_features(_U, "shares", _COUNT, SHARES, "30d"),
    *_features(_U, "follows", _COUNT, FOLLOWS, "30d"),
    *_features(_U, "hides", _COUNT, HIDES, "24h 30d"),
    *_features(_U, "ms_since_click", _SINCE, CLICKS, "30d", default=NEVER_MS),
    *_features(_U, "last_watch_percent", _LAST, WATCHES, "1h 7d", value=WATCH_PERCENT),
    *_features(_U, "engagement_kinds", _DISTINCT, ENGAGEMENTS, "24h 7d", value=KIND),
    *_features(_U, "day_parts", _DISTINCT, ENGAGEMENTS, "7d", value=DAY_PART),
    *_features(_UC, "impressions", _COUNT, IMPRESSIONS, "1h 7d"),
    *_features(_UC, "clicks", _COUNT, CLICKS, "10m 1h 24h 7d 30d"),
    *_features(_UC, "ctr", _RATE, CLICKS, "24h 7d 30d", per=IMPRESSIONS),
    *_features(_UC, "watch_ms", _SUM, WATCHES, "10m 24h 30d", value=WATCH_MS),
    *_features(_UC, "completion_rate", _RATE, COMPLETIONS, "30d", per=WATCHES),
    *_features(_UC, "likes", _COUNT, LIKES, "1h 30d"),
    *_features(_UC, "hides", _COUNT, HIDES, "30d"),
    *_features(_UC, "ms_since_click", _SINCE, CLICKS, "30d", default=NEVER_MS),
    *_features(_UC, "max_watch_percent", _MAX, WATCHES, "1h 7d", value=WATCH_PERCENT),
    *_features(_UC, "last_watch_percent", _LAST, WATCHES, "30d", value=WATCH_PERCENT),
    *_features(_I, "impressions", _COUNT, IMPRESSIONS, "1h 24h 7d"),
    *_features(_I, "clicks", _COUNT, CLICKS, "1h 24h 7d"),
    *_features(_I, "ctr", _RATE, CLICKS, "1h 24h 7d 30d", per=IMPRESSIONS),
    *_features(_I, "completion_rate", _RATE, COMPLETIONS, "24h 30d", per=WATCHES),
    *_features(_I, "mean_watch_ms", _MEAN, WATCHES, "7d", value=WATCH_MS),
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

    def value(read: EventValue | None) -> str:
        return "-" if read is None else f"{read.name}={read.sql}"

    parts = (
        feature.name,
        feature.entity,
        feature.aggregate,
        selection(feature.events),
        selection(feature.per),
        value(feature.value),
        feature.window_ms,
        feature.default,
    )
    return "|".join(str(part) for part in parts)
