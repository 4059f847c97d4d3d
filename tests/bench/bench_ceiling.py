"""How far anybody could come in the demo's first live phase: the share of the gap between the popular slate and the
oracle's that a reader reaches who knows all but the users' tastes (`streaming.world.knower`), in two worlds.

It needs no stack. Beside it stands what `millrace demo` reports of Millrace, on the same users and rounds.
"""

from rich.console import Console

from infra.demo import SLATE_ITEMS
from infra.demo.live import LiveResult, Outcome
from infra.demo.options import DemoOptions
from streaming.world import Reaction, World, WorldParameters
from streaming.world.knower import PARTICLES, Knower
from tests.bench.report import Row

SEEDS = (7, 11)
NOW_MS = 1_764_460_800_000
OPTIONS = DemoOptions()


def run(console: Console) -> list[Row]:
    """The rows: the share and the ends of its 95% interval."""
    rows = []
    for seed in SEEDS:
        settings = {"seed": seed, "users": OPTIONS.live_users, "rounds": OPTIONS.rounds, "particles": PARTICLES}
        for name, share in lived(World(WorldParameters(seed=seed), now_ms=NOW_MS), console).gap_shares(seed).items():
            for end, value in (share or {}).items():
                figure = Row(name=f"seed {seed}: {name} {end}", value=value, unit="of the gap", settings=settings)
                rows.append(figure)
    return rows


def lived(world: World, console: Console) -> LiveResult:
    """The first live phase with the knower in Millrace's place."""
    result = LiveResult()
    arms = ("millrace", "popular", "random", "oracle")
    rounds: dict[str, list[list[Outcome]]] = {arm: [[] for _ in range(OPTIONS.rounds)] for arm in arms}
    profiles = world.live_users(OPTIONS.live_users)
    choose = {"popular": world.popular_slate, "random": world.random_slate, "oracle": world.oracle_slate}
    for number, profile in enumerate(profiles, start=1):
        clones = {arm: world.clone_user(profile.user_id, arm) for arm in arms}
        knower, acts = Knower(world, clones["millrace"]), 0
        for turn in range(OPTIONS.rounds):
            newcomer_acts = acts if profile.is_new else -1
            reaction = knower.live(SLATE_ITEMS, NOW_MS)
            acts += reaction.acts
            rounds["millrace"][turn].append(_outcome(reaction, newcomer_acts))
            for arm, of_arm in choose.items():
                slate = of_arm(clones[arm], SLATE_ITEMS, NOW_MS)
                rounds[arm][turn].append(_outcome(world.react(clones[arm], slate, arm, NOW_MS), newcomer_acts))
        if number % 50 == 0:
            console.print(f"seed {world.parameters.seed}: {number} of {len(profiles)} users have lived")
    result.outcomes = rounds
    return result


def _outcome(reaction: Reaction, newcomer_acts: int) -> Outcome:
    return Outcome((), reaction.clicks, reaction.impressions, reaction.watch_ms, 0.0, newcomer_acts)
