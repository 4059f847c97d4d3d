"""Off-policy estimates on real logs: from the random policy's clicks to Thompson sampling's, in the wheel of `obp`.

Both policies ran side by side for a week; each has 10,000 rows a campaign, of which 38 to 69 are clicks.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.data_wheels import data_wheel
from infra.settings import ROOT
from models.off_policy import evaluate_policy
from models.off_policy.open_bandit import (
    CAMPAIGNS,
    Target,
    on_policy_clicks,
    open_bandit_table,
    prior_policy,
    shown_policy,
)
from models.off_policy.table import policy_log

CLICKS = {"all": 42, "men": 69, "women": 46}
ESTIMATORS = ("ips", "snips", "dr")
EFFECTIVE_SAMPLES = {
    ("all", Target.PRIOR): 1_644,
    ("men", Target.PRIOR): 2_480,
    ("women", Target.PRIOR): 1_956,
    ("all", Target.SHOWN): 2_639,
    ("men", Target.SHOWN): 2_869,
    ("women", Target.SHOWN): 3_492,
}


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The wheel that `infra/requirements/data.txt` locks."""
    return data_wheel("obp")


@pytest.mark.parametrize("target", [Target.SHOWN, pytest.param(Target.PRIOR, marks=pytest.mark.soak)])
@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_the_interval_covers_what_thompson_sampling_really_got(wheel: Path, campaign: str, target: Target) -> None:
    rate = float(on_policy_clicks(wheel, campaign).mean())
    assert rate == CLICKS[campaign] / 10_000
    table = open_bandit_table(wheel, campaign, target, np.random.default_rng(0))
    report = evaluate_policy(policy_log(table), seed=0)
    for name in ESTIMATORS:
        found = report.estimates[name]
        assert found.low <= rate <= found.high, f"{campaign} {name}: {found} misses {rate}"
        assert found.ess == pytest.approx(EFFECTIVE_SAMPLES[campaign, target], rel=0.02)
        assert found.samples == 10_000
    assert report.unsupported_share == pytest.approx(0, abs=1e-9)
    assert report.mean_weight.value == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_the_published_prior_is_not_the_policy_that_ran(wheel: Path, campaign: str) -> None:
    """The prior is where the week began, and the policy learned on: a third to a half of what it showed differs."""
    prior_AP, shown_AP = prior_policy(wheel, campaign, np.random.default_rng(0)), shown_policy(wheel, campaign)
    distance_P = np.abs(prior_AP - shown_AP).sum(axis=0) / 2
    assert 0.25 < distance_P.min() < distance_P.max() < 0.55
    for chance_AP in (prior_AP, shown_AP):
        assert chance_AP.sum(axis=0) == pytest.approx(1)


def test_the_command_says_the_same_of_the_table_on_disk(wheel: Path, tmp_path: Path) -> None:
    table = open_bandit_table(wheel, "men", Target.SHOWN, np.random.default_rng(0))
    pq.write_table(table, tmp_path / "men.parquet")
    command = [sys.executable, "-m", "infra.cli", "evaluate", "policy", "--logs", str(tmp_path / "men.parquet")]
    command += ["--out", str(tmp_path / "men.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "men.json").read_text())
    for name, value in (("ips", 0.00566), ("snips", 0.00574), ("dr", 0.00573)):
        assert written[name]["value"] == pytest.approx(value, abs=0.00002)
        assert written[name]["low"] < CLICKS["men"] / 10_000 < written[name]["high"]
