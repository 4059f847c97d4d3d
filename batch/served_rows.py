"""What the service says that it read: the windowed features of logged slates, as rows that can be computed again.

Each row has the instant at which the service finalised its values, as far as the record tells. The user's side was
finalised at the request's own instant. Of the items' side the record has the snapshot's instant S; what that says of a
row follows from `serving/upkeep.py`, which finalises what was touched each second, and everything each minute:

- An item or creator with no arrival in the `TOUCHED_MS` before S was last finalised somewhere between its last arrival
  and S, and not more than `SNAPSHOT_MS` before S. With no arrival in between, its counts and rates change at tile
  boundaries alone, of which that time holds one at most, so the served value is the one at the beginning of that time
  or the one at S: both are computed, and either is right.
- A category is finalised with everything only, so the same holds of it from `SNAPSHOT_MS` before S on.
- A row with an arrival in that time is UNSETTLED: which events it had seen is not known. It is reported apart.
"""

import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pyarrow.compute as pc
from deltalake import DeltaTable

from batch.slate_values import ITEM_NAMES, Degraded, Float32s, item_values, user_values
from features import specs
from features.names import MS_PER_MINUTE, MS_PER_SECOND, LakeTables
from features.slates import SlateError, SlateRecord, parse_slate
from features.specs import KEY_FIELDS, Entity, features_of
from features.tiles import ITEM_TILES

PIPELINE_MS = MS_PER_SECOND
"""Longest way of an event from Kafka into the store and the snapshot that is not held against them."""
TOUCHED_MS = MS_PER_SECOND + PIPELINE_MS
"""After so long without an arrival, an item's and a creator's values hold every event."""
SNAPSHOT_MS = MS_PER_MINUTE + MS_PER_SECOND
"""The longest time since everything was finalised: a minute, and a step of the upkeep that comes late."""
UNSETTLED_MS: Mapping[Entity, int] = {
    Entity.USER: PIPELINE_MS,
    Entity.USER_CATEGORY: PIPELINE_MS,
    Entity.ITEM: TOUCHED_MS,
    Entity.CREATOR: TOUCHED_MS,
    Entity.CATEGORY: SNAPSHOT_MS + PIPELINE_MS,
}
"""An arrival in so many milliseconds before the row's instant sets the row apart."""


class State(StrEnum):
    """Whether a row can be judged."""

    SETTLED = "settled"
    UNSETTLED = "unsettled"
    """With an arrival so short before that the service may or may not have known it."""
    DEGRADED = "degraded"
    """The service said that it did not have the user's or the items' features."""
    WAITING = "waiting"
    """The lake does not hold all events up to the row's instant yet."""


@dataclass(frozen=True, kw_only=True)
class ServedRow:
    """One entity's features as one slate's ranker read them."""

    request_id: str
    position: int | None
    """The item's; None for the user's own."""
    key: tuple[str, ...]
    """In the order of `KEY_FIELDS`."""
    instant_ms: int
    values_F: Float32s
    """In the order of `features_of(entity)`."""
    degraded: bool


@dataclass(frozen=True, kw_only=True)
class ServedSample:
    """The rows of some slates, by entity, and what became of the slates."""

    rows: Mapping[Entity, list[ServedRow]]
    slates: Mapping[str, int] = field(default_factory=dict)
    """How many of the window's slates were read, left out (`sampled_out`), of other definitions of the features
    (`other_features`), without features (`not_scored`), without the user's instant (`version_1`), or unreadable."""


def sample_rows(
    lake: Path, from_ms: int, until_ms: int, max_slates: int, among: Collection[str] | None = None
) -> ServedSample:
    """The rows of the slates served in `[from_ms, until_ms)`: of all, or of `max_slates` chosen by their ids' hash.

    `among` are the ids of the only slates that are wanted. The same slates are chosen whenever they are asked for.
    Without a table of slates there are none. Slates from before their features' version was logged are taken for this
    version's.
    """
    rows: dict[Entity, list[ServedRow]] = {entity: [] for entity in Entity}
    seen: Counter[str] = Counter()
    for value in _values(lake, from_ms, until_ms, max_slates, seen, among):
        try:
            record = parse_slate(value)
            if record.spec_version not in ("", specs.version()):
                seen["other_features"] += 1
                continue
            found = list(rows_of(record))
        except SlateError:
            seen["unreadable"] += 1
            continue
        seen["read"] += 1
        seen["not_scored"] += not found
        seen["version_1"] += bool(found) and record.evidence is None
        for entity, row in found:
            rows[entity].append(row)
    return ServedSample(rows=rows, slates=dict(seen))


def rows_of(record: SlateRecord) -> Iterator[tuple[Entity, ServedRow]]:
    """The rows of one slate; none where the ranker did not score. Raises `SlateError`.

    Version 1 does not say when the user was read, so it has the items' side only.
    """
    if not record.user_features:
        return
    degraded = Degraded.of(record)
    read_ms = None if record.evidence is None else int(record.evidence.user["instant_ms"])
    if read_ms is not None and record.user_id:
        yield Entity.USER, _row(record, None, (record.user_id,), read_ms, user_values(record), degraded.user)
    position_N, values_NF = item_values(record)
    for position, values_F in zip(position_N.tolist(), values_NF, strict=True):
        item = record.items[position]
        ids = {"item_id": item.item_id, "creator_id": item.creator_id, "category": item.category}
        for entity, columns in _COLUMNS.items():
            key = tuple(ids.get(name, record.user_id) for name in KEY_FIELDS[entity])
            of_items = entity in ITEM_TILES.entities
            instant_ms = record.snapshot_instant_ms if of_items else read_ms
            if instant_ms is not None and all(key):  # an anonymous user has no key, nor has version 1 all of an item's
                behind = degraded.items if of_items else degraded.user
                yield entity, _row(record, position, key, instant_ms, values_F[columns], behind)


_COLUMNS: Mapping[Entity, slice] = {
    entity: slice(ITEM_NAMES.index(names[0]), ITEM_NAMES.index(names[-1]) + 1)
    for entity in Entity
    if entity is not Entity.USER
    for names in [[feature.name for feature in features_of(entity)]]
}
"""Where the features of each of the items' entities stand among `ITEM_NAMES`."""


def _row(
    record: SlateRecord,
    position: int | None,
    key: tuple[str, ...],
    instant_ms: int,
    values_F: Float32s,
    degraded: bool,
) -> ServedRow:
    return ServedRow(
        request_id=record.request_id,
        position=position,
        key=key,
        instant_ms=instant_ms,
        values_F=values_F,
        degraded=degraded,
    )


def _values(
    lake: Path, from_ms: int, until_ms: int, max_slates: int, seen: Counter[str], among: Collection[str] | None
) -> Iterator[bytes]:
    """The raw records of the chosen slates. Ids are read first, since the records are large."""
    path = str(lake / LakeTables().slates)
    if not DeltaTable.is_deltatable(path):
        return
    slates = DeltaTable(path).to_pyarrow_dataset()
    served = (pc.field("served_at_ms") >= from_ms) & (pc.field("served_at_ms") < until_ms)
    ids = slates.to_table(columns=["request_id"], filter=served).column("request_id").to_pylist()
    ids = ids if among is None else [request_id for request_id in ids if request_id in among]
    chosen = sorted(ids, key=lambda request_id: (zlib.crc32(request_id.encode()), request_id))[:max_slates]
    seen["sampled_out"] = len(ids) - len(chosen)
    if not chosen:
        return
    records = slates.scanner(columns=["value"], filter=served & pc.field("request_id").isin(chosen))
    for batch in records.to_batches():
        yield from batch.column("value").to_pylist()
