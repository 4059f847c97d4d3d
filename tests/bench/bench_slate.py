"""What choosing costs of a `Recommend`: filters, page tokens, rerank and Similar's search, over 50,000 items.

CPU time of one thread, so that other work on the machine counts little; 500 candidates, 50 returned, 1,000 items seen.
"""

from collections.abc import Callable
from dataclasses import replace
from time import thread_time

import numpy as np
from rich.console import Console

from features.items import Item
from models.item_table import ItemTable, train_item_table
from models.sources.als import AlsSource
from models.sources.base import RetrievalRequest
from serving.filters import exclusions
from serving.paging import FIRST_PAGE, ItemHashes, read_token
from serving.query import ItemRules
from serving.rerank import Contenders, Likeness, RerankConfig, draw_rng, rerank
from serving.users import unknown_user
from tests.bench.report import Row

ITEMS, CANDIDATES, RETURNED, SEEN, WIDTH = 50_000, 500, 50, 1_000, 64
CATEGORIES, CREATORS = 20, 2_000
RUNS = 200
NOW_MS = 1_760_000_000_000


def run(_: Console) -> list[Row]:
    """The rows."""
    rng = np.random.default_rng(0)
    table = catalogue()
    als = AlsSource(item_factors_ID=rng.normal(size=(ITEMS, WIDTH)).astype(np.float32), alpha=1.0, regularization=0.1)
    state = replace(unknown_user("u", NOW_MS), seen={table.item_ids[7 * k]: NOW_MS - k for k in range(SEEN)})
    rules = ItemRules(categories=frozenset({"c1", "c2"}), languages=frozenset({"en"}), max_age_ms=10**9)
    scroll = read_token(FIRST_PAGE.next_token("u", table.item_ids[:1_900]), "u")
    hashes, config = ItemHashes(), RerankConfig()
    asked = _request(table, rng)
    some = contenders(table, als, rng)
    work: dict[str, Callable[[int], object]] = {
        "filter_ms": lambda _: exclusions(table, state, ItemRules()).eligible,
        "filter_narrow_ms": lambda _: exclusions(table, state, rules).eligible,
        "page_mask_ms": lambda _: hashes.shown(table.item_ids, scroll),
        "next_token_ms": lambda _: scroll.next_token("u", table.item_ids[2_000:2_050]),
        "rerank_ms": lambda k: rerank(some, RETURNED, config, draw_rng(str(k))),
        "rerank_no_similarity_ms": lambda k: rerank(some, RETURNED, _without(config), draw_rng(str(k))),
        "rerank_no_exploration_ms": lambda _: rerank(some, RETURNED, config, None),
        "rerank_explained_ms": lambda k: rerank(some, RETURNED, config, draw_rng(str(k)), explain=True),
        "similar_als_ms": lambda _: als.similar(asked, 7, 100),
    }
    settings = {"items": ITEMS, "candidates": CANDIDATES, "returned": RETURNED, "seen": SEEN, "width": WIDTH}
    return [
        Row(name=f"{name}_p50", value=median_ms(done), unit="ms of CPU", settings=settings)
        for name, done in work.items()
    ]


def median_ms(done: Callable[[int], object]) -> float:
    """The median over `RUNS`, after some that are not counted."""
    taken = []
    for k in range(RUNS + 10):
        started_s = thread_time()
        done(k)
        taken.append((thread_time() - started_s) * 1000)
    return float(np.median(taken[10:]))


def catalogue() -> ItemTable:
    """Items of random creators, an hour's worth published each hour."""
    creators = np.random.default_rng(1).integers(0, CREATORS, ITEMS)
    return train_item_table(
        Item(
            item_id=f"item-{k:06d}",
            category=f"c{k % CATEGORIES}",
            creator_id=f"creator-{creators[k]}",
            language="en" if k % 3 else "pt",
            duration_ms=60_000,
            published_at_ms=NOW_MS - 60_000 * k,
        )
        for k in range(ITEMS)
    )


def contenders(table: ItemTable, als: AlsSource, rng: np.random.Generator) -> Contenders:
    """Candidates whose scores look like click chances, 30 of them to be explored."""
    item_index_C = rng.choice(ITEMS, CANDIDATES, replace=False).astype(np.int32)
    score_C = rng.normal(0.08, 0.03, CANDIDATES)
    return Contenders(
        score_C=score_C,
        likeness=Likeness(
            category_C=table.category_code[item_index_C].astype(np.int64),
            creator_C=table.creator_code[item_index_C].astype(np.int64),
            factors_CD=als.unit_factors(item_index_C),
        ),
        age_ms_C=NOW_MS - table.published_at_ms[item_index_C],
        explorable_C=np.arange(CANDIDATES) >= CANDIDATES - 30,
        click_probability_C=np.clip(score_C, 0, 1),
        clicks_C=rng.integers(0, 3, CANDIDATES).astype(np.float64),
        impressions_C=rng.integers(0, 40, CANDIDATES).astype(np.float64),
    )


def _without(config: RerankConfig) -> RerankConfig:
    return replace(config, similarity_penalty=0.0)


def _request(table: ItemTable, rng: np.random.Generator) -> RetrievalRequest:
    none = np.empty(0, np.int32)
    return RetrievalRequest(
        instant_ms=NOW_MS,
        item_table=table,
        history_index_L=none,
        history_weight_L=none.astype(np.float32),
        history_age_ms_L=none.astype(np.int64),
        excluded_I=np.zeros(len(table), np.bool_),
        rng=rng,
    )
