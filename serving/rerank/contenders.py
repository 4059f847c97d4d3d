"""What the rerank stage reads: the scored candidates as columns, and what the rules say of them.

C candidates, D width of the ALS factors.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A candidate that a rule wants at a position, from 0."""

    row: int
    position: int
    rule: str


@dataclass(frozen=True, kw_only=True)
class Boost:
    """Candidates that a rule raises or lowers."""

    rule: str
    boosted_C: Bools
    add: float = 0.0
    """Standard deviations of the scores."""
    multiply: float = 1.0
    """Of the score's magnitude: above 1 raises an item of negative score, too."""


@dataclass(frozen=True, kw_only=True)
class RuleEffects:
    """What the rules say of one request's candidates."""

    boosts: tuple[Boost, ...] = ()
    pins: tuple[Pin, ...] = ()
    """By position, of those at one position the first rule first. At most as many as the slate has positions."""
    version_C: Int64s | None = None
    """Candidates of one number from 0 are versions of one item, of which a page shows one; -1: of no other."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What tells how alike two candidates are."""

    category_C: Int64s
    creator_C: Int64s
    factors_CD: Float32s | None = None
    """ALS factors of length 1; 0 for items that ALS does not know. None: without similarity."""

    def take(self, row_K: Int64s) -> "Likeness":
        """The same of some candidates, ascending."""
        if len(row_K) == len(self.category_C):
            return self
        factors_KD = None if self.factors_CD is None else self.factors_CD[row_K]
        return Likeness(category_C=self.category_C[row_K], creator_C=self.creator_C[row_K], factors_CD=factors_KD)


@dataclass(frozen=True, kw_only=True)
class Contenders:
    """The candidates of one request."""

    score_C: Float64s
    """Non-finite scores come last."""
    likeness: Likeness
    age_ms_C: Int64s
    """Since publication; below 0 counts as 0."""
    explorable_C: Bools
    """Those that the exploration source proposed."""
    click_probability_C: Float64s
    """The ranker's; NaN where it did not score."""
    clicks_C: Float64s
    impressions_C: Float64s
    """The item's own, of all users, over one window."""
    foreign_C: Bools | None = None
    """Those in another language than the caller states; None where none is stated, or one of no item."""
    rules: RuleEffects = field(default_factory=RuleEffects)

    def __len__(self) -> int:
        return len(self.score_C)

    @cached_property
    def scale(self) -> float:
        """Standard deviation of the finite scores; 1 where they do not differ."""
        finite = self.score_C[np.isfinite(self.score_C)]
        scale = float(finite.std()) if finite.size else 0.0
        return scale if scale > 0 else 1.0
