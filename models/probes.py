"""A bundle put to made-up requests: whether every source answers, and how long its ranker takes."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from features.specs import Entity, features_of
from models.bundle import Bundle
from models.history import UserHistory
from models.ranker_inputs import RankerInputs, assemble_request
from models.sources import RetrievalRequest

PROBE_HISTORY = 5
PROBE_RUNS = 15
"""Timed runs, of which the median counts, so that other work on the machine does not decide."""
WARM_UPS = 3


def empty_sources(bundle: Bundle) -> list[str]:
    """The sources without a candidate for a user who liked popular items, follows everyone, while all trends."""
    table = bundle.item_table
    request = RetrievalRequest(
        instant_ms=_instant_ms(bundle),
        item_table=table,
        history_index_L=np.empty(0, np.int32),
        history_weight_L=np.empty(0, np.float32),
        history_age_ms_L=np.empty(0, np.int64),
        excluded_I=np.zeros(len(table), np.bool_),
        rng=np.random.default_rng(0),
        followed_creators=frozenset(table.creators),
        trending_score_I=np.ones(len(table), np.float32),
    )
    popular = bundle.sources["popular"].candidates(request, PROBE_HISTORY).item_index
    asked = replace(
        request,
        history_index_L=popular,
        history_weight_L=np.ones(len(popular), np.float32),
        history_age_ms_L=np.zeros(len(popular), np.int64),
    )
    return [name for name, source in bundle.sources.items() if not len(source.candidates(asked, 10))]


def probe_inputs(bundle: Bundle, candidates: int) -> RankerInputs:
    """One request as the service assembles it: a user with a full history, and so many candidates.

    A catalogue that has fewer items gives some of them again.
    """
    table, layout = bundle.item_table, bundle.ranker.layout
    width = {entity: len(features_of(entity)) for entity in Entity}
    instant_ms = _instant_ms(bundle)
    items_L = np.arange(min(layout.history_length, len(table)), dtype=np.int32)
    history = UserHistory(
        item_index_L=items_L,
        weight_L=np.ones(len(items_L), np.float32),
        time_ms_L=np.full(len(items_L), instant_ms, np.int64),
    )
    return assemble_request(
        layout=layout,
        item_table=table,
        item_index_C=np.resize(np.arange(len(table), dtype=np.int32), candidates),
        instant_ms=instant_ms,
        user_features_F=np.ones(width[Entity.USER]),
        user_category_CF=np.ones((candidates, width[Entity.USER_CATEGORY])),
        item_CF=np.ones((candidates, width[Entity.ITEM])),
        creator_CF=np.ones((candidates, width[Entity.CREATOR])),
        category_CF=np.ones((candidates, width[Entity.CATEGORY])),
        history=history,
        device=None,
    )


def scoring_ms(bundle: Bundle, candidates: int, clock: Callable[[], float] = time.thread_time) -> float:
    """The median CPU time of scoring one request on one thread, in milliseconds.

    Load the bundle with one thread, so that ONNX Runtime computes in the calling one. CPU time does not count what
    other programs take of the machine; by the wall clock the same ranker took 3.5 ms or 30, as the load was.
    """
    inputs = probe_inputs(bundle, candidates)
    for _ in range(WARM_UPS):
        bundle.ranker.score(inputs)
    seconds = []
    for _ in range(PROBE_RUNS):
        started = clock()
        bundle.ranker.score(inputs)
        seconds.append(clock() - started)
    return statistics.median(seconds) * 1_000


def unscored(bundle: Bundle, candidates: int) -> int:
    """How many of a probe request's candidates get a score that is not finite."""
    scored = bundle.ranker.score(probe_inputs(bundle, candidates))
    return int((~np.isfinite(np.stack(list(scored.values())))).any(axis=0).sum())


def _instant_ms(bundle: Bundle) -> int:
    return int(bundle.item_table.published_at_ms.max(initial=0)) + 1
