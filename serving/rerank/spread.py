"""Diversity: a greedy order in which an item pays for being like the items just above it.

C candidates, D width of the ALS factors.
"""

import numpy as np

from serving.rerank.config import RerankConfig
from serving.rerank.contenders import Float64s, Int64s, Likeness


def spread_order(value_C: Float64s, likeness: Likeness, config: RerankConfig) -> Int64s:
    """All rows in their order under the penalties; values in standard deviations, -inf last.

    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) with the sum of the likenesses in a sliding
    window in place of the greatest one, so that the penalties of category, creator and ALS cosine add up. A
    determinantal process (Chen et al., NeurIPS 2018) was not taken: its kernel ties the weight of relevance to that of
    diversity, and neither "third of its creator in ten" nor a rule's boost has a meaning in it that can be explained.
    """
    left_C, window = value_C.copy(), config.spread_window
    category, creator = _Shares(likeness.category_C), _Shares(likeness.creator_C)
    factors_CD = likeness.factors_CD if config.similarity_penalty else None
    window_D = np.zeros(0 if factors_CD is None else factors_CD.shape[1], np.float32)
    costs_CD = None if factors_CD is None else np.float32(config.similarity_penalty) * factors_CD
    chosen: list[int] = []
    penalty_C, likeness_C = np.empty_like(value_C), np.empty(len(value_C), np.float32)
    for position in range(min(len(value_C), config.spread_positions)):
        np.add(category.paid_C(), creator.paid_C(), out=penalty_C)
        if factors_CD is not None:
            penalty_C += np.dot(factors_CD, window_D, out=likeness_C)
        row = int(np.subtract(left_C, penalty_C, out=penalty_C).argmax())
        if left_C[row] == -np.inf:
            break
        left_C[row] = -np.inf
        chosen.append(row)
        leaving = chosen[position - window] if position >= window else None
        category.move(row, leaving, config.category_penalty)
        creator.move(row, leaving, config.creator_penalty)
        if costs_CD is not None:
            window_D += costs_CD[row]
            if leaving is not None:
                window_D -= costs_CD[leaving]
    rest_C = np.ones(len(value_C), np.bool_)
    rest_C[chosen] = False
    rest = np.flatnonzero(rest_C)
    return np.concatenate([np.array(chosen, np.int64), rest[np.argsort(-value_C[rest], kind="stable")]])


class _Shares:
    """What an item pays for its code's share of the window. K codes."""

    def __init__(self, code_C: Int64s) -> None:
        self._code_C = code_C
        self._codes: list[int] = code_C.tolist()
        codes = int(code_C.max(initial=0)) + 1
        self._count = [0] * codes
        self._paid_K = np.zeros(codes)

    def paid_C(self) -> Float64s:  # noqa: N802 - shape suffix
        return self._paid_K.take(self._code_C)

    def move(self, entering: int, leaving: int | None, penalty: float) -> None:
        """Slides the window by one item; multiplied anew each time, so that nothing drifts."""
        for row, step in ((entering, 1), (leaving, -1)):
            if row is not None:
                code = self._codes[row]
                self._count[code] += step
                self._paid_K[code] = penalty * self._count[code]
