"""A slate as rows of the candidates, and what moved them. C candidates, S positions of the slate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


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
    """What moved the items of the slate, in the order of the steps; empty unless it was asked for. Of one item each
    move starts where the one before ended, the first at its rank by score, and the last ends at its position."""
    deduplicated: int = 0
    """Candidates left out because another version of them stood higher or was pinned."""


def by_score(score_C: Float64s, count: int) -> RankedRows:
    """The best `count` by score; ties and non-finite scores keep the candidates' order, the latter last."""
    row_S = order_of(score_C)[:count]
    return RankedRows(row_S=row_S, propensity_S=np.ones(len(row_S)), explored_S=np.zeros(len(row_S), np.bool_))


def order_of(value_C: Float64s) -> Int64s:
    """All rows, best first; ties and what is not finite keep their order, the latter last."""
    sunk_C = np.where(np.isfinite(value_C), value_C, -np.inf)
    return np.argsort(-sunk_C, kind="stable")


class Trail:
    """Follows where candidates stand from step to step."""

    def __init__(self, row_C: Sequence[int]) -> None:
        """Starts from an order of the candidates."""
        self._at = {row: position for position, row in enumerate(row_C)}
        self._moves: list[Move] = []

    def step(self, name: str, rows: Sequence[int], reason: Callable[[int, int, int], str]) -> None:
        """Takes the order after a step; `reason(row, from, to)` is asked of each row that stands elsewhere.

        A row that is not in the order keeps its position for later steps.
        """
        for to, row in enumerate(rows):
            if (before := self._at[row]) != to:
                move = Move(row=row, step=name, from_position=before, to_position=to, reason=reason(row, before, to))
                self._moves.append(move)
                self._at[row] = to

    def moves(self, rows: Sequence[int]) -> tuple[Move, ...]:
        """The moves of these rows."""
        wanted = set(rows)
        return tuple(move for move in self._moves if move.row in wanted)
