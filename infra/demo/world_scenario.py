"""The demo on the synthetic world: seed its history, train, let its users live, and account for every record."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from features.names import MS_PER_SECOND
from infra.airflow import DAG_IDS
from infra.airflow_client import AirflowError
from infra.demo.chain import Chain
from infra.demo.live import ARMS, Live
from infra.demo.options import DemoOptions
from infra.demo.probes import Prober
from infra.demo.report import Report
from infra.demo.statistics import latency
from infra.programs import topics
from serving.client import RankingClient
from streaming.producer import Producer
from streaming.world import World, WorldParameters

PROMOTE = DAG_IDS[-1]
NEW_ITEMS_LIVE = 20
"""Items published when the live phase begins, which no training has seen."""


def live_days_accepted(since_ms: int, now_ms: int) -> str:
    """Limits of the quality gates (`features.quality_limits`) that accept the days of the live phases: users ask for
    slate after slate within seconds, so what they did in the last hour is unlike what it was on the days before.
    """
    since, now = (datetime.fromtimestamp(ms / MS_PER_SECOND, UTC).date() for ms in (since_ms, now_ms))
    days = [since + timedelta(days=k) for k in range((now - since).days + 1)]
    reason = "the live phases of the demo put hours into seconds"
    return "".join(
        f'[[{suite}.accepted_days]]\ndate = {day}\nreason = "{reason}"\n'
        for suite in ("events", "examples")
        for day in days
    )


@dataclass(frozen=True, kw_only=True)
class WorldScenario:
    """One world and one chain that learns from it."""

    options: DemoOptions
    chain: Chain
    report: Report
    world: World

    @classmethod
    def create(cls, options: DemoOptions, chain: Chain, report: Report) -> "WorldScenario":
        """Draws the world that ends now. Raises pydantic's `ValidationError` for sizes that it cannot have."""
        sizes = {"population": {"users": options.users}, "catalogue": {"items": options.items}}
        parameters = WorldParameters.model_validate({"seed": options.seed, **sizes})
        return cls(options=options, chain=chain, report=report, world=World(parameters, now_ms=chain.phases.now_ms()))

    def run(self) -> None:
        """Every phase, from the first record to the last account; findings go to the report."""
        phases = self.chain.phases
        with phases.phase("seed"):
            self.chain.publish(self.world.items(), self.world.history(), self.world.now_ms)
        with phases.phase("train"):
            self.chain.train()
        with phases.phase("features"):
            self.chain.wait_for_features(self.world.ledger)
        servers = self.chain.settings.bootstrap_servers
        with self.chain.client() as client, Producer(servers, topics().events, linger_ms=0) as producer:
            live = self._enter(client, producer)
            with phases.phase("live"):
                turns = [self._live(live)]
            for number in range(1, self.options.retrainings + 1):
                with phases.phase(f"retrain {number}"):
                    self._retrain(client)
                with phases.phase(f"live {number}"):
                    live.welcome()
                    turns.append(self._live(live))
            self.report.add(closed_loop=turns)
            with phases.phase("probes"):
                self._probe(client, producer)
        with phases.phase("accounts"):
            self.report.add(**self.chain.settle(self.world.ledger))
        self.report.absent(
            "a synthetic world has users who react, so click rates are measured", "hr_at_10", "ndcg_at_10"
        )

    def _enter(self, client: RankingClient, producer: Producer) -> Live:
        """Publishes what is new, and brings the users who will live on to the end."""
        now_ms = self.chain.phases.now_ms
        self.chain.publish(self.world.publish_items(NEW_ITEMS_LIVE, now_ms()), (), now_ms())
        return Live(self.world, client, producer, now_ms, self.options.live_users)

    def _live(self, live: Live) -> dict[str, Any]:
        """One live phase; the report's own figures are those of the last."""
        result, seed = live.run(self.options.rounds, self.chain.phases.say), self.options.seed
        self.report.add(
            click_rate={arm: result.click_rate(arm, seed) for arm in ARMS},
            click_rate_by_round={arm: result.by_round(arm) for arm in ARMS},
            slates_served=len(result.recommend_ms),
            slates_degraded=result.degraded,
            **latency("recommend_ms", result.recommend_ms),
        )
        shares = result.gap_shares(seed)
        for name, share in shares.items():
            if share is not None:
                span = f"{share['value']:.0%} [{share['low']:.0%}, {share['high']:.0%}]"
                self.chain.phases.say(f"share of the gap between popular and oracle, {name}: {span}")
        items = len(self.world.items())
        arms = {arm: result.arm_report(arm, items, seed) for arm in ARMS}
        return {"bundle_ids": sorted(result.bundle_ids), "arms": arms, "gap_share": shares}

    def _retrain(self, client: RankingClient) -> None:
        """Trains on all that happened; a challenger that the gates refuse leaves the champion serving."""
        limits = live_days_accepted(self.world.now_ms, self.chain.phases.now_ms())
        self.chain.settings.quality_limits.write_text(limits)
        self.chain.wait_for_features(self.world.ledger)
        try:
            self.chain.train()
        except AirflowError as error:
            if PROMOTE not in str(error):
                raise
            self.chain.phases.say(f"the champion stays: {error}")
        self.chain.wait_for_champion(client)

    def _probe(self, client: RankingClient, producer: Producer) -> None:
        phases = self.chain.phases
        prober = Prober(client=client, producer=producer, ledger=self.world.ledger, now_ms=phases.now_ms)
        users = [profile.user_id for profile in self.world.live_users(self.options.probes)]
        waited_ms = prober.event_to_slate_ms(users, self.world.items()[0])
        self.report.add(**latency("event_to_slate_ms", waited_ms))
        known = [profile.user_id for profile in self.world.live_users(self.options.live_users) if not profile.is_new]
        change = prober.taste_change(self.world, known[0])
        phases.say(
            f"taste change of {change['user_id']}: {change['before_share']:.0%} {change['category']} before, "
            f"{change['after_share']:.0%} after {change['events']} events"
        )
        self.report.add(taste_change=change)
