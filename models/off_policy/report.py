"""All estimates of one log, with what tells how far to trust them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from models.metrics import Interval
from models.off_policy.estimators import BOOTSTRAP_ROUNDS, Estimate, Terms, doubly_robust, estimate, ips, snips
from models.off_policy.log import Float64s, PolicyLog
from models.off_policy.reward_model import Fit, TreeConfig, cross_fit, tree_model
from models.off_policy.weights import clipped, effective_sample_size, importance_weights, unsupported_share
from models.refusal import RefusalError

FEW_REWARDED = 20
"""Fewer effective rewarded rows than this make the intervals too narrow: in the simulation of `tests/soak`, 95%
intervals covered 89% with about 7 of them and 94% with about 12."""
TOLERATED_UNSUPPORTED = 0.01


@dataclass(frozen=True, kw_only=True)
class PolicyReport:
    """What the target policy would have got, by each estimator, and what the logger got."""

    estimates: dict[str, Estimate]
    """By name: `logged` (the logger's own mean reward), `ips`, `snips`, and `dr` where the log has choices."""
    mean_weight: Interval
    """Of the weights before clipping: 1 within its interval when propensities and target probabilities are right."""
    rewarded: float
    """Effective sample size of weight x reward: of how many rows, equally weighted, the reward is the sum."""
    clipped_share: float
    """Share of rows whose weight was cut."""
    unsupported_share: float | None
    """At least this share of the target's choices is unknown to the log; None when that cannot be told."""
    groups: int
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Estimates at the top level by name; NaN becomes null."""
        record = asdict(self)
        return dict(_without_nan({**record.pop("estimates"), **record}))


def evaluate_policy(
    log: PolicyLog, *, seed: int = 0, clip: float | None = None, rounds: int = BOOTSTRAP_ROUNDS, fit: Fit | None = None
) -> PolicyReport:
    """Estimates with 95% intervals. `fit` is the doubly robust estimate's reward model, trees by default.

    Raises `RefusalError` when no logged action is one that the target takes, and as the estimators do.
    """
    raw_N = importance_weights(log.target_probability_N, log.propensity_N)
    weight_N = clipped(raw_N, clip)
    if not raw_N.any():
        raise RefusalError(
            "target_probability: got 0 in every row; allowed: above 0 somewhere; the log shows nothing that the new "
            "policy does, so log with more exploration."
        )
    ones_N = np.ones(len(log))
    chosen = {
        "logged": (ips(log.reward_N, ones_N), ones_N),
        "ips": (ips(log.reward_N, weight_N), weight_N),
        "snips": (snips(log.reward_N, weight_N), weight_N),
    }
    if log.choices is not None:
        fit = fit or tree_model(TreeConfig(seed=seed))
        logged_N, target_N = cross_fit(log, log.choices, fit, np.random.default_rng(seed))
        chosen["dr"] = (doubly_robust(log.reward_N, weight_N, logged_N, target_N), weight_N)
    # Each estimate draws the same groups, so that they differ by what they do and not by the draw.
    estimates = {
        name: estimate(terms, used_N, log.group_N, np.random.default_rng(seed), rounds)
        for name, (terms, used_N) in chosen.items()
    }
    return _report(log, raw_N, weight_N, estimates, rounds, seed)


def _report(
    log: PolicyLog, raw_N: Float64s, weight_N: Float64s, estimates: dict[str, Estimate], rounds: int, seed: int
) -> PolicyReport:
    terms = Terms(numerator_N=raw_N, denominator_N=np.ones(len(raw_N)))
    mean = estimate(terms, raw_N, log.group_N, np.random.default_rng(seed), rounds)
    clipped_share = float((weight_N < raw_N).mean())
    unsupported = unsupported_share(log.target_probability_N, log.propensity_N, log.choices)
    rewarded = effective_sample_size(np.abs(weight_N * log.reward_N))
    interval = Interval(value=mean.value, low=mean.low, high=mean.high)
    return PolicyReport(
        estimates=estimates,
        mean_weight=interval,
        rewarded=rewarded,
        clipped_share=clipped_share,
        unsupported_share=unsupported,
        groups=len(np.unique(log.group_N)),
        warnings=tuple(_warnings(log, rewarded, interval, clipped_share, unsupported)),
    )


def _warnings(
    log: PolicyLog, rewarded: float, mean_weight: Interval, clipped_share: float, unsupported: float | None
) -> Iterable[str]:
    if not mean_weight.low <= 1 <= mean_weight.high:
        yield (
            f"the weights' mean is {mean_weight.value:.3f} [{mean_weight.low:.3f}, {mean_weight.high:.3f}], not 1: "
            "the propensities are wrong, the logger never shows some of what the target does, or by chance (1 in 20)"
        )
    if rewarded < FEW_REWARDED:
        yield (
            f"the rewards come from {rewarded:.0f} effective rows, fewer than {FEW_REWARDED}: the intervals cover less "
            "than 95%"
        )
    if unsupported is not None and unsupported > TOLERATED_UNSUPPORTED:
        yield (
            f"at least {unsupported:.1%} of the target's choices are never in the log: ips counts them as 0, snips as "
            "the mean of the rest, dr as its model guesses"
        )
    if clipped_share:
        yield f"{clipped_share:.2%} of the weights were clipped, which biases ips and dr"
    if log.reward_N.min() == log.reward_N.max():
        yield f"every reward is {log.reward_N[0]:.6g}: there is nothing to tell policies apart"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
