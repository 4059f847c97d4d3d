"""What a bundle must pass before it is promoted. Each gate says by how much it was missed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from models.bundle import Bundle, BundleError, feature_mismatch
from models.configuration import read_configuration
from models.evaluate_bundle import BundleQuality, HeadCalibration
from models.probes import empty_sources, scoring_ms, unscored
from models.ranker_inputs import HEADS
from models.refusal import RefusalError

FEATURES = "features"
SCORES = "scores"
NOT_OVERRIDABLE = frozenset({FEATURES, SCORES})
"""The service itself refuses a bundle that misses these: what it cannot load, and what does not give finite scores."""
SCORED_CANDIDATES = 500
"""Candidates of the latency gate's request."""
SCORE_500_BUDGET_MS = 25.0
"""Seven times the CPU time of the default ranker on a quiet core (3.5 ms)."""
DEFAULT_MAX_ECE: dict[str, float] = {
    "click": 0.05,
    "completion": 0.1,
    "like": 0.05,
    "share": 0.05,
    "hide": 0.05,
    "watch_fraction": 0.1,
}
"""Completion and watch fraction are of those who watch, where rates are near one half, and weigh a tenth of a like."""


class GateLimits(BaseModel):
    """How much is allowed; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    auc_margin: float = Field(default=0.005, ge=0, le=1)
    """How much lower than the champion's (or than popularity's) the click AUC may be on the same examples."""
    ndcg_margin: float = Field(default=0.01, ge=0, le=1)
    """How much lower than the champion's the NDCG of the logged slates may be."""
    max_ece: dict[str, float] = Field(default_factory=lambda: dict(DEFAULT_MAX_ECE))
    """Greatest expected calibration error by head, beyond what chance makes of so few examples. Heads that are not
    named keep their default."""
    min_calibration_examples: int = Field(default=100, ge=1)
    """A head with fewer defined labels than this is told, but not judged."""
    score_500_ms: float = Field(default=SCORE_500_BUDGET_MS, gt=0)
    """Greatest median CPU time of scoring 500 candidates with the bundle's ranker on one thread."""
    parity_max_share: float = Field(default=0.01, ge=0, le=1)
    """Greatest share of served values of one feature that are not what point-in-time recomputation gives."""
    parity_min_rows: int = Field(default=50, ge=1)
    """A feature with fewer rows compared than this is told, but not judged."""
    parity_max_age_h: float = Field(default=48.0, gt=0)
    """A report of `feature_parity` that is older, in hours, refuses: the job has failed since."""

    @field_validator("max_ece")
    @classmethod
    def _of_known_heads(cls, given: dict[str, float]) -> dict[str, float]:
        for head, limit in given.items():
            if head not in HEADS or not 0 <= limit <= 1:
                raise ValueError(f"got {head}: {limit}; allowed: 0 to 1 for {', '.join(HEADS)}")
        return {**DEFAULT_MAX_ECE, **given}

    @classmethod
    def read(cls, file: Path | None) -> Self:
        """The limits in a file, the default ones without a file. Raises `RefusalError` saying what is wrong."""
        if file is None:
            return cls()
        return read_configuration(cls, file, "gate limits")


DEFAULT_LIMITS = GateLimits()


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One gate's verdict, with the numbers behind it."""

    gate: str
    passed: bool
    detail: str


class PromotionRefusedError(RefusalError):
    """A bundle that did not pass: the message names each gate and by how much it was missed."""


def refusal_of(bundle_id: str, champion: str | None, gates: Sequence[GateResult]) -> PromotionRefusedError:
    """The refusal of a bundle for the gates that it missed."""
    missed = "; ".join(f"{gate.gate}: {gate.detail}" for gate in gates if not gate.passed)
    return PromotionRefusedError(
        f"{bundle_id} is not promoted, the champion stays {champion or 'none'}; gates missed: {missed}. "
        "Correct the data or the training and promote again."
    )


def features_gate(path: Path, manifest: Mapping[str, Any]) -> GateResult:
    """Whether the bundle in the directory was made for this code's features. To be asked before it is loaded."""
    try:
        other = feature_mismatch(path, manifest)
    except BundleError as error:
        other = str(error)
    return GateResult(gate=FEATURES, passed=other is None, detail=other or "the same as this code's")


def run_gates(
    challenger: Bundle,
    quality: BundleQuality,
    champion: BundleQuality | None,
    limits: GateLimits = DEFAULT_LIMITS,
    not_compared: str = "there is no champion",
) -> list[GateResult]:
    """Every gate's verdict. Without a champion's metrics, the comparison says why it was `not_compared`."""
    results = [
        *serving_gates(challenger, limits),
        _finite(quality),
        _at_least("popularity", "click AUC", quality.click_auc, quality.popularity_auc, limits.auc_margin),
        *(_calibration(head, found, limits) for head, found in quality.calibration.items()),
    ]
    if champion is None:
        return [*results, GateResult(gate="champion", passed=True, detail=f"not compared: {not_compared}")]
    return [
        *results,
        _at_least("champion_auc", "click AUC", quality.click_auc, champion.click_auc, limits.auc_margin),
        ndcg_gate(quality.slate_ndcg, champion.slate_ndcg, limits),
    ]


def serving_gates(bundle: Bundle, limits: GateLimits) -> list[GateResult]:
    """What can be told without examples: features, sources that answer, finite scores, and the time they take."""
    empty, sunk = empty_sources(bundle), unscored(bundle, SCORED_CANDIDATES)
    took_ms = scoring_ms(bundle, SCORED_CANDIDATES)
    return [
        features_gate(bundle.path, bundle.manifest),
        GateResult(gate="sources", passed=not empty, detail=f"empty sources: {', '.join(empty) or 'none'}"),
        GateResult(gate=SCORES, passed=not sunk, detail=f"{sunk} of {SCORED_CANDIDATES} are not finite, allowed: 0"),
        _at_most("latency", f"median CPU ms to score {SCORED_CANDIDATES}", took_ms, limits.score_500_ms, digits=2),
    ]


def ndcg_gate(got: float, champion: float, limits: GateLimits) -> GateResult:
    """Whether logged slates are ordered as well as by the champion."""
    return _at_least("champion_ndcg", "slate NDCG", got, champion, limits.ndcg_margin)


def _finite(quality: BundleQuality) -> GateResult:
    numbers = {name: metric for name, metric in vars(quality).items() if isinstance(metric, float)}
    broken = [name for name, metric in numbers.items() if not np.isfinite(metric)]
    return GateResult(gate="finite", passed=not broken, detail=f"non-finite: {', '.join(broken) or 'none'}")


def _calibration(head: str, found: HeadCalibration, limits: GateLimits) -> GateResult:
    gate = f"calibration_{head}"
    if found.examples < limits.min_calibration_examples:
        detail = f"{found.examples} examples; judged from {limits.min_calibration_examples} on"
        return GateResult(gate=gate, passed=True, detail=detail)
    what = f"{head} ECE over {found.examples} examples, of which chance makes {found.noise:.4f},"
    return _at_most(gate, what, found.ece, limits.max_ece[head] + found.noise)


def _at_least(gate: str, what: str, got: float, reference: float, margin: float) -> GateResult:
    detail = f"{what} {got:.4f}, allowed: at least {reference:.4f} - {margin}"
    missed = reference - margin - got
    passed = bool(missed <= 0)
    return GateResult(gate=gate, passed=passed, detail=detail if passed else f"{detail}, missed by {missed:.4f}")


def _at_most(gate: str, what: str, got: float, limit: float, digits: int = 4) -> GateResult:
    passed = bool(got <= limit)
    detail = f"{what} {got:.{digits}f}, allowed: at most {limit:.{digits}f}"
    missed = f"{detail}, missed by {got - limit:.{digits}f}"
    return GateResult(gate=gate, passed=passed, detail=detail if passed else missed)
