"""Platt scaling: each head's logit stretched and shifted so that its probabilities mean what they say.

Monotone, so a head's ranking stays as it is (Platt, 1999). Shapes: C candidates, T heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One slope and one intercept a head."""

    slope_T: npt.NDArray[np.float64]
    intercept_T: npt.NDArray[np.float64]

    def __call__(self, logit_CT: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Probabilities `[C, T]`. A non-finite logit gives NaN, for the caller to sink."""
        scaled_CT = logit_CT.astype(np.float64) * self.slope_T + self.intercept_T
        with np.errstate(over="ignore", invalid="ignore"):
            probability_CT = 1 / (1 + np.exp(-scaled_CT))
        return np.where(np.isfinite(logit_CT), probability_CT, np.nan).astype(np.float32)

    def to_json(self) -> dict[str, list[float]]:
        """The constants, in the heads' order."""
        return {"slope": self.slope_T.tolist(), "intercept": self.intercept_T.tolist()}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "Calibration":
        """Reads what `to_json` gave. Raises `KeyError` or `ValueError` when it is something else."""
        slope_T, intercept_T = (np.array(record[name], np.float64) for name in ("slope", "intercept"))
        return Calibration(slope_T=slope_T, intercept_T=intercept_T)


def identity(heads: int) -> Calibration:
    """The calibration that changes nothing."""
    return Calibration(slope_T=np.ones(heads), intercept_T=np.zeros(heads))


MIN_EXAMPLES = 100
RIDGE = 1e-3
"""Pull towards the identity, so that separable or one-class data cannot send the slope to infinity."""
MAX_STEPS = 50
CONVERGED = 1e-8
"""Largest change of a constant that is no change."""
_PRIOR_2 = np.array([1.0, 0.0])


def fit_platt(logit_N: npt.NDArray[Any], label_N: npt.NDArray[Any]) -> tuple[float, float]:
    """Slope and intercept of the least log loss (labels in [0, 1], fractions allowed), by Newton's method.

    The identity for fewer than `MIN_EXAMPLES` examples, and where the fit would turn the order round.
    """
    if len(logit_N) < MIN_EXAMPLES:
        return 1.0, 0.0
    design_N2 = np.stack([logit_N.astype(np.float64), np.ones(len(logit_N))], axis=1)
    beta_2 = _PRIOR_2.copy()
    for _ in range(MAX_STEPS):
        probability_N = 1 / (1 + np.exp(-np.clip(design_N2 @ beta_2, -30, 30)))
        curvature_N = np.maximum(probability_N * (1 - probability_N), 1e-6)
        gradient_2 = design_N2.T @ (probability_N - label_N) + RIDGE * (beta_2 - _PRIOR_2)
        hessian_22 = design_N2.T @ (curvature_N[:, None] * design_N2) + RIDGE * np.eye(2)
        step_2 = np.linalg.solve(hessian_22, gradient_2)
        loss = _penalised_loss(design_N2, label_N, beta_2)
        # A whole step from far away can overshoot for good; a shorter one always gains, since the loss is convex.
        while np.abs(step_2).max() >= CONVERGED and _penalised_loss(design_N2, label_N, beta_2 - step_2) > loss:
            step_2 = step_2 / 2
        beta_2 = beta_2 - step_2
        if np.abs(step_2).max() < CONVERGED:
            break
    slope, intercept = float(beta_2[0]), float(beta_2[1])
    if not np.isfinite([slope, intercept]).all() or slope <= 0:
        return 1.0, 0.0
    return slope, intercept


def _penalised_loss(design_N2: npt.NDArray[Any], label_N: npt.NDArray[Any], beta_2: npt.NDArray[Any]) -> float:
    logit_N = design_N2 @ beta_2
    return float(np.sum(np.logaddexp(0, logit_N) - label_N * logit_N) + RIDGE / 2 * np.sum((beta_2 - _PRIOR_2) ** 2))
