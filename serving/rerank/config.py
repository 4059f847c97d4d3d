"""Settings of the rerank stage; an experiment's arm may have its own."""

import math
from dataclasses import dataclass

from features.names import MS_PER_DAY


@dataclass(frozen=True, kw_only=True)
class RerankConfig:
    """Penalties, bonuses and losses are in standard deviations of the candidates' finite scores, so that they mean
    the same under every bundle's value weights. Raises `ValueError` naming the setting that is not allowed.
    """

    language_penalty: float = 2.0
    """Taken from an item in another language than the one that the caller states. Such an item is not explored, either;
    0: languages are left to the ranker, which knows what the user has watched but not what the caller states."""
    category_penalty: float = 0.1
    """Taken for each item of the same category among the last `spread_window` positions."""
    creator_penalty: float = 0.05
    """The same for the creator."""
    similarity_penalty: float = 0.02
    """The same times the cosine of the two items' ALS factors, so that items of one audience are spread, too. 0 for
    items that ALS does not know; below 0, a gain, for items of opposite audiences."""
    spread_window: int = 10
    """How many positions above an item its likeness counts to; 1 to 500."""
    spread_positions: int = 50
    """Positions beyond follow the score alone."""
    fresh_bonus: float = 0.05
    """Given to an item published just now, halving each `fresh_half_life_ms`."""
    fresh_half_life_ms: int = 2 * MS_PER_DAY
    epsilon: float = 0.25
    """Chance that an exploration slot draws from the exploration candidates instead of taking the next best."""
    explore_every: int = 10
    """One exploration slot in each full block of so many positions."""
    explore_offset: int = 6
    """Where in its block the slot lies, from 0: read often enough to learn, low enough to cost little."""
    explore_prior: float = 20.0
    """How many impressions the ranker's click probability counts for beside an item's own."""
    explore_floor: float = 0.1
    """Share of the draw that is uniform, so that no propensity is tiny: an item of P that may be drawn is drawn with a
    chance of at least `epsilon * explore_floor / P`."""
    explore_max_loss: float = 3.0
    """An explored item's score may be so much lower than that of the item whose position it takes."""

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            got = getattr(self, name)
            if isinstance(got, bool) or not isinstance(got, int | float) or not low <= got <= high:
                raise ValueError(f"rerank: got {name}={got}; allowed: {low:g} to {high:g}.")
        for name in ("spread_window", "spread_positions", "explore_every", "explore_offset"):
            if not isinstance(got := getattr(self, name), int):
                raise ValueError(f"rerank: got {name}={got}; allowed: a whole number.")
        if self.explore_offset >= self.explore_every:
            raise ValueError(
                f"rerank: got explore_offset={self.explore_offset}, explore_every={self.explore_every}; "
                "allowed: explore_offset < explore_every."
            )

    @property
    def explored_share(self) -> float:
        """Expected share of positions, at most, that exploration fills: 2.5% by default."""
        return self.epsilon / self.explore_every

    @property
    def explored_loss(self) -> float:
        """Expected loss a position, at most, in standard deviations of the scores: .075 by default.

        It is what an explored item scores below the one that was due at its position, which moves down by one.
        """
        return self.explored_share * self.explore_max_loss


_BOUNDS = (
    ("language_penalty", 0, 1e6),
    ("category_penalty", 0, 1e6),
    ("creator_penalty", 0, 1e6),
    ("similarity_penalty", 0, 1e6),
    ("spread_window", 1, 500),
    ("spread_positions", 0, 500),
    ("fresh_bonus", 0, 1e6),
    ("fresh_half_life_ms", 1, math.inf),
    ("epsilon", 0, 1),
    ("explore_every", 1, 500),
    ("explore_offset", 0, 499),
    ("explore_prior", 0.1, 1e6),
    ("explore_floor", 0, 1),
    ("explore_max_loss", 0, 1e6),
)
