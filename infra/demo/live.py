"""The live phase: simulated users ask the real service for slates and react to what it really returned.

Every arm has its own clone of every user. Only the reactions to Millrace's slates go to Kafka; the other arms see no
event of theirs, so they cannot teach it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import numpy as np

from infra.demo import SLATE_ITEMS
from infra.demo.statistics import ratio_interval
from serving.client import RankingClient
from streaming.producer import Producer
from streaming.world import UserClone, World

ARMS = ("millrace", "popular", "random", "oracle")


@dataclass(kw_only=True)
class LiveResult:
    """Clicks and impressions `[rounds, users]` by arm, and the client's view of each Recommend call."""

    clicks: dict[str, list[list[int]]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    impressions: dict[str, list[list[int]]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    recommend_ms: list[float] = field(default_factory=list)
    degraded: int = 0
    """Slates in which a stage fell back."""

    def click_rate(self, arm: str, seed: int) -> dict[str, float]:
        """Clicks per impression, with a 95% bootstrap interval over users."""
        clicks_U = np.array(self.clicks[arm]).sum(axis=0)
        shown_U = np.array(self.impressions[arm]).sum(axis=0)
        counts = {"clicks": int(clicks_U.sum()), "impressions": int(shown_U.sum())}
        return {**ratio_interval(clicks_U, shown_U, seed), **counts}

    def by_round(self, arm: str) -> list[float]:
        """Clicks per impression of each round."""
        pairs = zip(self.clicks[arm], self.impressions[arm], strict=True)
        return [sum(clicks) / max(sum(shown), 1) for clicks, shown in pairs]


@dataclass(frozen=True, kw_only=True)
class Live:
    """What the live phase needs: the world, the service, and the way to Kafka."""

    world: World
    client: RankingClient
    producer: Producer
    now_ms: Callable[[], int]

    def run(self, users: int, rounds: int, say: Callable[[str], None]) -> LiveResult:
        """Each user asks once a round in every arm. Says each round's click rates."""
        profiles = self.world.live_users(users)
        clones = {arm: [self.world.clone_user(profile.user_id, arm) for profile in profiles] for arm in ARMS}
        result = LiveResult()
        for number in range(1, rounds + 1):
            rows = [self._everyone_once(clones, user, result) for user in range(users)]
            for arm in ARMS:
                result.clicks[arm].append([row[arm][0] for row in rows])
                result.impressions[arm].append([row[arm][1] for row in rows])
            rates = ", ".join(f"{arm} {result.by_round(arm)[-1]:.1%}" for arm in ARMS)
            say(f"round {number} of {rounds}: clicks per impression {rates}")
        self.producer.flush()
        return result

    def _everyone_once(
        self, clones: dict[str, list[UserClone]], user: int, result: LiveResult
    ) -> dict[str, tuple[int, int]]:
        seen = {}
        for arm in ARMS:
            clone = clones[arm][user]
            now_ms = self.now_ms()
            if arm == "millrace":
                request_id, item_ids = self._ask(clone, result)
            else:
                request_id, item_ids = str(uuid4()), self._baseline(arm, clone, now_ms)
            reaction = self.world.react(clone, item_ids, request_id, now_ms)
            if arm == "millrace":
                self.world.ledger.note(reaction.records)
                self.producer.send(reaction.records)
            seen[arm] = (reaction.clicks, reaction.impressions)
        return seen

    def _ask(self, clone: UserClone, result: LiveResult) -> tuple[str, Sequence[str]]:
        profile = clone.profile
        began = time.perf_counter()
        slate = self.client.recommend(
            profile.user_id, count=SLATE_ITEMS, device=profile.device, locale=profile.language
        )
        result.recommend_ms.append((time.perf_counter() - began) * 1_000)
        result.degraded += bool(slate.degraded)
        return slate.request_id, [item.item_id for item in slate.items]

    def _baseline(self, arm: str, clone: UserClone, now_ms: int) -> list[str]:
        choose = {
            "popular": self.world.popular_slate,
            "random": self.world.random_slate,
            "oracle": self.world.oracle_slate,
        }
        return choose[arm](clone, SLATE_ITEMS, now_ms)
