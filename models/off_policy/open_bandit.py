"""Open Bandit logs (Saito et al., 2021) as tables of the policy contract: would the random policy's logs have told?

The wheel of `obp` holds 10,000 rows of each of two policies, uniform random and Bernoulli Thompson sampling, which ran
side by side for a week in three campaigns. A row is one of the three positions of an impression; the click is the
reward. `python -m models.off_policy.open_bandit --wheel W --campaign men --target shown --out men.parquet` writes the
table. Shapes: A actions, P positions, N rows.
"""

import argparse
import zipfile
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import yaml

from models.off_policy.log import Float64s, Int64s
from models.off_policy.thompson import thompson_distribution
from models.refusal import RefusalError, run

CAMPAIGNS = ("all", "men", "women")
POSITIONS = 3
PRIORS = "obp/policy/conf/prior_bts.yaml"
CONTEXT = tuple(f"user_feature_{number}" for number in range(4))


class Target(StrEnum):
    """Which Thompson policy is asked for: the random log does not say what Thompson sampling would have shown."""

    PRIOR = "prior"
    """As it stood when collection began: its published Beta parameters. It learned on, so it is not what ran."""
    SHOWN = "shown"
    """As it ran, on average over the week: each item's share of a position in its own log; no click is looked at."""


def open_bandit_table(wheel: Path, campaign: str, target: Target, rng: np.random.Generator) -> pa.Table:
    """The random policy's log, with what Thompson sampling would have done. Raises `RefusalError` for a wrong wheel."""
    log = _log(wheel, "random", campaign)
    item_N, position_N = _integers(log, "item_id"), _integers(log, "position") - 1
    chance_AP = prior_policy(wheel, campaign, rng) if target is Target.PRIOR else shown_policy(wheel, campaign)
    actions = len(chance_AP)
    columns = {
        "propensity": log.column("propensity_score"),
        "target_probability": chance_AP[item_N, position_N],
        "reward": log.column("click"),
        "action": item_N,
        "target_actions": _lists(np.tile(np.arange(actions), (len(item_N), 1))),
        "target_action_probabilities": _lists(chance_AP.T[position_N]),
        "context_position": log.column("position").cast(pa.string()),
        **{f"context_{name}": log.column(name) for name in CONTEXT},
    }
    return pa.table(columns)


def on_policy_clicks(wheel: Path, campaign: str) -> Int64s:
    """Whether each impression that Thompson sampling served was clicked, 0 or 1."""
    return _integers(_log(wheel, "bts", campaign), "click")


def prior_policy(wheel: Path, campaign: str, rng: np.random.Generator) -> Float64s:
    """Chance of each item at each position under the published Beta parameters, [A, P]."""
    alpha_A, beta_A = _prior(wheel, campaign)
    return thompson_distribution(alpha_A, beta_A, POSITIONS, rng)


def prior_click_rates(wheel: Path, campaign: str) -> Float64s:
    """Mean click rate of each item under the published Beta parameters."""
    alpha_A, beta_A = _prior(wheel, campaign)
    return alpha_A / (alpha_A + beta_A)


def shown_policy(wheel: Path, campaign: str) -> Float64s:
    """Share of each item at each position of Thompson sampling's own log, [A, P].

    The mean of the logged propensities would not do: an item is logged most while its propensity is high, so those
    means sum to 2 to 4 a position. Shares are unbiased.
    """
    log = _log(wheel, "bts", campaign)
    item_N, position_N = _integers(log, "item_id"), _integers(log, "position") - 1
    actions = int(_integers(_log(wheel, "random", campaign), "item_id").max()) + 1
    count_PA = np.bincount(position_N * actions + item_N, minlength=POSITIONS * actions).reshape(POSITIONS, actions)
    return np.asarray((count_PA / count_PA.sum(axis=1, keepdims=True)).T, np.float64)


def _prior(wheel: Path, campaign: str) -> tuple[Float64s, Float64s]:
    with zipfile.ZipFile(wheel) as archive:
        prior = yaml.safe_load(archive.read(PRIORS))[campaign]
    return np.array(prior["alpha"], np.float64), np.array(prior["beta"], np.float64)


def _log(wheel: Path, policy: str, campaign: str) -> pa.Table:
    if campaign not in CAMPAIGNS:
        raise RefusalError(f"campaign: got {campaign!r}; allowed: {', '.join(CAMPAIGNS)}.")
    wanted = ["item_id", "position", "click", "propensity_score", *CONTEXT]
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"obp/dataset/obd/{policy}/{campaign}/{campaign}.csv") as csv,
        ):
            return pa_csv.read_csv(csv, convert_options=pa_csv.ConvertOptions(include_columns=wanted))
    except (OSError, KeyError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise RefusalError(f"wheel: got {wheel}, which fails with {error}; allowed: the wheel of obp 0.4.1.") from error


def _integers(log: pa.Table, name: str) -> Int64s:
    return np.asarray(pc.cast(log.column(name), pa.int64()).to_numpy(), np.int64)


def _lists(value_NA: np.ndarray) -> pa.ListArray:
    rows, width = value_NA.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), pa.array(value_NA.ravel()))


def main() -> None:
    """Entry point: writes one campaign's table as Parquet."""
    parser = argparse.ArgumentParser(description="Open Bandit logs as a table for millrace evaluate policy.")
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--campaign", choices=CAMPAIGNS, required=True)
    parser.add_argument("--target", type=Target, choices=list(Target), default=Target.SHOWN)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table = open_bandit_table(args.wheel, args.campaign, args.target, np.random.default_rng(args.seed))
    pq.write_table(table, args.out)


if __name__ == "__main__":
    run(main)
