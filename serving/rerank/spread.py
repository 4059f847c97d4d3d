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
    category_count = np.zeros(int(likeness.category_C.max(initial=0)) + 1)
    creator_count = np.zeros(int(likeness.creator_C.max(initial=0)) + 1)
    factors_CD = likeness.factors_CD if config.similarity_penalty else None
    chosen: list[int] = []
    for position in range(min(len(value_C), config.spread_positions)):
        penalty_C = (config.category_penalty * category_count)[likeness.category_C]
        penalty_C += (config.creator_penalty * creator_count)[likeness.creator_C]
        if factors_CD is not None and chosen:
            window_D = factors_CD[chosen[-window:]].sum(axis=0)
            penalty_C += factors_CD @ (config.similarity_penalty * window_D)
        row = int(np.argmax(left_C - penalty_C))
        if left_C[row] == -np.inf:
            break
        left_C[row] = -np.inf
        chosen.append(row)
        category_count[likeness.category_C[row]] += 1
        creator_count[likeness.creator_C[row]] += 1
        if position >= window:
            leaving = chosen[position - window]
            category_count[likeness.category_C[leaving]] -= 1
            creator_count[likeness.creator_C[leaving]] -= 1
    rest_C = np.ones(len(value_C), np.bool_)
    rest_C[chosen] = False
    rest = np.flatnonzero(rest_C)
    return np.concatenate([np.array(chosen, np.int64), rest[np.argsort(-value_C[rest], kind="stable")]])
