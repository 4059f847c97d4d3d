"""The live phase: simulated users ask the real service for slates and react to what it really returned.

Every arm has its own clone of every user. Only the reactions to Millrace's slates go to Kafka; the other arms see no
event of theirs, so they cannot teach it. Shapes: R rounds, U users.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from features.names import MS_PER_DAY, MS_PER_SECOND
from infra.demo import SLATE_ITEMS
from infra.demo.statistics import gap_share, ratio_interval
from serving.client import RankingClient
from streaming.producer import Producer
from streaming.world import UserClone, UserProfile, World

ARMS = ("millrace", "popular", "random", "oracle")
FEW_ACTS = range(5, 15)
"""How much a newcomer has done, impressions aside, at slates that count as those of a user with few events."""


class Outcome(NamedTuple):
    """What became of one slate."""

    item_ids: tuple[str, ...]
    clicks: int
    impressions: int
    watch_ms: int
    age_days: float
    """Mean time since its items were published."""
    newcomer_acts: int
    """What the user had done before, for a user without a history; -1 for the others."""


@dataclass(kw_only=True)
class LiveResult:
    """Outcomes `[R][U]` by arm, and the client's view of each Recommend call."""

    outcomes: dict[str, list[list[Outcome]]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    recommend_ms: list[float] = field(default_factory=list)
    degraded: int = 0
    """Slates in which a stage fell back."""
    bundle_ids: set[str] = field(default_factory=set)

    def click_rate(self, arm: str, seed: int) -> dict[str, float]:
        """Clicks per impression, with a 95% bootstrap interval over users."""
        clicks_U, shown_U = self._of(arm, "clicks").sum(axis=0), self._of(arm, "impressions").sum(axis=0)
        counts = {"clicks": int(clicks_U.sum()), "impressions": int(shown_U.sum())}
        return {**ratio_interval(clicks_U, shown_U, seed), **counts}

    def by_round(self, arm: str) -> list[float]:
        """Clicks per impression of each round."""
        clicks_R, shown_R = self._of(arm, "clicks").sum(axis=1), self._of(arm, "impressions").sum(axis=1)
        rates: list[float] = (clicks_R / np.maximum(shown_R, 1)).tolist()
        return rates

    def arm_report(self, arm: str, items: int, seed: int) -> dict[str, Any]:
        """Click rate, time watched and age of the items a slate, and the share of all `items` that was shown."""
        shown = {item_id for row in self.outcomes[arm] for outcome in row for item_id in outcome.item_ids}
        return {
            "click_rate": self.click_rate(arm, seed),
            "watch_s_per_slate": float(self._of(arm, "watch_ms").mean()) / MS_PER_SECOND,
            "age_days": float(self._of(arm, "age_days").mean()),
            "coverage": len(shown) / items,
        }

    def gap_shares(self, seed: int) -> dict[str, dict[str, float] | None]:
        """How far Millrace is from the popular arm towards the oracle: clicks and time watched an impression.

        `few_events` are the clicks of newcomers at the slates at which they had done `FEW_ACTS`; None without any.
        """
        few_RU = np.isin(self._of("millrace", "newcomer_acts"), list(FEW_ACTS))
        everyone_RU = np.ones_like(few_RU)
        asked = {
            "clicks": ("clicks", everyone_RU),
            "watch": ("watch_ms", everyone_RU),
            "few_events": ("clicks", few_RU),
        }
        return {
            name: self._gap_share(counted, chosen_RU, seed) if chosen_RU.any() else None
            for name, (counted, chosen_RU) in asked.items()
        }

    def _gap_share(self, counted: str, chosen_RU: npt.NDArray[np.bool_], seed: int) -> dict[str, float]:
        low, got, high = (
            [(self._of(arm, name) * chosen_RU).sum(axis=0) for name in (counted, "impressions")]
            for arm in ("popular", "millrace", "oracle")
        )
        return gap_share(low, got, high, seed)

    def _of(self, arm: str, name: str) -> npt.NDArray[Any]:
        return np.array([[getattr(outcome, name) for outcome in row] for row in self.outcomes[arm]])


class Live:
    """Some users of a world, each with a clone in every arm, who live on through any number of phases; newcomers may
    join them in between.
    """

    def __init__(
        self, world: World, client: RankingClient, producer: Producer, now_ms: Callable[[], int], users: int
    ) -> None:
        """Raises `ValueError` when the world has fewer users."""
        self._world, self._client, self._producer, self._now_ms = world, client, producer, now_ms
        self._clones: dict[str, list[UserClone]] = {arm: [] for arm in ARMS}
        self._acts: dict[str, int] = {}
        """What each newcomer has done, impressions aside."""
        self._join(world.live_users(users))
        self._newcomers = len(self._acts)

    def welcome(self) -> None:
        """Brings as many newcomers as there were at first, as far as the world has more."""
        self._join(self._world.newcomers(self._newcomers, self.user_ids))

    @property
    def user_ids(self) -> list[str]:
        """Who lives by now."""
        return [clone.profile.user_id for clone in self._clones["millrace"]]

    def _join(self, profiles: Sequence[UserProfile]) -> None:
        for arm, clones in self._clones.items():
            clones += [self._world.clone_user(profile.user_id, arm) for profile in profiles]
        self._acts |= dict.fromkeys((profile.user_id for profile in profiles if profile.is_new), 0)

    def run(self, rounds: int, say: Callable[[str], None]) -> LiveResult:
        """Each user asks once a round in every arm. Says each round's click rates."""
        result = LiveResult()
        published_ms = {item.item_id: item.published_at_ms for item in self._world.items()}
        for number in range(1, rounds + 1):
            rows: dict[str, list[Outcome]] = {arm: [] for arm in ARMS}
            for clones in zip(*self._clones.values(), strict=True):
                for arm, clone in zip(self._clones, clones, strict=True):
                    rows[arm].append(self._slate(arm, clone, result, published_ms))
            for arm in ARMS:
                result.outcomes[arm].append(rows[arm])
            rates = ", ".join(f"{arm} {result.by_round(arm)[-1]:.1%}" for arm in ARMS)
            say(f"round {number} of {rounds}: clicks per impression {rates}")
        self._producer.flush()
        return result

    def _slate(self, arm: str, clone: UserClone, result: LiveResult, published_ms: dict[str, int]) -> Outcome:
        now_ms, user_id = self._now_ms(), clone.profile.user_id
        if arm == "millrace":
            request_id, item_ids = self._ask(clone, result)
        else:
            request_id, item_ids = str(uuid4()), self._baseline(arm, clone, now_ms)
        reaction = self._world.react(clone, item_ids, request_id, now_ms)
        acts = self._acts.get(user_id, -1)
        if arm == "millrace":
            self._world.ledger.note(reaction.records)
            self._producer.send(reaction.records)
            if user_id in self._acts:
                self._acts[user_id] += reaction.acts
        ages_ms = [now_ms - published_ms[item_id] for item_id in item_ids]
        return Outcome(
            item_ids=tuple(item_ids),
            clicks=reaction.clicks,
            impressions=reaction.impressions,
            watch_ms=reaction.watch_ms,
            age_days=float(np.mean(ages_ms)) / MS_PER_DAY if ages_ms else 0.0,
            newcomer_acts=acts,
        )

    def _ask(self, clone: UserClone, result: LiveResult) -> tuple[str, Sequence[str]]:
        profile = clone.profile
        began = time.perf_counter()
        slate = self._client.recommend(
            profile.user_id, count=SLATE_ITEMS, device=profile.device, locale=profile.language
        )
        result.recommend_ms.append((time.perf_counter() - began) * MS_PER_SECOND)
        result.degraded += bool(slate.degraded)
        result.bundle_ids.add(slate.bundle_id)
        return slate.request_id, [item.item_id for item in slate.items]

    def _baseline(self, arm: str, clone: UserClone, now_ms: int) -> list[str]:
        choose = {
            "popular": self._world.popular_slate,
            "random": self._world.random_slate,
            "oracle": self._world.oracle_slate,
        }
        return choose[arm](clone, SLATE_ITEMS, now_ms)
