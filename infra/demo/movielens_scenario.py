"""The demo on MovieLens 100K: train on the past, then replay the held-out ratings against the service.

Just before each held-out rating that is a target (`MovieLens.is_target`), its user asks for ten films without
exploration. The slate that counts is the first that reflects the user's previous event, as it would when people take
seconds between two ratings. Only then is the rating itself sent.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from infra.data_wheels import data_wheel
from infra.demo import SLATE_ITEMS
from infra.demo.chain import Chain
from infra.demo.options import DemoOptions
from infra.demo.probes import Prober
from infra.demo.report import Report
from infra.demo.statistics import latency, ratio_interval
from infra.programs import topics
from streaming.movielens import MovieLens, MovieLensParameters, load
from streaming.producer import Producer

MOVIELENS_WHEEL = "recbole"
ARMS = ("millrace", "popular")
QUALITY_LIMITS = "".join(f"[{suite}]\nmin_reference_days = 8\n" for suite in ("events", "examples"))
"""People rate in sittings, so days are unlike each other: more reference days than a week has compare none."""


@dataclass(kw_only=True)
class Hits:
    """Per user and arm: targets asked for, how many were in the slate, and their discounted gain."""

    targets: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    hits: dict[str, defaultdict[str, float]] = field(default_factory=lambda: {a: defaultdict(float) for a in ARMS})
    gains: dict[str, defaultdict[str, float]] = field(default_factory=lambda: {a: defaultdict(float) for a in ARMS})

    def note(self, arm: str, user_id: str, slate: list[str], target: str) -> None:
        """Counts a hit, and a gain of 1 / log2(position + 2): with one target per slate that is its NDCG."""
        if target in slate:
            self.hits[arm][user_id] += 1
            self.gains[arm][user_id] += 1 / np.log2(slate.index(target) + 2)

    def metric(self, of: dict[str, defaultdict[str, float]], seed: int) -> dict[str, dict[str, float]]:
        """The mean over targets by arm, with its interval over users."""
        users = sorted(self.targets)
        asked = [self.targets[user] for user in users]
        return {arm: ratio_interval([of[arm][user] for user in users], asked, seed) for arm in ARMS}


@dataclass(frozen=True, kw_only=True)
class MovieLensScenario:
    """Real ratings and one chain that learns from them."""

    options: DemoOptions
    chain: Chain
    report: Report
    data: MovieLens

    @classmethod
    def create(cls, options: DemoOptions, chain: Chain, report: Report) -> "MovieLensScenario":
        """Reads the wheel, downloading it at the first time. Raises `DataError` or `MovieLensError`."""
        chain.settings.quality_limits.write_text(QUALITY_LIMITS)
        parameters = MovieLensParameters(seed=options.seed)
        data = load(data_wheel(MOVIELENS_WHEEL), now_ms=chain.phases.now_ms(), parameters=parameters)
        return cls(options=options, chain=chain, report=report, data=data)

    def run(self) -> None:
        """Every phase, from the first rating to the last account; findings go to the report."""
        phases = self.chain.phases
        with phases.phase("seed"):
            self.chain.publish(self.data.items, self.data.history(), phases.now_ms())
        with phases.phase("train"):
            self.chain.train()
        with phases.phase("features"):
            self.chain.wait_for_features(self.data.ledger)
        servers = self.chain.settings.bootstrap_servers
        with self.chain.client() as client, Producer(servers, topics().events, linger_ms=0) as producer:
            prober = Prober(client=client, producer=producer, ledger=self.data.ledger, now_ms=phases.now_ms)
            with phases.phase("live"):
                self._replay(prober)
            with phases.phase("probes"):
                users = sorted({rating.user_id for rating in self.data.ratings})[: self.options.probes]
                waited_ms = prober.event_to_slate_ms(users, self.data.items[0])
                self.report.add(**latency("event_to_slate_ms", waited_ms))
        with phases.phase("accounts"):
            self.report.add(**self.chain.settle(self.data.ledger))
        why = "ratings say nothing of what a user would do with a slate that was never shown"
        self.report.absent(why, "click_rate", "taste_change")

    def _replay(self, prober: Prober) -> None:
        found = Hits()
        last_event_ms: dict[str, int] = {}
        ratings = self.data.held_out[: self.options.held_out]
        for number, rating in enumerate(ratings, start=1):
            user_id = rating.user_id
            if self.data.is_target(rating):
                slate = prober.until_reflected(user_id, last_event_ms.get(user_id, 0))
                found.targets[user_id] += 1
                found.note("millrace", user_id, [item.item_id for item in slate.items], rating.item_id)
                popular = self.data.popular_slate(user_id, SLATE_ITEMS)
                found.note("popular", user_id, popular, rating.item_id)
            records = self.data.replay(rating, self.chain.phases.now_ms())
            prober.send(records)
            last_event_ms[user_id] = max(record.arrival_ms for record in records)
            if number % 500 == 0:
                self.chain.phases.say(f"{number:,} of {len(ratings):,} held-out ratings replayed")
        self.report.add(
            hr_at_10=found.metric(found.hits, self.options.seed),
            ndcg_at_10=found.metric(found.gains, self.options.seed),
            held_out={"ratings": len(ratings), "targets": sum(found.targets.values()), "users": len(found.targets)},
            **latency("recommend_ms", prober.recommend_ms),
        )
