"""Requests answered by the real pipeline on the tiny bundle, of every kind that the log has to hold.

Item features are drawn at random, so that the ranker's inputs differ; the catalogue has changed since the bundle.
"""

import pickle
from collections.abc import Mapping
from dataclasses import replace
from itertools import count as ticks
from pathlib import Path
from typing import Any

import numpy as np

from features.events import EventType
from features.items import Item
from features.slates import SlateRecord
from features.specs import Entity, features_of
from features.user_state import Interaction, UserState
from models.bundle import Bundle
from serving.answer import Answer
from serving.arms import MILLRACE, POPULAR, RANDOM
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.paging import Scroll
from serving.pipeline import Pipeline, PipelineConfig
from serving.query import ItemRules, Query
from serving.rerank import RerankConfig
from serving.rules import NO_RULES, Rules, read_rules
from serving.slate_draft import draft_of
from serving.slate_record import to_record
from serving.stages import Progress
from serving.users import unknown_user
from serving.view import AlignedFeatures, LiveView
from tests.serving_bundle import START_MS, tiny_items

NOW_MS = START_MS + 60_000
RULES = """
[[pin]]
name = "launch"
item = "song39"
position = 3
[[boost]]
name = "cats"
categories = ["cats"]
add = 0.5
[[boost]]
name = "news"
creators = ["news-1"]
multiply = 1.5
[[block]]
name = "no-sport-zero"
creators = ["sport-0"]
[[versions]]
name = "two-of-one"
items = ["art00", "art01", "cats00"]
"""


def changed_items() -> list[Item]:
    """What the items topic said after the bundle: another category, a withdrawal and new items."""
    first, second, *_ = tiny_items()
    new = [
        replace(first, item_id=f"new{k}", category="fresh" if k % 2 else "cats", creator_id=f"maker-{k}", language="xx")
        for k in range(5)
    ]
    return [replace(first, category="song", duration_ms=1_000), replace(second, available=False), *new]


def live_view(bundle: Bundle, seed: int = 0) -> LiveView:
    """The bundle under the changed catalogue, with features at random."""
    live = Live(ItemSnapshot().finalise_all(NOW_MS))
    live.switch(bundle)
    live.apply_items([item.to_json() for item in changed_items()])
    assert live.view is not None
    rng, view = np.random.default_rng(seed), live.view

    def drawn(entity: Entity, names: int) -> AlignedFeatures:
        values_XF = rng.gamma(0.5, 3.0, (names, len(features_of(entity)))).astype(np.float32)
        return AlignedFeatures(values_XF=values_XF, row_N=np.arange(names))

    table = view.item_table
    return replace(
        view,
        items=drawn(Entity.ITEM, len(table)),
        creators=drawn(Entity.CREATOR, len(table.creators)),
        categories=drawn(Entity.CATEGORY, len(table.categories)),
    )


def user(**changed: Any) -> UserState:
    """A user with a history, some of it of items that nobody knows, and tastes."""
    state = unknown_user("u", NOW_MS)
    rng = np.random.default_rng(1)
    items = ("cats03", "art07", "new1", "nowhere", "art00")
    return replace(
        state,
        features_F=rng.gamma(1.0, 2.0, len(state.features_F)),
        categories=("art", "cats"),
        category_features_KF=rng.gamma(1.0, 2.0, (2, len(state.empty_category_features_F))),
        history=tuple(
            Interaction(
                event_id=f"e{k}",
                event_type=EventType.CLICK if k % 2 else EventType.LIKE,
                event_time_ms=NOW_MS - 1_000 * k,
                user_id="u",
                item_id=item_id,
                category="art",
                creator_id="art-0",
            )
            for k, item_id in enumerate(items)
        ),
        seen={"art02": NOW_MS, "art03": NOW_MS, "new2": NOW_MS},
        hidden=frozenset({"sport05"}),
        newest_event_ms=NOW_MS - 5,
        **changed,
    )


def rules(directory: Path) -> Rules:
    """A rules file with a rule of each kind."""
    file = directory / "rules.toml"
    file.write_text(RULES)
    return read_rules(file)


class Users:
    """One user."""

    def read(self, *_: object) -> UserState:
        return user()


def answered(view: LiveView, query: Query, known: Rules = NO_RULES, **config: Any) -> Answer:
    """The answer of the real pipeline."""
    settings = PipelineConfig(**{"max_candidates": 60, "min_candidates": 40, **config})
    pipeline = Pipeline(users=Users(), slates=None, config=settings, clock_ms=lambda: NOW_MS, rules=lambda: known)
    clock = ticks(step=1e-6)
    progress = Progress(monotonic_s=lambda: next(clock), deadline_s=10.0)
    run = pipeline.rank if query.item_ids is not None else pipeline.similar if query.similar_to else pipeline.recommend
    return run(view, query, progress)


def record_of(answer: Answer, *, full_features: bool = False) -> SlateRecord:
    """The answer's record, by way of another process."""
    return to_record(pickle.loads(pickle.dumps(draft_of(answer, full_features=full_features))))


def query(request_id: str = "r", **changed: Any) -> Query:
    """A request of the user for ten items."""
    return Query(**{"request_id": request_id, "user_id": "u", "count": 10, "device": "phone", **changed})


QUERIES: Mapping[str, dict[str, Any]] = {
    "plain": {"explore": False},
    "explored": {"count": 40},
    "nothing asked": {"count": 0},
    "filtered": {"rules": ItemRules(categories=frozenset({"cats", "fresh"}), block_item_ids=frozenset({"cats01"}))},
    "allowed": {"rules": ItemRules(allow_item_ids=frozenset({"new0", "art05", "art02", "nowhere"}))},
    "everything filtered": {"rules": ItemRules(categories=frozenset({"nowhere"}), allow_item_ids=frozenset({"x"}))},
    "scrolled": {"scroll": Scroll(shown=b"\1\2\3\4" * 3)},
    "popular": {"arm": POPULAR},
    "random": {"arm": RANDOM},
    "experiment": {"arm": replace(MILLRACE, name="e/a", value_weights={"click": 2.0}, rerank=RerankConfig(epsilon=1))},
    "rank": {"item_ids": ("cats03", "new1", "art00", "art01", "nowhere"), "count": 5, "explore": False},
    "rank of nothing": {"item_ids": (), "count": 0, "explore": False},
    "similar": {"similar_to": "cats03", "explore": False},
    "explained": {"explain": True, "count": 25},
}
"""Requests of every kind."""
