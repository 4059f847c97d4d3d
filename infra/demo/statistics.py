"""The figures of the report: percentiles of latencies, and means with bootstrap intervals over users."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DRAWS = 1_000


def latency(name: str, values_ms: Sequence[float]) -> dict[str, float | list[float]]:
    """The values under `name`, with their percentiles under `name_p50` and `name_p99`. `values_ms` is not empty."""
    p50, p99 = np.percentile(values_ms, [50, 99])
    rounded = [round(value, 2) for value in values_ms]
    return {name: rounded, f"{name}_p50": round(float(p50), 1), f"{name}_p99": round(float(p99), 1)}


def ratio_interval(numerator_U: npt.ArrayLike, denominator_U: npt.ArrayLike, seed: int) -> dict[str, float]:
    """Sum over sum, with a 95% percentile bootstrap interval that draws whole users (Efron, 1979).

    A user's slates are not independent of one another, so users are drawn, not slates.
    """
    above_U, below_U = np.asarray(numerator_U, dtype=float), np.asarray(denominator_U, dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(above_U), size=(DRAWS, len(above_U)))
    ratios = above_U[drawn].sum(axis=1) / np.maximum(below_U[drawn].sum(axis=1), 1.0)
    low, high = np.percentile(ratios, [2.5, 97.5])
    value = above_U.sum() / max(below_U.sum(), 1.0)
    return {"value": round(float(value), 5), "low": round(float(low), 5), "high": round(float(high), 5)}


def gap_share(low_2U: npt.ArrayLike, got_2U: npt.ArrayLike, high_2U: npt.ArrayLike, seed: int) -> dict[str, float]:
    """(got - low) / (high - low) of three arms' rates, with a 95% bootstrap interval that draws whole users.

    Each arm is given as numerators and denominators by user. NaN where the two bounds are the same rate.
    """
    arms_A2U = np.stack([np.asarray(arm, dtype=float) for arm in (low_2U, got_2U, high_2U)])
    users = arms_A2U.shape[2]
    drawn = np.vstack([np.arange(users), np.random.default_rng(seed).integers(0, users, size=(DRAWS, users))])
    above_AD, below_AD = arms_A2U[:, 0, drawn].sum(axis=2), arms_A2U[:, 1, drawn].sum(axis=2)
    low_D, got_D, high_D = above_AD / np.maximum(below_AD, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share_D = np.where(high_D == low_D, np.nan, (got_D - low_D) / (high_D - low_D))
    low, high = np.nanpercentile(share_D[1:], [2.5, 97.5]) if np.isfinite(share_D[1:]).any() else (np.nan, np.nan)
    return {"value": round(float(share_D[0]), 4), "low": round(float(low), 4), "high": round(float(high), 4)}
