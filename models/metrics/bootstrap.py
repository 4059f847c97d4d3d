"""Bootstrap intervals that resample whole groups, since one user's examples are not independent."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic with its percentile interval."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    group_N: npt.NDArray[np.int64],
    rng: np.random.Generator,
    rounds: int = 100,
    level: float = 0.95,
) -> Interval:
    """The statistic of all examples, and its interval over resampled groups (Efron, 1979).

    `statistic` takes the indices of the examples to use. Rounds in which it is NaN are left out; the bounds are NaN
    when it always is.
    """
    value = statistic(np.arange(len(group_N)))
    order = np.argsort(group_N, kind="stable")
    _, start_G, size_G = np.unique(group_N[order], return_index=True, return_counts=True)
    draws = []
    for _ in range(rounds):
        chosen = rng.integers(len(start_G), size=len(start_G))
        size_C = size_G[chosen]
        # Each chosen group's members in turn: its start, counted up by the place within the group.
        shift_C = start_G[chosen] - (np.cumsum(size_C) - size_C)
        draws.append(statistic(order[np.arange(size_C.sum()) + np.repeat(shift_C, size_C)]))
    finite = np.array([draw for draw in draws if np.isfinite(draw)])
    if not finite.size:
        return Interval(value=value, low=float("nan"), high=float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high))
