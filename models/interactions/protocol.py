"""How well a recommender ranks what users went on to take, among sampled negatives or the whole catalogue.

Every test user is one question. With sampled negatives (He et al., WWW 2017) the user's test items are ranked among
the negatives given for them; else among all items but those of the user's training rows. Equal scores are put in a
random order, so that a constant model gets what chance gives. Shapes: Q questions, B of a batch, I items, C candidates,
K ranks, N rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from models.interactions.recommenders import Recommender, popularity
from models.interactions.table import UNKNOWN, Interactions
from models.metrics import bootstrap, hit_rate, ndcg, recall, reciprocal_rank
from models.own_table import TableError

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

BATCH = 512
"""Questions scored at a time."""
BOOTSTRAP_ROUNDS = 200
NEVER = np.float32(-np.inf)


@dataclass(frozen=True, kw_only=True)
class Test:
    """What is asked: each user's relevant items, and the negatives where they are sampled."""

    __test__ = False

    relevant_QI: "sparse.csr_matrix[Any]"
    """1 for each item to find; items that training does not know are in `relevant_Q` alone."""
    relevant_Q: Int64s
    """How many items there were to find."""
    negative_QI: "sparse.csr_matrix[Any] | None"
    """1 for each candidate besides the relevant ones; None for the whole catalogue."""
    user_Q: Int32s
    """Index in the training table, `UNKNOWN` for strangers."""

    def __len__(self) -> int:
        return len(self.user_Q)


def build_test(training: Interactions, tested: Interactions, negatives: Interactions | None) -> Test:
    """The questions of a test table in training's indices and, if any, a table of negatives in the test table's.

    Raises `TableError` when a test user has no negatives, or when a negative is one of the user's test items.
    """
    users, question_N = np.unique(tested.user_N, return_inverse=True)
    items = len(training.item_ids)
    relevant_QI = _marks(question_N, tested.item_N, len(users), items)
    distinct = {(int(q), int(i)) for q, i in zip(question_N, tested.item_N, strict=True) if i == UNKNOWN}
    strangers_Q = np.bincount([q for q, _ in distinct], minlength=len(users)) if distinct else 0
    negative_QI = None if negatives is None else _negatives(negatives, users, relevant_QI)
    return Test(
        relevant_QI=relevant_QI,
        relevant_Q=np.asarray(relevant_QI.getnnz(axis=1) + strangers_Q, np.int64),
        negative_QI=negative_QI,
        user_Q=np.where(users < len(training.user_ids), users, UNKNOWN).astype(np.int32),
    )


def measure(
    recommend: Recommender, training_UI: "sparse.csr_matrix[Any]", test: Test, ranks: Sequence[int], seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Each metric of each question `[Q]`: `hr@k`, `ndcg@k`, `recall@k` and `mrr@k` for each k of `ranks`.

    Users whom training does not know, or knows no items of, are given what is popular.
    """
    deepest = max(ranks)
    found_QK = np.concatenate(list(_found(recommend, training_UI, test, deepest, np.random.default_rng(seed))))
    out: dict[str, npt.NDArray[np.float64]] = {}
    for k in ranks:
        cut_QK = found_QK[:, :k]
        out |= {
            f"hr@{k}": hit_rate(cut_QK),
            f"ndcg@{k}": ndcg(cut_QK, test.relevant_Q),
            f"recall@{k}": recall(cut_QK, test.relevant_Q),
            f"mrr@{k}": reciprocal_rank(cut_QK),
        }
    return out


def summarise(metrics: dict[str, npt.NDArray[np.float64]], seed: int) -> dict[str, Any]:
    """The mean of each metric over the questions, and its 95% bootstrap interval over users under `intervals`."""
    user_Q = np.arange(len(next(iter(metrics.values()))))
    intervals = {}
    for name, value_Q in metrics.items():
        rng = np.random.default_rng(seed)
        found = bootstrap(lambda rows, of=value_Q: float(of[rows].mean()), user_Q, rng, rounds=BOOTSTRAP_ROUNDS)  # type: ignore[misc]
        intervals[name] = [found.low, found.high]
    return {**{name: float(value_Q.mean()) for name, value_Q in metrics.items()}, "intervals": intervals}


def _found(
    recommend: Recommender, training_UI: "sparse.csr_matrix[Any]", test: Test, deepest: int, rng: np.random.Generator
) -> Iterator[Bools]:
    """Whether the item at each rank is relevant `[B, K]`, batch by batch."""
    popular_I = popularity(training_UI)
    items_U = np.diff(training_UI.indptr)
    for first in range(0, len(test), BATCH):
        part = slice(first, min(first + BATCH, len(test)))
        user_B = test.user_Q[part]
        is_told_B = (user_B != UNKNOWN) & (items_U[user_B] > 0)
        score_BI = np.tile(popular_I, (len(user_B), 1))
        if is_told_B.any():
            score_BI[is_told_B] = recommend(user_B[is_told_B])
        relevant_BI = test.relevant_QI[part].toarray() > 0
        score_BI[~_candidates(training_UI, test, part, user_B, relevant_BI)] = NEVER
        yield _relevance_of_the_best(score_BI, relevant_BI, deepest, rng)


def _candidates(
    training_UI: "sparse.csr_matrix[Any]", test: Test, part: slice, user_B: Int32s, relevant_BI: Bools
) -> Bools:
    if test.negative_QI is not None:
        return np.asarray(relevant_BI | (test.negative_QI[part].toarray() > 0), np.bool_)
    known_B = user_B != UNKNOWN
    allowed_BI = np.ones(relevant_BI.shape, np.bool_)
    allowed_BI[known_B] = training_UI[user_B[known_B]].toarray() == 0
    return allowed_BI


def _relevance_of_the_best(score_BI: Float32s, relevant_BI: Bools, deepest: int, rng: np.random.Generator) -> Bools:
    """Ranks by score, equal ones by chance; ranks beyond the candidates are not relevant."""
    with np.errstate(invalid="ignore"):  # no candidate has no spacing
        spacing_BI = np.nan_to_num(np.spacing(np.abs(score_BI)))
    # Less than half of what parts two floats: puts equal scores in a random order and moves no others.
    score_BI = score_BI + rng.random(score_BI.shape) * 0.5 * spacing_BI
    depth = min(deepest, score_BI.shape[1])
    best_BK = np.argpartition(-score_BI, depth - 1, axis=1)[:, :depth]
    order_BK = np.argsort(-np.take_along_axis(score_BI, best_BK, axis=1), axis=1)
    best_BK = np.take_along_axis(best_BK, order_BK, axis=1)
    counts_BK = np.take_along_axis(score_BI, best_BK, axis=1) > NEVER
    out_BK = np.zeros((len(score_BI), deepest), np.bool_)
    out_BK[:, :depth] = np.take_along_axis(relevant_BI, best_BK, axis=1) & counts_BK
    return out_BK


def _marks(row_N: npt.NDArray[Any], item_N: Int32s, rows: int, items: int) -> "sparse.csr_matrix[Any]":
    known_N = item_N != UNKNOWN
    ones = np.ones(int(known_N.sum()), np.float32)
    marks = sparse.csr_matrix((ones, (row_N[known_N], item_N[known_N])), shape=(rows, items))
    marks.data[:] = 1  # a pair that comes twice is one
    return marks


def _negatives(
    negatives: Interactions, users: npt.NDArray[Any], relevant_QI: "sparse.csr_matrix[Any]"
) -> "sparse.csr_matrix[Any]":
    place_N = np.searchsorted(users, negatives.user_N).clip(max=len(users) - 1)
    asked_N = users[place_N] == negatives.user_N
    marks = _marks(place_N[asked_N], negatives.item_N[asked_N], *relevant_QI.shape)
    without = int((marks.getnnz(axis=1) == 0).sum())
    if without:
        raise TableError(f"negatives: {without} test users have none that training knows; give each of them some.")
    if marks.multiply(relevant_QI).nnz:
        raise TableError("negatives: some are test items of the same user; draw negatives that the user never took.")
    return marks
