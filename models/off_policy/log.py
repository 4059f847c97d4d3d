"""Logged decisions of one policy, with what another would have done. Shapes: N rows, F context features, M pairs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the doubly robust estimate needs besides: the actions, their context and the whole target policy."""

    action_N: Int64s
    """Dense index of the logged action."""
    context_NF: Float64s
    """What both policies knew; NaN where unknown."""
    categorical_F: Bools
    """Which of the context's columns hold codes of categories."""
    row_M: Int64s
    """Row of the pair, ascending."""
    action_M: Int64s
    """Action of the pair, an index as in `action_N`."""
    probability_M: Float64s
    """Chance that the target policy takes that action in that row."""

    def features(self, action_M: Int64s, row_M: Int64s) -> Float64s:
        """Inputs of a reward model for pairs: the action's index, then the row's context."""
        return np.column_stack([action_M.astype(np.float64), self.context_NF[row_M]])


@dataclass(frozen=True, kw_only=True)
class PolicyLog:
    """Logged rows: one decision each, the position of a slate or a whole answer."""

    propensity_N: Float64s
    """Chance with which the logging policy took the action, in (0, 1]."""
    target_probability_N: Float64s
    """Chance with which the target policy takes the same action in the same row, in [0, 1]."""
    reward_N: Float64s
    """What followed, in any unit; the estimates have the same."""
    group_N: Int64s
    """Dense index of what the bootstrap draws: the user, or the row."""
    choices: Choices | None = None

    def __len__(self) -> int:
        return len(self.reward_N)
