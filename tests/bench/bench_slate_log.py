"""What logging a slate costs: bytes on Kafka and in the request log, and CPU of the worker and of its scribe.

50,000 items, 500 candidates, 50 returned, features as they look on a busy day, a user with a long history; CPU time of
one thread, so that other work on the machine counts little.
"""

import pickle
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import count as ticks
from pathlib import Path
from time import thread_time

import numpy as np
import onnx
from rich.console import Console

from features.events import EventType
from features.specs import Aggregate, Entity, features_of
from features.user_state import Interaction, UserState
from models.bundle import Bundle
from models.item_table import ItemTable
from models.ranker.calibration import identity
from models.ranker.scorer import Ranker
from models.ranker_inputs import HEADS, RankerLayout
from models.sources import AlsSource, ExplorationSource, PopularSource, TrendingSource
from models.value import DEFAULT_WEIGHTS
from serving.answer import Answer
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.pipeline import Pipeline, PipelineConfig
from serving.query import Query
from serving.slate_draft import draft_of
from serving.slate_record import to_json, to_record
from serving.stages import Progress
from serving.users import unknown_user
from serving.view import AlignedFeatures, LiveView
from tests.bench.bench_slate import CATEGORIES, CREATORS, ITEMS, NOW_MS, WIDTH, catalogue
from tests.bench.report import Row
from tests.serving_bundle import tiny_ranker

CANDIDATES, RETURNED, SEEN, HISTORY = 500, 50, 1_000, 100
RUNS = 60


def run(_: Console) -> list[Row]:
    """The rows."""
    with tempfile.TemporaryDirectory() as directory:
        answer = answered(Path(directory))
    settings = {"items": ITEMS, "candidates": len(answer.item_index_C), "returned": len(answer.rows.row_S)}
    draft, full_draft = draft_of(answer), draft_of(answer, full_features=True)
    sent, record = pickle.dumps(draft), to_json(to_record(draft))
    rows = [
        Row(name="draft_bytes", value=len(sent), unit="bytes", settings=settings),
        Row(name="record_bytes", value=len(record), unit="bytes", settings=settings),
        Row(name="record_deflated_bytes", value=len(zlib.compress(record, 1)), unit="bytes", settings=settings),
    ]
    full = to_json(to_record(full_draft))
    rows += [
        Row(name="full_record_bytes", value=len(full), unit="bytes", settings=settings),
        Row(name="full_record_deflated_bytes", value=len(zlib.compress(full, 1)), unit="bytes", settings=settings),
    ]
    work: dict[str, Callable[[], object]] = {
        "draft_ms": lambda: pickle.dumps(draft_of(answer)),
        "full_draft_ms": lambda: pickle.dumps(draft_of(answer, full_features=True)),
        "record_ms": lambda: to_json(to_record(pickle.loads(sent))),
        "full_record_ms": lambda: to_json(to_record(full_draft)),
        "deflate_ms": lambda: zlib.compress(record, 1),
    }
    return rows + [
        Row(name=f"{name}_p50", value=median_ms(done), unit="ms of CPU", settings=settings)
        for name, done in work.items()
    ]


def median_ms(done: Callable[[], object]) -> float:
    """The median over `RUNS`, after some that are not counted."""
    taken = []
    for _ in range(RUNS + 5):
        started_s = thread_time()
        done()
        taken.append((thread_time() - started_s) * 1000)
    return float(np.median(taken[5:]))


def answered(directory: Path) -> Answer:
    """One answer of the real pipeline."""
    view = live_view(directory)
    config = PipelineConfig(max_candidates=CANDIDATES, min_candidates=CANDIDATES)
    state = busy_user(view.item_table)

    class Users:
        def read(self, *_: object) -> UserState:
            return state

    pipeline = Pipeline(users=Users(), slates=None, config=config, clock_ms=lambda: NOW_MS)
    clock = ticks(step=1e-6)
    query = Query(request_id="f" * 32, user_id="user-000001", count=RETURNED, device="phone")
    return pipeline.recommend(view, query, Progress(monotonic_s=lambda: next(clock), deadline_s=10.0))


def live_view(directory: Path) -> LiveView:
    """The catalogue under a bundle with real sources and a small ranker; features drawn as counts and rates."""
    rng, table = np.random.default_rng(0), catalogue()
    layout = RankerLayout(
        devices=("phone", "tv"), items=ITEMS, categories=CATEGORIES, creators=CREATORS, languages=len(table.languages)
    )
    onnx.save(tiny_ranker(table, layout), str(directory / "ranker.onnx"))
    factors_ID = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    sources = (
        AlsSource(item_factors_ID=factors_ID, regularization=0.1, alpha=10.0),
        PopularSource(score_I=rng.random(ITEMS).astype(np.float32)),
        TrendingSource(),
        ExplorationSource(),
    )
    bundle = Bundle(
        bundle_id="bundle-0123456789ab",
        path=directory,
        manifest={},
        item_table=table,
        sources={source.name: source for source in sources},
        ranker=Ranker.load(directory / "ranker.onnx", layout, identity(len(HEADS))),
        value_weights=DEFAULT_WEIGHTS,
    )
    live = Live(ItemSnapshot().finalise_all(NOW_MS))
    live.switch(bundle)
    assert live.view is not None
    items, creators, categories = (
        drawn(entity, size, rng)
        for entity, size in ((Entity.ITEM, ITEMS), (Entity.CREATOR, CREATORS), (Entity.CATEGORY, CATEGORIES))
    )
    return replace(live.view, items=items, creators=creators, categories=categories)


def drawn(entity: Entity, size: int, rng: np.random.Generator) -> AlignedFeatures:
    """Counts, a third of them 0, and what is no count as a fraction."""
    features = features_of(entity)
    values_NF = rng.poisson(rng.gamma(0.5, 20.0, (size, 1)), (size, len(features))).astype(np.float64)
    for f, feature in enumerate(features):
        if feature.aggregate not in (Aggregate.COUNT, Aggregate.SUM):
            values_NF[:, f] = rng.random(size)
    return AlignedFeatures(values_XF=values_NF.astype(np.float32), row_N=np.arange(size))


def busy_user(table: ItemTable) -> UserState:
    """A user with full history and seen sets and half of the categories."""
    rng = np.random.default_rng(2)
    state = unknown_user("user-000001", NOW_MS)
    items = rng.choice(ITEMS, SEEN, replace=False)
    kinds = (EventType.CLICK, EventType.WATCH, EventType.LIKE)
    history = tuple(
        Interaction(
            event_id=f"event-{k}",
            event_type=kinds[k % 3],
            event_time_ms=NOW_MS - 60_000 * k,
            user_id=state.user_id,
            item_id=table.item_ids[items[k]],
            category="c1",
            creator_id="creator-1",
        )
        for k in range(HISTORY)
    )
    return replace(
        state,
        features_F=rng.poisson(5, len(state.features_F)).astype(np.float64),
        categories=tuple(sorted(f"c{k}" for k in range(CATEGORIES // 2))),
        category_features_KF=rng.poisson(2, (CATEGORIES // 2, len(state.empty_category_features_F))).astype(np.float64),
        history=history,
        seen={table.item_ids[item]: NOW_MS - 60_000 * k for k, item in enumerate(items)},
        newest_event_ms=NOW_MS,
    )
