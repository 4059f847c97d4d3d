"""The steps of the rerank stage in their order: a pure function of the contenders, the settings and the generator.

C candidates, K those that are ranked, S positions of the slate.
"""

import numpy as np

from serving.rerank.config import RerankConfig
from serving.rerank.contenders import Contenders, Float64s, Pin, RuleEffects
from serving.rerank.explore import Drawn, explored
from serving.rerank.reasons import moves_of
from serving.rerank.rows import Bools, Move, RankedRows, order_of
from serving.rerank.spread import spread_order


def rerank(
    contenders: Contenders, count: int, config: RerankConfig, rng: np.random.Generator | None, *, explain: bool = False
) -> RankedRows:
    """The slate of `count` candidates, fewer if there are fewer. Without an `rng` nothing is explored.

    1. boost: rules raise and lower scores.
    2. language: items in another language than the caller states lose.
    3. fresh: newly published items gain.
    4. deduplicate: of several versions of an item the best stays, and what is pinned leaves the ranking.
    5. spread: positions are filled one by one, likeness to the items above costing (`spread_order`).
    6. explore: some slots are drawn, with the propensities of the draws (`explored`).
    7. pin: pinned items go to their positions, with propensity 1, and those below move down.

    Non-finite scores come last throughout.
    """
    rules = contenders.rules
    pins = rules.pins[:count]
    boosted_C = boosted(contenders)
    lost_C = foreign_loss(contenders, config)
    spoken_C = boosted_C - lost_C
    fresh_C = config.fresh_bonus * np.exp2(-np.maximum(contenders.age_ms_C, 0) / config.fresh_half_life_ms)
    value_C = np.where(np.isfinite(contenders.score_C), spoken_C + fresh_C, -np.inf)
    ranked_C, deduplicated = _ranked(value_C, rules, pins)
    row_K = np.flatnonzero(ranked_C)
    spread_K = row_K[spread_order(value_C[row_K], contenders.likeness.take(row_K), config)]
    order_S = spread_K[: count - len(pins)]
    open_C = contenders.explorable_C & ranked_C & (lost_C == 0)
    open_C[order_S] = False
    drawn = explored(order_S, open_C, contenders, config, rng)
    slate = pinned(drawn, pins)
    moves: tuple[Move, ...] = ()
    if explain:
        orders = (order_of(boosted_C), order_of(spoken_C), order_of(value_C), row_K[order_of(value_C[row_K])], spread_K)
        moves = moves_of(contenders, config, orders, drawn, slate.row_S, pins)
    return RankedRows(
        row_S=slate.row_S,
        propensity_S=slate.propensity_S,
        explored_S=slate.explored_S,
        moves=moves,
        deduplicated=deduplicated,
    )


def boosted(contenders: Contenders) -> Float64s:
    """Scores in standard deviations as the rules change them: multipliers of one item multiply, then additions add.

    A multiplier works on the score's magnitude, so it never lowers what it should raise.
    """
    score_C = contenders.score_C / contenders.scale
    if not contenders.rules.boosts:
        return score_C
    factor_C, add_C = np.ones(len(contenders)), np.zeros(len(contenders))
    for boost in contenders.rules.boosts:
        factor_C[boost.boosted_C] *= boost.multiply
        add_C[boost.boosted_C] += boost.add
    with np.errstate(invalid="ignore"):
        raised_C: Float64s = score_C + (factor_C - 1) * np.abs(score_C) + add_C
    return raised_C


def foreign_loss(contenders: Contenders, config: RerankConfig) -> Float64s:
    """What each candidate loses for its language."""
    if contenders.foreign_C is None:
        return np.zeros(len(contenders))
    return np.where(contenders.foreign_C, config.language_penalty, 0.0)


def _ranked(value_C: Float64s, rules: RuleEffects, pins: tuple[Pin, ...]) -> tuple[Bools, int]:
    """Which candidates are ranked, and how many were left out for another version of them."""
    ranked_C = np.ones(len(value_C), np.bool_)
    ranked_C[[pin.row for pin in pins]] = False
    if rules.version_C is None:
        return ranked_C, 0
    taken = {int(rules.version_C[pin.row]) for pin in pins} - {-1}
    left_out = 0
    grouped = np.flatnonzero((rules.version_C >= 0) & ranked_C)
    for row in grouped[order_of(value_C[grouped])].tolist():
        version = int(rules.version_C[row])
        if version in taken:
            ranked_C[row] = False
            left_out += 1
        taken.add(version)
    return ranked_C, left_out


def pinned(drawn: Drawn, pins: tuple[Pin, ...]) -> Drawn:
    """The slate with the pinned rows at their positions, or the next free ones; at the end where it is shorter."""
    if not pins:
        return drawn
    at_P: list[int] = []
    for k, pin in enumerate(pins):
        at_P.append(min(max(pin.position, at_P[-1] + 1 if at_P else 0), len(drawn.row_S) + k))
    # np.insert takes positions of the array before insertion.
    before_P = [at - k for k, at in enumerate(at_P)]
    return Drawn(
        row_S=np.insert(drawn.row_S, before_P, [pin.row for pin in pins]),
        propensity_S=np.insert(drawn.propensity_S, before_P, 1.0),
        explored_S=np.insert(drawn.explored_S, before_P, False),
    )
