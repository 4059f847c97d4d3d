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
    _, starts = np.unique(group_N[order], return_index=True)
    alone = len(starts) == len(order)
    members = [] if alone else np.split(order, starts[1:])
    draws = []
    for _ in range(rounds):
        chosen = rng.integers(len(starts), size=len(starts))
        draws.append(statistic(order[chosen] if alone else np.concatenate([members[g] for g in chosen])))
    finite = np.array([draw for draw in draws if np.isfinite(draw)])
    if not finite.size:
        return Interval(value=value, low=float("nan"), high=float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high))
