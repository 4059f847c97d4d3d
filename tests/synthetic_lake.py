"""A small made-up lake for the models' tests: users with a mood, items of categories, clicks where they meet.

The chance of a click depends on whether the item's category is the user's present mood (which the recent history
shows, not the user's id), on the item's quality and on the position. Features are counted by bisection; only those
of click and impression counts and rates are filled, the others have their defaults.
"""

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.events import EventType
from features.items import Item
from features.names import MS_PER_DAY, LakeTables
from features.specs import WINDOWED_FEATURES, Aggregate, Entity, WindowedFeature

START_MS = 1_700_000_000_000 - 1_700_000_000_000 % MS_PER_DAY
CATEGORIES = 6
CREATORS = 12
SLATE = 6


@dataclass(frozen=True, kw_only=True)
class SyntheticLake:
    """The tables that training reads."""

    items: list[Item]
    events: pa.Table
    examples: pa.Table
    end_ms: int

    def write(self, lake: Path) -> None:
        """Writes Delta tables where the batch jobs would."""
        from deltalake import write_deltalake

        names = LakeTables()
        write_deltalake(lake / names.items, pa.Table.from_pylist([vars(item) for item in self.items]))
        write_deltalake(lake / names.silver_events, self.events)
        write_deltalake(lake / names.examples, self.examples)


def synthetic_lake(seed: int = 0, users: int = 120, items: int = 150, slates: int = 12) -> SyntheticLake:
    """Seeded. `users * slates * SLATE` examples."""
    rng = np.random.default_rng(seed)
    catalogue = [_item(i, rng) for i in range(items)]
    quality = rng.normal(0, 0.7, items)
    moods = rng.integers(CATEGORIES, size=users)
    times = np.sort(START_MS + 2 * MS_PER_DAY + rng.integers(0, 8 * MS_PER_DAY, users * slates))
    log = _Log()
    for request, (t_ms, user) in enumerate(
        zip(times, rng.permutation(np.repeat(np.arange(users), slates)), strict=True)
    ):
        if rng.random() < 0.15:
            moods[user] = rng.integers(CATEGORIES)
        same = [i for i in range(items) if catalogue[i].category == f"c{moods[user]}"]
        slate = rng.permutation(np.concatenate([rng.choice(items, SLATE // 2), rng.choice(same, SLATE - SLATE // 2)]))
        for position, i in enumerate(slate):
            at_ms = int(t_ms) + position * 1_000
            in_mood = catalogue[i].category == f"c{moods[user]}"
            chance = 1 / (1 + np.exp(-(-2.5 + 3.0 * in_mood + quality[i] - 0.15 * position)))
            log.impression(f"r{request}", f"u{user}", catalogue[i], at_ms, position, rng.random() < chance, rng)
    return SyntheticLake(
        items=catalogue,
        events=pa.Table.from_pylist(log.events),
        examples=pa.Table.from_pylist(log.examples, schema=_schema()),
        end_ms=int(times[-1]) + MS_PER_DAY,
    )


def _item(i: int, rng: np.random.Generator) -> Item:
    creator = int(rng.integers(CREATORS))
    return Item(
        item_id=f"i{i:04d}",
        category=f"c{creator % CATEGORIES}",
        creator_id=f"k{creator}",
        language=("en", "de")[creator % 2],
        duration_ms=int(rng.integers(10_000, 300_000)),
        published_at_ms=START_MS - int(rng.integers(0, 20 * MS_PER_DAY)),
        available=True,
    )


class _Log:
    def __init__(self) -> None:
        self.events: list[dict[str, object]] = []
        self.examples: list[dict[str, object]] = []
        self.times: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self.history: dict[str, list[tuple[int, str, str]]] = defaultdict(list)

    def impression(
        self, request: str, user: str, item: Item, at_ms: int, position: int, clicked: bool, rng: np.random.Generator
    ) -> None:
        watched = bool(clicked and rng.random() < 0.8)
        fraction = float(rng.beta(2, 1)) if watched else None
        liked = bool(watched and rng.random() < 0.3)
        history = self.history[user][:-51:-1]
        self.examples.append(
            {
                "request_id": request,
                "user_id": user,
                "item_id": item.item_id,
                "t_ms": at_ms,
                "position": position,
                "device": ("phone", "tv")[int(user[1:]) % 2],
                "history_item_ids": [item_id for _, item_id, _ in history],
                "history_event_types": [event_type for _, _, event_type in history],
                "history_event_times_ms": [time_ms for time_ms, _, _ in history],
                "label_click": int(clicked),
                "label_completion": int(fraction >= 0.9) if fraction is not None else None,
                "label_like": int(liked),
                "label_share": int(watched and rng.random() < 0.05),
                "label_hide": int(not clicked and rng.random() < 0.03),
                "label_watch_fraction": fraction,
                **{feature.name: self._feature(feature, user, item, at_ms) for feature in WINDOWED_FEATURES},
            }
        )
        happened = [(EventType.IMPRESSION, True), (EventType.CLICK, clicked), (EventType.WATCH, watched)]
        for delay, (event_type, did) in enumerate([*happened, (EventType.LIKE, liked)]):
            if did:
                self._event(event_type, user, item, at_ms + delay)

    def _event(self, event_type: EventType, user: str, item: Item, at_ms: int) -> None:
        self.events.append(
            {
                "event_id": f"e{len(self.events)}",
                "event_type": str(event_type),
                "event_time_ms": at_ms,
                "user_id": user,
                "item_id": item.item_id,
                "creator_id": item.creator_id,
                "category": item.category,
                "arrival_ms": at_ms,
            }
        )
        for key in _keys(user, item).values():
            self.times[(*key, event_type)].append(at_ms)
        if event_type is not EventType.IMPRESSION:
            self.history[user].append((at_ms, item.item_id, str(event_type)))

    def _feature(self, feature: WindowedFeature, user: str, item: Item, at_ms: int) -> float:
        key = _keys(user, item)[feature.entity]

        def count(event_type: EventType) -> int:
            times = self.times.get((*key, event_type), [])
            return bisect_left(times, at_ms) - bisect_left(times, at_ms - feature.window_ms)

        if feature.aggregate is Aggregate.COUNT:
            return float(sum(count(event_type) for event_type in feature.events.event_types))
        if feature.aggregate is Aggregate.RATE and feature.events.name == "clicks":
            shown = count(EventType.IMPRESSION)
            return count(EventType.CLICK) / shown if shown else 0.0
        return feature.default


def _keys(user: str, item: Item) -> dict[Entity, tuple[str, ...]]:
    return {
        Entity.USER: ("user", user),
        Entity.USER_CATEGORY: ("user_category", user, item.category),
        Entity.ITEM: ("item", item.item_id),
        Entity.CREATOR: ("creator", item.creator_id),
        Entity.CATEGORY: ("category", item.category),
    }


def _schema() -> pa.Schema:
    return pa.schema(
        [
            ("request_id", pa.string()),
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("t_ms", pa.int64()),
            ("position", pa.int32()),
            ("device", pa.string()),
            ("history_item_ids", pa.list_(pa.string())),
            ("history_event_types", pa.list_(pa.string())),
            ("history_event_times_ms", pa.list_(pa.int64())),
            *((feature.name, pa.float64()) for feature in WINDOWED_FEATURES),
            ("label_click", pa.int32()),
            ("label_completion", pa.int32()),
            ("label_like", pa.int32()),
            ("label_share", pa.int32()),
            ("label_hide", pa.int32()),
            ("label_watch_fraction", pa.float64()),
        ]
    )
