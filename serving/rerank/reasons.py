"""What moved the items of a slate, step by step, for people. C candidates, S positions of the slate."""

from collections.abc import Sequence

from features.names import MS_PER_HOUR
from serving.rerank.config import RerankConfig
from serving.rerank.contenders import Contenders, Int64s, Pin
from serving.rerank.explore import Drawn
from serving.rerank.rows import Move, Trail, order_of

BOOST, LANGUAGE, FRESH, DEDUPLICATE, SPREAD = "boost", "language", "fresh", "deduplicate", "spread"
EXPLORE, PIN = "explore", "pin"
"""The steps, as `RerankMove.step` names them."""


def moves_of(
    contenders: Contenders,
    config: RerankConfig,
    orders: tuple[Int64s, Int64s, Int64s, Int64s, Int64s],
    drawn: Drawn,
    row_S: Int64s,
    pins: Sequence[Pin],
) -> tuple[Move, ...]:
    """The moves of the slate's rows from their rank by score to their position.

    `orders` are those after boosts, languages, freshness, deduplication and spread; `drawn` that after exploration.
    """
    boosted, spoken, fresh, deduplicated, spread = (order.tolist() for order in orders)
    trail = Trail(order_of(contenders.score_C).tolist())
    trail.step(BOOST, boosted, lambda row, *_: _boost(contenders, row))
    trail.step(LANGUAGE, spoken, lambda row, *_: _language(contenders, row))
    trail.step(FRESH, fresh, lambda row, was, now: _fresh(contenders, row, was, now))
    trail.step(DEDUPLICATE, deduplicated, lambda *_: "items above it are pinned, or versions of others")
    trail.step(SPREAD, spread, lambda _, was, now: _spread(contenders, config, spread, was, now))
    trail.step(EXPLORE, drawn.row_S.tolist(), lambda *moved: _explore(drawn, moved[-1]))
    rule_of = {pin.row: pin.rule for pin in pins}
    trail.step(PIN, row_S.tolist(), lambda row, *_: f"rule {rule_of[row]}" if row in rule_of else "pinned items are in")
    return trail.moves(row_S.tolist())


def _boost(contenders: Contenders, row: int) -> str:
    rules = [boost.rule for boost in contenders.rules.boosts if boost.boosted_C[row]]
    return f"rule {', '.join(rules)}" if rules else "rules moved others"


def _language(contenders: Contenders, row: int) -> str:
    if contenders.foreign_C is not None and contenders.foreign_C[row]:
        return "in another language than the caller states"
    return "items in other languages made way"


def _fresh(contenders: Contenders, row: int, was: int, now: int) -> str:
    if now > was:
        return "newer items gained more"
    return f"published {max(int(contenders.age_ms_C[row]), 0) / MS_PER_HOUR:.1f} hours ago"


def _spread(contenders: Contenders, config: RerankConfig, spread: list[int], was: int, now: int) -> str:
    if now < was:
        return "items that are more like those above made way"
    above = spread[max(now - config.spread_window, 0) : now]
    likeness, row = contenders.likeness, spread[now]
    category = int((likeness.category_C[above] == likeness.category_C[row]).sum())
    creator = int((likeness.creator_C[above] == likeness.creator_C[row]).sum())
    return f"of the {len(above)} items above, {category} are of its category and {creator} of its creator"


def _explore(drawn: Drawn, now: int) -> str:
    if drawn.explored_S[now]:
        return f"drawn to be explored, with a chance of {drawn.propensity_S[now]:.3g}"
    return "an item that is explored came in"
