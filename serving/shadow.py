"""A challenger in the shadow: it scores what the champion has answered, after the answer, and nobody sees it.

C candidates.
"""

import logging
import threading
from collections.abc import Callable
from queue import Empty, Full, Queue
from time import perf_counter

import numpy as np
import numpy.typing as npt

from models.history import user_history
from models.item_table import UNKNOWN
from serving import priority
from serving.answer import Answer
from serving.metrics import Metrics
from serving.score import score
from serving.view import LiveView

_log = logging.getLogger(__name__)

Float64s = npt.NDArray[np.float64]

MAX_QUEUED = 8
"""Answers that wait for the challenger; each holds its request's arrays."""
QUIET_WITHIN_S = 0.1
"""How long an answer waits for a moment without requests; then the service is too busy for it."""
LOOK_EVERY_S = 0.002


class ShadowScorer:
    """Scores sampled answers of the champion by the challenger of the experiments, while no request is under way.

    So an answer has gone before its candidates are scored again. `shadow_total` counts what was scored, skipped
    because the service was busy, and failed; histograms keep how the two agree, and the log has each pair.
    """

    def __init__(self, metrics: Metrics, busy: Callable[[], bool]) -> None:
        """`busy` says whether requests are under way."""
        self._metrics = metrics
        self._busy = busy
        self._queue: Queue[tuple[Answer, LiveView]] = Queue(MAX_QUEUED)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, answer: Answer) -> None:
        """Takes a slate that the champion has scored by its own weights, if the draw falls on it."""
        shadow = answer.view.experiments.shadow
        if shadow is None or not _is_the_champions(answer) or not shadow.takes(answer.query.request_id):
            return
        challenger = answer.view.beside.get(shadow.bundle_id)
        if challenger is None:
            return
        try:
            self._queue.put_nowait((answer, challenger))
        except Full:
            self._metrics.shadow.labels("skipped").inc()

    def close(self) -> None:
        """Ends the thread; what waits is not scored."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        priority.lower(priority.LOWEST)
        while not self._stop.is_set():
            try:
                answer, challenger = self._queue.get(timeout=0.1)
            except Empty:
                continue
            if not self._quiet():
                self._metrics.shadow.labels("skipped").inc()
                continue
            try:
                self._score(answer, challenger)
            except Exception:  # noqa: BLE001 - a challenger that fails is counted and harms nobody
                self._metrics.shadow.labels("failed").inc()
                _log.exception("the challenger failed", extra={"request_id": answer.query.request_id})

    def _quiet(self) -> bool:
        until_s = perf_counter() + QUIET_WITHIN_S
        while self._busy():
            if perf_counter() > until_s or self._stop.wait(LOOK_EVERY_S):
                return False
        return True

    def _score(self, answer: Answer, challenger: LiveView) -> None:
        started_s = perf_counter()
        champion_C, challenger_C = challenged(answer, challenger)
        seconds = perf_counter() - started_s
        if not np.isfinite(challenger_C).all():
            raise ValueError(f"{int((~np.isfinite(challenger_C)).sum())} of the challenger's scores are not finite")
        correlation = rank_correlation(champion_C, challenger_C)
        overlap = top_overlap(champion_C, challenger_C, len(answer.rows.row_S))
        self._metrics.shadow_seconds.observe(seconds)
        for histogram, value in (
            (self._metrics.shadow_rank_correlation, correlation),
            (self._metrics.shadow_top_overlap, overlap),
        ):
            if value is not None:
                histogram.observe(value)
        self._metrics.shadow.labels("scored").inc()
        _log.info(
            "shadow: %s agrees with %s by %s, top overlap %s, in %.1f ms",
            challenger.bundle.bundle_id,
            answer.view.bundle.bundle_id,
            correlation,
            overlap,
            seconds * 1000,
            extra={"request_id": answer.query.request_id},
        )


def _is_the_champions(answer: Answer) -> bool:
    own = answer.arm.value_weights == answer.view.bundle.value_weights
    return answer.query.item_ids is None and answer.scored.inputs is not None and own


def challenged(answer: Answer, challenger: LiveView) -> tuple[Float64s, Float64s]:
    """The answer's scores `[C]` and the challenger's of the same candidates, by its own weights.

    Candidates that the challenger's catalogue does not know are left out.
    """
    item_index_C = challenger.item_table.indices([answer.item_id(row) for row in range(len(answer.item_index_C))])
    known_C = item_index_C != UNKNOWN
    history = user_history(answer.state.history, challenger.item_table)
    scored = score(challenger, answer.state, history, item_index_C[known_C], answer.query.device)
    return answer.scored.score_C[known_C], scored.score_C


def rank_correlation(a_C: Float64s, b_C: Float64s) -> float | None:
    """Spearman's rho of two scores of the same candidates, ties at their mean rank; None where one is constant."""
    rank_a_C, rank_b_C = _ranks(a_C), _ranks(b_C)
    if len(a_C) < 2 or np.ptp(rank_a_C) == 0 or np.ptp(rank_b_C) == 0:
        return None
    return float(np.corrcoef(rank_a_C, rank_b_C)[0, 1])


def top_overlap(a_C: Float64s, b_C: Float64s, k: int) -> float | None:
    """The share of the best k by one score that are among the best k by the other; None without candidates."""
    k = min(k, len(a_C))
    if k == 0:
        return None
    best_a, best_b = (np.argsort(-score_C, kind="stable")[:k] for score_C in (a_C, b_C))
    return len(np.intersect1d(best_a, best_b)) / k


def _ranks(value_C: Float64s) -> Float64s:
    """Ascending ranks from 1, equal values at the mean of theirs."""
    _, group_C, size_G = np.unique(value_C, return_inverse=True, return_counts=True)
    last_G = np.cumsum(size_G)
    rank_C: Float64s = (last_G - (size_G - 1) / 2)[group_C]
    return rank_C
