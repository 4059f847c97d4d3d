"""Windows by brute force: a count over the events themselves, and tiles built event by event.

Shares no code with `features.algebra`, the Flink SQL or the Spark SQL: it knows events, floors and the words of the
design ("tiles from floor(t - window) to floor(t)"), and nothing of merges or arrays.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from features.backends import Backend
from features.specs import KEY_FIELDS, Entity, Selection, WindowedFeature, features_of
from features.tile_rows import TileRow
from features.tiles import Column, TileFamily

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
KINDS = ("click", "watch", "like", "share", "follow", "hide")


@dataclass(frozen=True)
class Event:
    """What windows need of an event."""

    user_id: str
    item_id: str
    category: str
    creator_id: str
    kind: str
    time_ms: int
    watch_ms: int
    duration_ms: int


def selected(selection: Selection | None, event: Event) -> bool:
    """Whether the event counts."""
    assert selection is not None
    if event.kind not in {kind.value for kind in selection.event_types}:
        return False
    if selection.min_watch_percent is None:
        return True
    return Fraction(event.watch_ms, event.duration_ms) * 100 >= selection.min_watch_percent


def value_of(name: str, event: Event) -> int:
    """The value of that name (`features.specs.EventValue`)."""
    if name == "watch_ms":
        return event.watch_ms
    if name == "watch_percent":
        return min(100, 100 * event.watch_ms // event.duration_ms)
    if name == "kind":
        return KINDS.index(event.kind)
    assert name == "day_part"
    return event.time_ms % DAY // (4 * HOUR)


def window_value(feature: WindowedFeature, events: Iterable[Event], instant_ms: int) -> float:
    """The feature's value at the instant, of the events of one entity that had arrived before it."""
    own_ms = MINUTE if feature.entity.startswith("user") else 5 * MINUTE
    tile_ms = DAY if feature.window_ms > 2 * DAY else own_ms
    from_ms = (instant_ms - feature.window_ms) // tile_ms * tile_ms
    until_ms = instant_ms // own_ms * own_ms + own_ms
    inside = [event for event in events if from_ms <= event.time_ms < until_ms]
    chosen = [event for event in inside if selected(feature.events, event)]
    if feature.aggregate == "count":
        return len(chosen)
    if feature.aggregate == "rate":
        base = sum(selected(feature.per, event) for event in inside)
        return len(chosen) / base if base else feature.default
    if feature.aggregate == "since_last":
        return max(instant_ms - max(event.time_ms for event in chosen), 0) if chosen else feature.default
    assert feature.value is not None
    values = [(event.time_ms, value_of(feature.value.name, event)) for event in chosen]
    return _of_values(feature, values)


def _of_values(feature: WindowedFeature, values: list[tuple[int, int]]) -> float:
    numbers = [value for _, value in values]
    if feature.aggregate == "sum":
        return sum(numbers)
    if feature.aggregate == "distinct":
        return len(set(numbers))
    if not numbers:
        return feature.default
    if feature.aggregate == "mean":
        return sum(numbers) / len(numbers)
    if feature.aggregate == "max":
        return max(numbers)
    assert feature.aggregate == "last"
    return max(values)[1]


def keys_of(entity: Entity, events: Iterable[Event]) -> list[tuple[str, ...]]:
    """Every key of the entity that has an event."""
    return sorted({_key(entity, event) for event in events})


def assert_windows_are_those_of(
    store: Backend, entity: Entity, events: Sequence[Event], instant_ms: int
) -> dict[tuple[str, ...], list[float]]:
    """Compares all windows of all entities with events, integers exactly; returns what the store said of each key."""
    keys = keys_of(entity, events)
    read = store.read_entity(entity, keys, instant_ms).values_GF.tolist()
    for key, values in zip(keys, read, strict=True):
        own = [event for event in events if _key(entity, event) == key]
        for feature, value in zip(features_of(entity), values, strict=True):
            wanted = window_value(feature, own, instant_ms)
            where = f"{feature.name} of {key} at {instant_ms}"
            if feature.is_integer:
                assert value == wanted, where
            else:
                assert math.isclose(value, wanted, rel_tol=1e-9), f"{where}: {value} for {wanted}"
    return dict(zip(keys, read, strict=True))


def _key(entity: Entity, event: Event) -> tuple[str, ...]:
    return tuple(getattr(event, field) for field in KEY_FIELDS[entity])


def tiles_of(family: TileFamily, events: Iterable[Event], tile_ms: int) -> list[TileRow]:
    """The family's tiles of that size, each with all its events counted."""
    held: dict[tuple[tuple[str, ...], int], list[Event]] = defaultdict(list)
    for event in events:
        key = tuple(getattr(event, field) for field in family.key_fields)
        held[key, event.time_ms // tile_ms * tile_ms].append(event)
    return [
        TileRow(
            key,
            tile_ms,
            start_ms,
            len(inside),
            max(event.time_ms for event in inside),
            tuple(column_value(column, inside) for column in family.columns),
        )
        for (key, start_ms), inside in held.items()
    ]


def column_value(column: Column, inside: Iterable[Event]) -> int:
    """The column over a tile's events, by its name."""
    own = [event for event in inside if selected(column.events, event)]
    if column.name == column.events.name:
        return len(own)
    if column.name == f"last_{column.events.name}_ms":
        return max((event.time_ms for event in own), default=0)
    name = next(n for n in ("watch_ms", "watch_percent", "kind", "day_part") if column.name.endswith(f"_{n}"))
    numbers = [value_of(name, event) for event in own]
    if column.name.startswith("max_"):
        return max(numbers, default=0)
    if column.name.startswith("last_"):
        return max((event.time_ms * 2**21 + value_of(name, event) for event in own), default=0)
    if column.name.startswith("distinct_"):
        return sum(2**value for value in set(numbers))
    return sum(numbers)
