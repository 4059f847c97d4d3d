"""Exploration by Thompson sampling over the click rates of little-known items, with exact propensities.

P items that may be drawn, G points of the grid, S positions of the slate.
"""

from dataclasses import dataclass

import numpy as np

from serving.rerank.config import RerankConfig
from serving.rerank.contenders import Bools, Contenders, Float64s, Int64s

_LOGIT_G = np.linspace(-14.0, 9.0, 139)
"""Log odds at which click rates are compared, from one in a million to 0.9999; a sixth apart."""
_LOG_RATE_G, _LOG_OTHERWISE_G = -np.logaddexp(0, -_LOGIT_G), -np.logaddexp(0, _LOGIT_G)
_MIN_RATE = 1e-4


def draw_rng(request_id: str) -> np.random.Generator:
    """The generator of the rerank stage's draws. It depends on the request id alone, so that a replay draws the same
    without repeating the retrieval, whose draws come from another.
    """
    return np.random.default_rng([int.from_bytes(request_id.encode()), 1])


def exploration_slots(count: int, config: RerankConfig) -> range:
    """Positions of the exploration slots in a slate of `count`: one in each full block."""
    blocks = count // config.explore_every
    return range(config.explore_offset, blocks * config.explore_every, config.explore_every)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Rows of the slate after exploration."""

    row_S: Int64s
    propensity_S: Float64s
    explored_S: Bools


def explored(
    order_S: Int64s, open_C: Bools, contenders: Contenders, config: RerankConfig, rng: np.random.Generator | None
) -> Drawn:
    """The order with draws among the `open_C` candidates in its exploration slots. Without an `rng` there are none.

    At each slot, with chance epsilon, one of the open candidates that lose no more than `explore_max_loss` takes the
    position, and the rest move down by one. Each has the chance that its click rate, drawn from its posterior, is the
    greatest of all (Thompson, 1933), mixed with `explore_floor` of the uniform. That chance is computed and then drawn
    from, rather than the click rates, so the logged propensity is the probability of the draw itself. Given the items
    above it, every other position is certain, so its propensity is 1.
    """
    count = len(order_S)
    row_S, propensity_S, explored_S = order_S.copy(), np.ones(count), np.zeros(count, np.bool_)
    if rng is None:
        return Drawn(row_S=row_S, propensity_S=propensity_S, explored_S=explored_S)
    pool, drawn = _Pool(open_C, contenders, config), 0
    for slot in exploration_slots(count, config):
        able_P = pool.able(int(order_S[slot - drawn]))
        if not able_P.any():
            continue
        if rng.random() < config.epsilon:
            row, chance = pool.draw(able_P, rng)
            row_S[slot + 1 :] = order_S[slot - drawn : count - drawn - 1]
            row_S[slot], propensity_S[slot], explored_S[slot] = row, config.epsilon * chance, True
            drawn += 1
        else:
            propensity_S[slot] = 1.0 - config.epsilon
    return Drawn(row_S=row_S, propensity_S=propensity_S, explored_S=explored_S)


class _Pool:
    """The candidates that may still be drawn."""

    def __init__(self, open_C: Bools, contenders: Contenders, config: RerankConfig) -> None:
        self._contenders = contenders
        self._config = config
        self._row_P = np.flatnonzero(open_C & np.isfinite(contenders.score_C))
        self._left_P = np.ones(len(self._row_P), np.bool_)
        self._rivals: Rivals | None = None

    def able(self, ahead: int) -> Bools:
        """Who of them may take the position of the candidate that is due."""
        score_C, lost = self._contenders.score_C, self._config.explore_max_loss * self._contenders.scale
        able_P: Bools = self._left_P & (score_C[self._row_P] >= score_C[ahead] - lost)
        return able_P

    def draw(self, able_P: Bools, rng: np.random.Generator) -> tuple[int, float]:
        """The row of one of them, and the chance with which it was drawn."""
        if self._rivals is None:
            self._rivals = Rivals(*_posterior(self._row_P, self._contenders, self._config.explore_prior))
        at_Q = np.flatnonzero(able_P)
        floor = self._config.explore_floor
        chance_Q = (1 - floor) * self._rivals.chance_of_best(at_Q) + floor / len(at_Q)
        drawn = min(int(np.searchsorted(chance_Q.cumsum(), rng.random(), "right")), len(at_Q) - 1)
        self._left_P[at_Q[drawn]] = False
        return int(self._row_P[at_Q[drawn]]), float(chance_Q[drawn])


def _posterior(row_P: Int64s, contenders: Contenders, prior: float) -> tuple[Float64s, Float64s]:
    """Beta(a, b) of each click rate: what the ranker expects counts for `prior` impressions beside the item's own.

    Without the ranker the candidates' common rate is expected.
    """
    shown_C = np.maximum(_finite(contenders.impressions_C), 0.0)
    clicked_C = np.clip(_finite(contenders.clicks_C), 0.0, shown_C)
    common = (clicked_C.sum() + 1) / (shown_C.sum() + 20)
    rate_P = contenders.click_probability_C[row_P]
    rate_P = np.clip(np.where(np.isnan(rate_P), common, rate_P), _MIN_RATE, 1 - _MIN_RATE)
    a_P = prior * rate_P + clicked_C[row_P]
    return a_P, prior * (1 - rate_P) + shown_C[row_P] - clicked_C[row_P]


def _finite(values: Float64s) -> Float64s:
    """The values, 0 for what is not finite."""
    return np.where(np.isfinite(values), values, 0.0)


class Rivals:
    """Independent Beta posteriors, by the chance that each exceeds the others: an integral over one dimension, taken
    on a grid of log odds (a posterior narrower than the grid counts as its mode).
    """

    def __init__(self, a_P: Float64s, b_P: Float64s) -> None:
        # In log odds the density of Beta(a, b) is proportional to x^a (1 - x)^b.
        log_PG = np.outer(a_P, _LOG_RATE_G) + np.outer(b_P, _LOG_OTHERWISE_G)
        self._mass_PG = np.exp(log_PG - log_PG.max(axis=1, keepdims=True, initial=-np.inf))
        self._mass_PG /= self._mass_PG.sum(axis=1, keepdims=True)
        below_PG = np.cumsum(self._mass_PG, axis=1) - self._mass_PG / 2
        self._log_below_PG = np.log(np.maximum(below_PG, 1e-300))

    def chance_of_best(self, at_Q: Int64s) -> Float64s:
        """P(x_q > x_r for all others r) among some of them: positive or 0, of sum 1."""
        log_below_QG = self._log_below_PG[at_Q]
        log_others_QG = log_below_QG.sum(axis=0) - log_below_QG
        log_others_QG -= log_others_QG.max()
        chance_Q: Float64s = (self._mass_PG[at_Q] * np.exp(log_others_QG)).sum(axis=1)
        chance_Q /= chance_Q.sum()
        return chance_Q
