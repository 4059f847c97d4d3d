"""What each setting of the rerank stage costs in clicks, and how varied it makes slates: the demo's users, store and
champion, by the simulation's truth. Run `make demo` first.

One slate of each live user is answered in this process and nobody sees it, so what it would get is the sum of its true
click probabilities, without the noise of clicks. `share` is how far that is from the popular slate towards the
oracle's, whose users have lived as many rounds on those slates as the demo's have on Millrace's.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import numpy.typing as npt
from rich.console import Console

from features.backends import Backend, open_backend
from infra.demo import SLATE_ITEMS
from infra.demo.options import DemoOptions
from infra.demo.run import REPORT_DIR
from models.bundle import Bundle, BundleError, champion_id, loaded
from serving.answer import Answer
from serving.arms import MILLRACE, Arm
from serving.pipeline import Pipeline, PipelineConfig
from serving.query import Query
from serving.rerank import RerankConfig
from serving.stages import Progress
from serving.users import UserReader
from serving.view import LiveView
from streaming.world import UserClone, World, WorldParameters
from tests.bench.report import BenchError, Row
from tests.bench.serving_assembly import view_of

STACK = REPORT_DIR / "stack"
PATIENT = PipelineConfig(hydrate_ms=10_000.0)
"""No stage falls back: what is measured is the order."""
DEADLINE_S = 60.0
NOTHING = RerankConfig(
    language_penalty=0, category_penalty=0, creator_penalty=0, similarity_penalty=0, fresh_bonus=0, epsilon=0
)
TAKING = ("language_penalty", "category_penalty", "creator_penalty", "similarity_penalty", "fresh_bonus", "epsilon")

Choose = Callable[[Answer, UserClone], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What a demo has left, and the world that it was of."""

    world: World
    backend: Backend
    view: LiveView
    clones: list[UserClone]
    """The live users, who have seen what the store says."""
    now_ms: int
    seed: int
    rounds: int
    """How many slates each of them has asked for."""

    def shown(self, arm: Arm, choose: Choose) -> list[Sequence[str]]:
        """One slate of each live user."""
        users = UserReader(lambda: open_backend(str(STACK / "online-store.db")), perf_counter)
        pipeline = Pipeline(users=users, slates=None, config=PATIENT, clock_ms=lambda: self.now_ms)
        slates = []
        for number, clone in enumerate(self.clones):
            query = Query(
                request_id=f"{number:032x}",
                user_id=clone.profile.user_id,
                device=clone.profile.device,
                language=clone.profile.language,
                count=SLATE_ITEMS,
                arm=arm,
            )
            progress = Progress(monotonic_s=perf_counter, deadline_s=perf_counter() + DEADLINE_S)
            slates.append(choose(pipeline.recommend(self.view, query, progress), clone))
        users.close()
        return slates

    def clicks(self, slates: Iterable[Sequence[str]]) -> float:
        """Expected clicks a slate."""
        pairs = zip(self.clones, slates, strict=True)
        return float(np.mean([self.world.expected_clicks(clone, slate, self.now_ms) for clone, slate in pairs]))

    def bound(self, choose: Callable[[UserClone, int, int], list[str]]) -> float:
        """Expected clicks of a slate chosen by the truth, after as many rounds of such slates."""
        found = []
        for each in self.clones:
            clone = self.world.clone_user(each.profile.user_id, "bound")
            for _ in range(self.rounds):
                self.world.react(clone, choose(clone, SLATE_ITEMS, self.now_ms), "bound", self.now_ms)
            slate = choose(clone, SLATE_ITEMS, self.now_ms)
            found.append(self.world.expected_clicks(clone, slate, self.now_ms))
        return float(np.mean(found))


def run(_: Console) -> list[Row]:
    """The rows. Raises `BenchError` where no demo of the synthetic world has left its stack."""
    with TemporaryDirectory() as directory:
        demo = _demo(Path(directory))
        popular, oracle = demo.bound(demo.world.popular_slate), demo.bound(demo.world.oracle_slate)
        rows = []
        for name, (arm, choose) in _settings(demo).items():
            slates = demo.shown(arm, choose)
            values = {
                "share": ((demo.clicks(slates) - popular) / (oracle - popular), "of the gap"),
                **_variety(demo, slates),
            }
            settings = {"seed": demo.seed, "bundle": demo.view.bundle.bundle_id, "users": len(demo.clones)}
            rows += [Row(name=f"{name}: {key}", value=v, unit=u, settings=settings) for key, (v, u) in values.items()]
        demo.backend.close()
    return rows


def _settings(demo: Demo) -> dict[str, tuple[Arm, Choose]]:
    alone = {name: replace(NOTHING, **{name: getattr(RerankConfig(), name)}) for name in TAKING}
    configs = {"default": RerankConfig(), "nothing": NOTHING, **{f"{name} alone": got for name, got in alone.items()}}
    settings = {name: (replace(MILLRACE, rerank=config), _as_answered) for name, config in configs.items()}
    best = partial(_best_of_candidates, demo)
    return {**settings, "truth among the candidates": (MILLRACE, best)}


def _as_answered(answer: Answer, _: UserClone) -> Sequence[str]:
    return [item.item_id for item in answer.items]


def _best_of_candidates(demo: Demo, answer: Answer, clone: UserClone) -> Sequence[str]:
    item_ids = answer.view.item_table.item_ids
    candidates = [item_ids[index] for index in answer.item_index_C.tolist()]
    return demo.world.oracle_slate(clone, SLATE_ITEMS, demo.now_ms, candidates)


def _variety(demo: Demo, slates: Iterable[Sequence[str]]) -> dict[str, tuple[float, str]]:
    table = demo.view.item_table
    index = [table.indices(slate) for slate in slates]

    def distinct(code_I: npt.NDArray[np.int32]) -> float:
        return float(np.mean([len(np.unique(code_I[index_P])) for index_P in index]))

    counted = {"categories": distinct(table.category_code), "creators": distinct(table.creator_code)}
    return {name: (value, "a slate") for name, value in counted.items()}


def _demo(directory: Path) -> Demo:
    try:
        report = json.loads((REPORT_DIR / "report.json").read_text())
        bundle = loaded(STACK / "bundles", champion_id(STACK / "bundles") or "none")
    except (OSError, ValueError, BundleError) as error:
        raise BenchError(f"no demo is left in {REPORT_DIR} ({error}); run `make demo` first.") from error
    if report["data"] != "world":
        raise BenchError("the last demo was of MovieLens, whose truth nobody knows; run `make demo` first.")
    world = _world_of(bundle, report["seed"])
    now_ms = world.now_ms + round(sum(report["seconds"].values()) * 1000)
    backend = open_backend(str(STACK / "online-store.db"))
    clones = [world.clone_user(profile.user_id, "rerank") for profile in world.live_users(DemoOptions().live_users)]
    number_of = {item.item_id: number for number, item in enumerate(world.items())}
    for clone in clones:
        seen = backend.read_user(clone.profile.user_id, now_ms).seen
        clone.seen.update(number_of[item_id] for item_id in seen if item_id in number_of)
    return Demo(
        world=world,
        backend=backend,
        view=view_of(bundle, backend, now_ms, directory),
        clones=clones,
        now_ms=now_ms,
        seed=report["seed"],
        rounds=DemoOptions().rounds * len(report["closed_loop"]),
    )


def _world_of(bundle: Bundle, seed: int) -> World:
    """The demo's world, whose instant its items' publication tells."""
    parameters = WorldParameters(seed=seed)
    published_ms = dict(zip(bundle.item_table.item_ids, bundle.item_table.published_at_ms.tolist(), strict=True))
    guess = World(parameters, now_ms=max(published_ms.values()))
    later_ms = {published_ms.get(item.item_id, 0) - item.published_at_ms for item in guess.items()}
    if len(later_ms) != 1:
        raise BenchError("the last demo was not of the default size; run `make demo` first.")
    world = World(parameters, now_ms=guess.now_ms + later_ms.pop())
    # A bundle that was trained again knows what was published live, all of it at once.
    live_ms = [at_ms for at_ms in published_ms.values() if at_ms > world.now_ms]
    world.publish_items(len(live_ms), max(live_ms, default=world.now_ms))
    return world
