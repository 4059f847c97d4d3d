"""Diversity: a greedy order in which an item pays for being like the items just above it.

C candidates, D width of the ALS factors, K categories or creators, S positions that are spread.
"""

import numpy as np
from numba import float32, float64, int64

from features.compiled import compiled, given, inlined
from serving.rerank.config import RerankConfig
from serving.rerank.contenders import Float32s, Float64s, Int64s, Likeness


def spread_order(value_C: Float64s, likeness: Likeness, config: RerankConfig) -> Int64s:
    """All rows in their order under the penalties; values in standard deviations, -inf last.

    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) with the sum of the likenesses in a sliding
    window in place of the greatest one, so that the penalties of category, creator and ALS cosine add up. A
    determinantal process (Chen et al., NeurIPS 2018) was not taken: its kernel ties the weight of relevance to that of
    diversity, and neither "third of its creator in ten" nor a rule's boost has a meaning in it that can be explained.
    """
    factors_CD = likeness.factors_CD
    if factors_CD is None or not config.similarity_penalty:
        factors_CD = np.zeros((len(value_C), 0), np.float32)
    order_C = np.argsort(-value_C, kind="stable")
    chosen_S = np.empty(min(len(value_C), config.spread_positions), np.int64)
    filled = _choose(
        value_C,
        order_C,
        likeness.category_C,
        likeness.creator_C,
        np.ascontiguousarray(factors_CD),
        config.category_penalty,
        config.creator_penalty,
        config.similarity_penalty,
        config.spread_window,
        chosen_S,
    )
    chosen = chosen_S[:filled]
    left_C = np.ones(len(value_C), np.bool_)
    left_C[chosen] = False
    return np.concatenate([chosen, order_C[left_C[order_C]]])


@inlined
def _count(
    row: int,
    sign: int,
    category_C: Int64s,
    creator_C: Int64s,
    factors_D: Float32s,
    category_K: Int64s,
    creator_K: Int64s,
    window_D: Float32s,
) -> None:
    """An item enters the window, or leaves it."""
    category_K[category_C[row]] += sign
    creator_K[creator_C[row]] += sign
    window_D += sign * factors_D


@compiled(
    given(float64, 1),
    *[given(int64, 1)] * 3,
    given(float32, 2, contiguous=True),
    *[float64] * 2,
    float32,
    int64,
    int64[::1],
    returns=int64,
    any_order=True,
)
def _choose(
    value_C: Float64s,
    order_C: Int64s,
    category_C: Int64s,
    creator_C: Int64s,
    factors_CD: Float32s,
    category_penalty: float,
    creator_penalty: float,
    similarity_penalty: float,
    spread_window: int,
    chosen_S: Int64s,
) -> int:
    """Fills the positions one by one; returns how many, which are fewer where only -inf is left.

    Candidates are looked at from the greatest value on, and only while one might still be the best: penalties are never
    below 0, and likeness to the window, of factors of length 1, never below minus the window's length.
    """
    candidates, width = factors_CD.shape
    if not len(chosen_S):
        return 0
    is_left_C = np.ones(candidates, np.bool_)
    # How often each is in the window: counted, so that nothing drifts.
    category_K, creator_K = np.zeros(category_C.max() + 1, np.int64), np.zeros(creator_C.max() + 1, np.int64)
    window_D = np.zeros(width, np.float32)
    first = 0
    for position in range(len(chosen_S)):
        best, best_value = -1, -np.inf
        gain = 1.01 * similarity_penalty * min(position, spread_window)
        for place in range(first, candidates):
            c = order_C[place]
            if value_C[c] + gain < best_value:
                break
            if not is_left_C[c]:
                first += place == first
                continue
            likeness = float32(0)
            for d in range(width):
                likeness += factors_CD[c, d] * window_D[d]
            shares = category_penalty * category_K[category_C[c]] + creator_penalty * creator_K[creator_C[c]]
            value = value_C[c] - (shares + likeness)
            if value > best_value or (value == best_value and c < best):
                best, best_value = c, value
        if best < 0:
            return position
        is_left_C[best], chosen_S[position] = False, best
        _count(best, 1, category_C, creator_C, similarity_penalty * factors_CD[best], category_K, creator_K, window_D)
        if position >= spread_window:
            row = chosen_S[position - spread_window]
            _count(
                row, -1, category_C, creator_C, similarity_penalty * factors_CD[row], category_K, creator_K, window_D
            )
    return len(chosen_S)
