"""Importance weights of logged rows, and what they say about how far two policies are apart. Shapes: N rows."""

import numpy as np

from models.off_policy.log import Choices, Float64s
from models.refusal import RefusalError


def importance_weights(target_probability_N: Float64s, propensity_N: Float64s) -> Float64s:
    """How much more often the target policy takes each logged action than the logger did (Horvitz and Thompson, 1952).

    Their mean is 1 in expectation when the logger may take whatever the target may. Raises `RefusalError` for no rows,
    propensities outside (0, 1] and target probabilities outside [0, 1], non-finite ones among them.
    """
    if not len(propensity_N) or len(propensity_N) != len(target_probability_N):
        raise RefusalError(
            f"got {len(propensity_N)} propensities and {len(target_probability_N)} target probabilities; "
            "allowed: one of each for at least one row; give a log with rows."
        )
    _within("propensity", propensity_N, "in (0, 1]", bad=~((propensity_N > 0) & (propensity_N <= 1)))
    bad_N = ~((target_probability_N >= 0) & (target_probability_N <= 1))
    _within("target_probability", target_probability_N, "in [0, 1]", bad=bad_N)
    return target_probability_N / propensity_N


def clipped(weight_N: Float64s, clip: float | None) -> Float64s:
    """The weights, none above `clip`, which trades variance for a bias towards 0 (Ionides, 2008). None clips nothing.

    Raises `RefusalError` for a bound that is not a positive number.
    """
    if clip is None:
        return weight_N
    if not clip > 0:
        raise RefusalError(f"clip: got {clip}; allowed: a weight above 0, such as 10; leave it out to clip nothing.")
    return np.minimum(weight_N, clip)


def effective_sample_size(weight_N: Float64s) -> float:
    """How many equally weighted rows tell as much: (sum w)^2 / sum w^2 (Kish, 1965). 0 without any weight."""
    largest = float(weight_N.max(initial=0.0))
    if largest <= 0:
        return 0.0
    scaled_N = weight_N / largest  # squares of tiny or huge weights stay finite
    return float(scaled_N.sum() ** 2 / np.square(scaled_N).sum())


def unsupported_share(
    target_probability_N: Float64s, propensity_N: Float64s, choices: Choices | None = None
) -> float | None:
    """Share of the target policy's choices of which the log can say nothing: at least so much, a lower bound.

    Counted are, in rows that the logger decided for certain (propensity 1), all other actions; in the other rows, the
    actions that the log never shows. None where neither can be known: no certain row, and no `choices`.
    """
    certain_N = propensity_N >= 1
    if choices is None and not certain_N.any():
        return None
    missing_N = np.where(certain_N, 1 - target_probability_N, 0.0)
    if choices is not None:
        unseen_M = ~np.isin(choices.action_M, choices.action_N)
        mass_N = np.bincount(choices.row_M, weights=choices.probability_M * unseen_M, minlength=len(certain_N))
        missing_N = np.where(certain_N, missing_N, mass_N)
    return float(missing_N.mean())


def _within(name: str, value_N: Float64s, allowed: str, bad: np.ndarray) -> None:
    if bad.any():
        raise RefusalError(
            f"{name}: got {value_N[bad][0]} and {int(bad.sum()) - 1} more such rows; allowed: numbers {allowed}; "
            "correct or leave out those rows."
        )
