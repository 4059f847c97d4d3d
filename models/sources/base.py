"""What a candidate source is: a function from a request to the best items that it knows of.

Shapes: I items of the live table, L items of the history, C candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from features.names import MS_PER_MINUTE
from models.item_table import ItemTable

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class RetrievalRequest:
    """One user at one instant, as every source sees them."""

    instant_ms: int
    item_table: ItemTable
    """The live table: at least the bundle's items, then those that appeared since."""
    history_index_L: Int32s
    """Distinct items of positive weight, newest first (`models.history.user_history`). May be empty."""
    history_weight_L: Float32s
    history_age_ms_L: Int64s
    """Milliseconds from each item's newest event to the instant."""
    excluded_I: Bools
    """Items that must not come back: seen, hidden, blocked. Unavailable ones need not be marked."""
    rng: np.random.Generator
    followed_creators: frozenset[str] = frozenset()
    trending_score_I: Float32s | None = None
    """What `models.sources.trending.trending_scores` made of the live item features; None when they are absent."""
    impressions_I: Float32s | None = None
    """How often each item was shown lately (any window); None when that is unknown."""

    @property
    def minute_ms(self) -> int:
        """The instant's minute: what falls with half-lives of days is worked out once for all requests of a minute."""
        return self.instant_ms // MS_PER_MINUTE * MS_PER_MINUTE

    @cached_property
    def allowed_I(self) -> Bools:  # noqa: N802 - the shape suffix is upper case
        """Items that may be returned: available and not excluded."""
        return self.item_table.available & ~self.excluded_I


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Distinct items, best first. Scores are finite and comparable within one source only."""

    item_index: Int32s
    score: Float32s

    def __len__(self) -> int:
        return len(self.item_index)


EMPTY = Candidates(item_index=np.empty(0, np.int32), score=np.empty(0, np.float32))


class Source(Protocol):
    """A candidate source: a value object made in training, saved as plain arrays, read with numpy alone."""

    name: ClassVar[str]

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """At most `count` allowed items, best first.

        The same request with an rng in the same state gives the same answer. A source that has nothing to say
        (no history, no live scores) returns none rather than filling up: that is what the merge is for.
        """
        ...

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The artefact, as arrays without Python objects."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Reads what `to_arrays` gave. Raises `KeyError` when an array is absent."""
        ...


def top(score_I: npt.NDArray[np.floating[Any]], eligible_I: Bools, count: int) -> Candidates:
    """The `count` eligible items of the highest finite score, best first; ties go to the lower index."""
    if count <= 0:
        return EMPTY
    value_I = np.asarray(score_I, np.float32)
    eligible = _best_and_some(value_I, eligible_I, count)
    if not eligible.size:
        return EMPTY
    score = value_I[eligible]
    if count < len(eligible):
        threshold = np.partition(score, len(score) - count)[len(score) - count]
        kept = score >= threshold
        eligible, score = eligible[kept], score[kept]
    order = np.argsort(-score, kind="stable")[:count]
    return Candidates(item_index=eligible[order].astype(np.int32), score=score[order])


def best_first(score_I: Float32s) -> Int32s:
    """The items `[P]` of finite score, best first; ties go to the lower index."""
    known = np.flatnonzero(np.isfinite(score_I))
    return known[np.argsort(-score_I[known], kind="stable")].astype(np.int32)


def first_allowed(order_P: Int32s, score_I: Float32s, allowed_I: Bools, count: int) -> Candidates:
    """The first `count` allowed items of an order that `best_first` gave: `top` of scores that many requests share."""
    for order in (order_P[: max(4 * count, 0)], order_P):
        allowed = order[allowed_I[order]][: max(count, 0)]
        if len(allowed) == count:
            break
    return Candidates(item_index=allowed, score=score_I[allowed])


_SAMPLED = 17
"""One of so many items is looked at to guess where the best begin: a prime, since catalogues have their own periods."""


def _best_and_some(value_I: Float32s, eligible_I: Bools, count: int) -> npt.NDArray[np.intp]:
    """The eligible finite items above a bound that at least `count` pass, if there are as many; else all such items.

    The bound is guessed from a sample, since ordering 50,000 items by halves (`numpy.partition`) takes ten times as
    long as comparing them with a number, and masking all of them as long as all the rest.
    """
    sample = value_I[::_SAMPLED][eligible_I[::_SAMPLED]]
    rank = 2 * count // _SAMPLED + 8
    if rank < len(sample):
        # NaN counts as the greatest here, and then nothing passes.
        bound = np.partition(sample, len(sample) - rank)[len(sample) - rank]
        passing = np.flatnonzero(value_I >= bound)
        passing = passing[eligible_I[passing] & np.isfinite(value_I[passing])]
        if len(passing) >= count:
            return passing
    return np.flatnonzero(eligible_I & np.isfinite(value_I))


def padded(values: npt.NDArray[Any], size: int, fill: float = 0.0) -> npt.NDArray[Any]:
    """Values of the bundle's items as an array over the live table, whose newer items get `fill`."""
    if len(values) == size:
        return values
    out = np.full((size, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out
