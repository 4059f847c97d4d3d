"""The demo on the synthetic world: seed its history, train, let its users live, and account for every record."""

from dataclasses import dataclass

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

NEW_ITEMS_LIVE = 20
"""Items published when the live phase begins, which no training has seen."""


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
            with phases.phase("live"):
                self._live(client, producer)
            with phases.phase("probes"):
                self._probe(client, producer)
        with phases.phase("accounts"):
            self.report.add(**self.chain.settle(self.world.ledger))
        self.report.absent(
            "a synthetic world has users who react, so click rates are measured", "hr_at_10", "ndcg_at_10"
        )

    def _live(self, client: RankingClient, producer: Producer) -> None:
        phases = self.chain.phases
        new_items = self.world.publish_items(NEW_ITEMS_LIVE, phases.now_ms())
        self.chain.publish(new_items, (), phases.now_ms())
        live = Live(world=self.world, client=client, producer=producer, now_ms=phases.now_ms)
        result = live.run(self.options.live_users, self.options.rounds, phases.say)
        self.report.add(
            click_rate={arm: result.click_rate(arm, self.options.seed) for arm in ARMS},
            click_rate_by_round={arm: result.by_round(arm) for arm in ARMS},
            slates_served=len(result.recommend_ms),
            slates_degraded=result.degraded,
            **latency("recommend_ms", result.recommend_ms),
        )

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
