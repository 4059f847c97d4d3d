"""Two questions to the running chain: how soon does a slate reflect an event, and does a slate follow a new taste?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from features.events import Event, EventType
from features.items import Item
from infra.demo import SLATE_ITEMS, DemoError
from serving.client import RankingClient, Slate
from streaming.producer import Producer
from streaming.records import Ledger, Record, record_of
from streaming.world import World

REFLECTED_WITHIN_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Prober:
    """Sends events and watches the service's answers for them."""

    client: RankingClient
    producer: Producer
    ledger: Ledger
    now_ms: Callable[[], int]
    recommend_ms: list[float] = field(default_factory=list)
    """How long each Recommend call took, as the client saw it."""

    def event_to_slate_ms(self, user_ids: Sequence[str], item: Item) -> list[float]:
        """For each user: milliseconds from producing a click to the first slate that reflects it.

        Polls without a pause, so the figure includes on average half a Recommend call of waiting.
        Raises `DemoError` when an event is not reflected within `REFLECTED_WITHIN_S`.
        """
        return [self._probe(user_id, item) for user_id in user_ids]

    def _probe(self, user_id: str, item: Item) -> float:
        now_ms = self.now_ms()
        event = Event(
            event_id=str(uuid4()),
            event_type=EventType.CLICK,
            event_time_ms=now_ms,
            user_id=user_id,
            item_id=item.item_id,
            category=item.category,
            creator_id=item.creator_id,
        )
        began = time.perf_counter()
        self.send([record_of(event, now_ms)])
        self.until_reflected(user_id, now_ms)
        return (time.perf_counter() - began) * 1_000

    def taste_change(self, world: World, user_id: str) -> dict[str, Any]:
        """One user's slate before and after five events in a category that is new to them. No exploration."""
        clone = world.clone_user(user_id, "taste-change")
        before = self._slate(user_id)
        category = world.new_category(clone, self.now_ms())
        records = world.taste_change_events(clone, category, self.now_ms(), before.request_id)
        self.send(records)
        last_ms = max(record.arrival_ms for record in records)
        after = self.until_reflected(user_id, last_ms)
        return {
            "user_id": user_id,
            "category": category,
            "events": len(records),
            "before": _cells(before),
            "after": _cells(after),
            "before_share": _share(before, category),
            "after_share": _share(after, category),
        }

    def send(self, records: list[Record]) -> None:
        """Sends records and waits until the broker has them."""
        self.ledger.note(records)
        self.producer.send(records)
        self.producer.flush()

    def _slate(self, user_id: str) -> Slate:
        began = time.perf_counter()
        slate = self.client.recommend(user_id, count=SLATE_ITEMS, explore=False)
        self.recommend_ms.append((time.perf_counter() - began) * 1_000)
        return slate

    def until_reflected(self, user_id: str, event_time_ms: int) -> Slate:
        """Asks until a slate reflects an event of this time; 0 takes the first slate. Raises `DemoError`."""
        deadline = time.monotonic() + REFLECTED_WITHIN_S
        while time.monotonic() < deadline:
            slate = self._slate(user_id)
            if (slate.newest_event_time_ms or 0) >= event_time_ms:
                return slate
        raise DemoError(
            f"no slate of {user_id} reflected the event at {event_time_ms} within {REFLECTED_WITHIN_S:.0f} s; "
            "look at the logs of flink and writer with millrace logs."
        )


def _cells(slate: Slate) -> list[dict[str, str]]:
    return [{"item_id": item.item_id, "category": item.category} for item in slate.items]


def _share(slate: Slate, category: str) -> float:
    return sum(item.category == category for item in slate.items) / max(len(slate.items), 1)
