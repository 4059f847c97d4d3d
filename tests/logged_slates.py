"""Hand-made events and the slates that a service would log of them, by the oracle; wrong values may be planted."""

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from batch.lake import INGESTED, TABLES, create_tables
from features import specs
from features.packed import PackedArray, pack
from features.slates import SlateEvidence, SlateItem, SlateRecord
from features.specs import KEY_FIELDS, Entity, features_of
from features.tiles import ITEM_TILES
from models.ranker_inputs import CANDIDATE_FEATURES, USER_FEATURES
from tests.oracles.windows import Event, window_value

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
NOON_MS = 1_760_000_000_000 // DAY_MS * DAY_MS + 12 * HOUR_MS
"""The start of a tile of five minutes."""
USER_MS, SNAPSHOT_AT_MS = NOON_MS + 40_100, NOON_MS + 40_000
"""Instants of the slates; the snapshot's minute before reaches over the tile's start."""
LAKE_END_MS = NOON_MS + HOUR_MS
ITEMS = {"i1": ("c1", "k1"), "i2": ("c2", "k2"), "i3": ("c2", "k1")}
Row = dict[str, Any]


def utc_date(time_ms: int) -> datetime.date:
    return datetime.datetime.fromtimestamp(time_ms / 1000, tz=datetime.UTC).date()


def ids_of(item_id: str) -> tuple[str, str]:
    """Category and creator: of an item that is not in `ITEMS` its own."""
    return ITEMS.get(item_id, (f"c-{item_id}", f"k-{item_id}"))


def event(n: int, event_type: str, item_id: str, time_ms: int, user_id: str = "u1", delay_ms: int = 20) -> Row:
    category, creator_id = ids_of(item_id)
    watched = event_type == "watch"
    return {
        "event_id": f"e{n:03d}",
        "event_type": event_type,
        "event_time_ms": time_ms,
        "arrival_ms": time_ms + delay_ms,
        "user_id": user_id,
        "item_id": item_id,
        "category": category,
        "creator_id": creator_id,
        "watch_ms": 900 if watched else None,
        "duration_ms": 1_000 if watched else None,
    }


def quiet_events() -> list[Row]:
    """Events of both users on all items, none in the last minutes; one a day and five minutes before the snapshot, so
    that it leaves the windows of a day at the tile's start.
    """
    shown = [event(n, "impression", f"i{n % 3 + 1}", NOON_MS - n * 17 * MINUTE_MS - HOUR_MS) for n in range(30)]
    acted = [
        event(40 + n, kind, "i1", NOON_MS - (n + 1) * HOUR_MS) for n, kind in enumerate(("click", "watch", "like"))
    ]
    others = [
        event(50, "click", "i2", NOON_MS - 2 * HOUR_MS, "u2"),
        event(51, "hide", "i3", NOON_MS - 3 * DAY_MS, "u2"),
    ]
    leaving = [event(60 + n, "click", item_id, NOON_MS - DAY_MS - 2 * MINUTE_MS) for n, item_id in enumerate(ITEMS)]
    last = event(99, "impression", "i9", LAKE_END_MS, "u9", 0)  # the lake is complete up to here
    return [*shown, *acted, *others, *leaving, last]


def truth(events: list[Row], entity: Entity, key: Mapping[str, str], instant_ms: int) -> dict[str, float]:
    """The oracle's values of what had arrived."""
    own = [
        e for e in events if e["arrival_ms"] < instant_ms and all(e[name] == key[name] for name in KEY_FIELDS[entity])
    ]
    names = ("user_id", "item_id", "category", "creator_id", "event_type", "event_time_ms")
    seen = [Event(*(e[name] for name in names), e["watch_ms"] or 0, e["duration_ms"] or 1) for e in own]
    return {feature.name: float(window_value(feature, seen, instant_ms)) for feature in features_of(entity)}


def slate(
    events: list[Row],
    request_id: str,
    *,
    user_id: str = "u1",
    items_ms: int = SNAPSHOT_AT_MS,
    wrong: Mapping[str, float] | None = None,
    known: list[Row] | None = None,
    item_ids: Iterable[str] = ("i1", "i2", "i3"),
    degraded: tuple[str, ...] = (),
    history: Iterable[tuple[str, str, int]] = (),
) -> SlateRecord:
    """A slate of all items as a service would log it that knew the events (or only those `known`) at these instants;
    features in `wrong` have that value instead. `history` is of item, event type and time.
    """
    held, wrong = events if known is None else known, wrong or {}
    rows, items = [], []
    for position, item_id in enumerate(item_ids):
        category, creator_id = ids_of(item_id)
        key = {"user_id": user_id, "item_id": item_id, "category": category, "creator_id": creator_id}
        values: dict[str, float] = {}
        for entity in Entity:
            values |= truth(held, entity, key, items_ms if entity in ITEM_TILES.entities else USER_MS)
        rows.append([({**values, **wrong})[name] for name in CANDIDATE_FEATURES])
        items.append(
            SlateItem(
                item_id=item_id,
                position=position,
                score=1.0,
                propensity=1.0,
                sources=("popular",),
                probabilities={"click": 0.1},
                category=category,
                creator_id=creator_id,
            )
        )
    user = {**truth(held, Entity.USER, {"user_id": user_id}, USER_MS), **wrong}
    return SlateRecord(
        request_id=request_id,
        user_id=user_id,
        served_at_ms=USER_MS + 5,
        surface="home",
        bundle_id="bundle-a",
        arm="champion",
        degraded=degraded,
        snapshot_instant_ms=SNAPSHOT_AT_MS,
        newest_event_ms=None,
        user_features={name: float(np.float32(user[name])) for name in USER_FEATURES},
        items=tuple(items),
        candidates=(),
        evidence=evidence(np.array(rows, "<f4"), [*history]),
        spec_version=specs.version(),
    )


def evidence(values_CF: np.ndarray, history: list[tuple[str, str, int]]) -> SlateEvidence:
    order = np.arange(len(values_CF), dtype="<i4")
    times = np.array([time_ms for _, _, time_ms in history], "<i8")
    arrays = {"row_S": order, "input_row_R": order, "candidate_CF": values_CF, "history_time_ms_H": times}
    return SlateEvidence(
        method="Recommend",
        query={},
        settings={},
        user={
            "instant_ms": USER_MS,
            "categories": [],
            "history_item_ids": [item_id for item_id, _, _ in history],
            "history_types": [kind for _, kind, _ in history],
        },
        catalogue=(),
        unscored=(),
        sources={},
        excluded_since={},
        candidates_retrieved=len(values_CF),
        stage_ms={},
        unknown_item_ids=(),
        next_page_token="",
        candidate_features=CANDIDATE_FEATURES,
        full_features=True,
        arrays=pack(
            {name: PackedArray(dtype=a.dtype.str, shape=a.shape, data=a.tobytes()) for name, a in arrays.items()}
        ),
    )


def write_lake(lake: Path, events: list[Row], slates: list[SlateRecord]) -> Path:
    """Events and slates where the ingest would leave them."""
    create_tables(lake, INGESTED)
    place = [{"topic": "t", "partition": 0, "offset": n} for n in range(max(len(events), len(slates)))]
    dated = [{**e, **at, "event_date": utc_date(e["event_time_ms"])} for e, at in zip(events, place, strict=False)]
    logged = [
        {
            "request_id": record.request_id,
            "user_id": record.user_id,
            "served_at_ms": record.served_at_ms,
            "spec_version": record.spec_version,
            "value": record.to_json(),
            **at,
        }
        for record, at in zip(slates, place, strict=False)
    ]
    for table, rows in ((TABLES.silver_events, dated), (TABLES.bronze_events, dated), (TABLES.slates, logged)):
        schema = pa.schema(DeltaTable(str(lake / table)).schema().to_arrow())
        columns = [field.name for field in schema]
        filled = [{name: row.get(name) for name in columns} for row in rows]
        write_deltalake(str(lake / table), pa.Table.from_pylist(filled, schema), mode="append")
    return lake
