"""From scores to a slate: spread over categories and creators, freshness, and exploration slots with propensities.

C candidates, S positions of the slate.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.names import MS_PER_DAY

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class RerankConfig:
    """Penalties and bonuses are in standard deviations of the candidates' scores."""

    category_penalty: float = 0.1
    """Taken for each item of the same category among the last `spread_window` positions."""
    creator_penalty: float = 0.25
    """The same for the creator."""
    spread_window: int = 10
    spread_positions: int = 50
    """Positions beyond follow the score alone."""
    fresh_bonus: float = 0.1
    """Given to an item published just now, halving each `fresh_half_life_ms`."""
    fresh_half_life_ms: int = 2 * MS_PER_DAY
    epsilon: float = 0.5
    """Chance that an exploration slot draws from the exploration candidates instead of taking the next best."""
    explore_every: int = 10
    """One exploration slot in each full block of so many positions."""
    explore_offset: int = 6
    """Where in its block the slot lies, from 0: read often enough to learn, low enough to cost little."""

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1 or not 0 <= self.explore_offset < self.explore_every:
            raise ValueError(
                f"rerank: got epsilon={self.epsilon}, explore_offset={self.explore_offset}, "
                f"explore_every={self.explore_every}; allowed: epsilon in [0, 1], 0 <= offset < every."
            )


@dataclass(frozen=True, kw_only=True)
class Move:
    """One step of the rerank stage that changed where a candidate stood; positions from 0."""

    row: int
    step: str
    from_position: int
    to_position: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RankedRows:
    """A slate as rows of the candidates."""

    row_S: Int64s
    propensity_S: Float64s
    """Probability of this item at this position given those above and the candidates."""
    explored_S: Bools
    moves: tuple[Move, ...] = ()
    """What moved the items of the slate, in the order of the steps; empty unless it was asked for."""


def by_score(score_C: Float64s, count: int) -> RankedRows:
    """The best `count` by score; ties and non-finite scores keep the candidates' order, the latter last."""
    sunk_C = np.where(np.isfinite(score_C), score_C, -np.inf)
    row_S = np.argsort(-sunk_C, kind="stable")[:count]
    return RankedRows(row_S=row_S, propensity_S=np.ones(len(row_S)), explored_S=np.zeros(len(row_S), np.bool_))


def rerank(
    *,
    score_C: Float64s,
    category_C: Int64s,
    creator_C: Int64s,
    age_ms_C: Int64s,
    explorable_C: Bools,
    count: int,
    config: RerankConfig,
    rng: np.random.Generator | None,
) -> RankedRows:
    """The slate of `count` candidates, fewer if there are fewer. Without an `rng` nothing is explored.

    1. Each candidate's score gains its freshness bonus; positions are filled greedily by what is left of it after
       the spread penalties (maximal marginal relevance: Carbonell and Goldstein, SIGIR 1998). Non-finite scores
       come last.
    2. At each exploration slot, with chance epsilon, a draw among the explorable candidates beyond the slate takes
       the position, by the softmax of their scores; the rest move down by one. Given the items above it, every
       other position is certain, so its propensity is 1.
    """
    scale = score_scale(score_C)
    fresh_C = config.fresh_bonus * np.exp2(-np.maximum(age_ms_C, 0) / config.fresh_half_life_ms)
    base_C = np.where(np.isfinite(score_C), score_C + scale * fresh_C, -np.inf)
    order_S = spread_order(base_C, category_C, creator_C, scale, min(count, len(score_C)), config)
    slots = exploration_slots(len(order_S), config) if rng is not None else []
    if rng is None or not slots:
        return RankedRows(
            row_S=order_S, propensity_S=np.ones(len(order_S)), explored_S=np.zeros(len(order_S), np.bool_)
        )
    return _explored(order_S, slots, base_C / scale, explorable_C, config.epsilon, rng)


def score_scale(score_C: Float64s) -> float:
    """Standard deviation of the finite scores; 1 where they do not differ."""
    finite = score_C[np.isfinite(score_C)]
    scale = float(finite.std()) if finite.size else 0.0
    return scale if scale > 0 else 1.0


def spread_order(
    base_C: Float64s, category_C: Int64s, creator_C: Int64s, scale: float, count: int, config: RerankConfig
) -> Int64s:
    """Greedy order of `count` candidates under the spread penalties."""
    left_C = base_C.copy()
    category_count = np.zeros(int(category_C.max(initial=0)) + 1)
    creator_count = np.zeros(int(creator_C.max(initial=0)) + 1)
    chosen: list[int] = []
    for _ in range(min(count, config.spread_positions)):
        penalty_C = config.category_penalty * category_count[category_C]
        penalty_C += config.creator_penalty * creator_count[creator_C]
        row = int(np.argmax(left_C - scale * penalty_C))
        if left_C[row] == -np.inf:
            break
        left_C[row] = -np.inf
        chosen.append(row)
        category_count[category_C[row]] += 1
        creator_count[creator_C[row]] += 1
        if len(chosen) > config.spread_window:
            leaving = chosen[-config.spread_window - 1]
            category_count[category_C[leaving]] -= 1
            creator_count[creator_C[leaving]] -= 1
    rest = np.setdiff1d(np.arange(len(base_C)), chosen)
    tail = rest[np.argsort(-base_C[rest], kind="stable")]
    return np.concatenate([np.array(chosen, np.int64), tail])[:count]


def exploration_slots(count: int, config: RerankConfig) -> list[int]:
    """Positions of the exploration slots in a slate of `count`: one in each full block."""
    return [block * config.explore_every + config.explore_offset for block in range(count // config.explore_every)]


def _explored(
    order_S: Int64s,
    slots: list[int],
    preference_C: Float64s,
    explorable_C: Bools,
    epsilon: float,
    rng: np.random.Generator,
) -> RankedRows:
    row_S, best = np.empty_like(order_S), iter(order_S)
    propensity_S, explored_S = np.ones(len(order_S)), np.zeros(len(order_S), np.bool_)
    open_C = explorable_C & np.isfinite(preference_C)
    open_C[order_S] = False
    for position in range(len(order_S)):
        pool = np.flatnonzero(open_C) if position in slots else order_S[:0]
        if pool.size and rng.random() < epsilon:
            chance_P = _softmax(preference_C[pool])
            drawn = int(rng.choice(len(pool), p=chance_P))
            row_S[position], propensity_S[position] = pool[drawn], epsilon * chance_P[drawn]
            explored_S[position] = True
            open_C[pool[drawn]] = False
        else:
            row_S[position] = next(best)
            propensity_S[position] = 1.0 - epsilon if pool.size else 1.0
    return RankedRows(row_S=row_S, propensity_S=propensity_S, explored_S=explored_S)


def _softmax(values: Float64s) -> Float64s:
    if not values.size:
        return values
    weights: Float64s = np.exp(values - values.max())
    weights /= weights.sum()
    return weights
