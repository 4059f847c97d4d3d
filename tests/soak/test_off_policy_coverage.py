"""How often 95% intervals cover the truth where rewards are rare and weights skewed, as in Open Bandit's logs.

The policies are the real ones; clicks are simulated at the published click rate of each item, so the value is known.
Shapes: N rows, A items, P positions.
"""

import numpy as np
import pytest

from infra.data_wheels import data_wheel
from models.off_policy import estimate, ips, snips
from models.off_policy.open_bandit import Target, prior_click_rates, prior_policy, shown_policy

SEEDS = 200
ROWS = 10_000


@pytest.mark.soak
@pytest.mark.parametrize(
    ("campaign", "target", "least"),
    [("all", Target.PRIOR, 165), ("women", Target.PRIOR, 172), ("all", Target.SHOWN, 179)],
)
def test_intervals_of_rare_clicks_cover_the_truth(campaign: str, target: Target, least: int) -> None:
    """With about 7, 9 and 12 effective clicks: 177, 183 and 187 of 200 are expected, less two standard errors."""
    wheel = data_wheel("obp")
    rate_A = prior_click_rates(wheel, campaign)
    prior = target is Target.PRIOR
    chance_AP = prior_policy(wheel, campaign, np.random.default_rng(0)) if prior else shown_policy(wheel, campaign)
    value = (chance_AP * rate_A[:, None]).sum(axis=0).mean()
    covered = {"ips": 0, "snips": 0}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        item_N, position_N = rng.integers(len(rate_A), size=ROWS), rng.integers(chance_AP.shape[1], size=ROWS)
        click_N = (rng.random(ROWS) < rate_A[item_N]).astype(np.float64)
        weight_N = chance_AP[item_N, position_N] * len(rate_A)
        for name, terms in (("ips", ips(click_N, weight_N)), ("snips", snips(click_N, weight_N))):
            found = estimate(terms, weight_N, np.arange(ROWS), rng, rounds=300)
            covered[name] += found.low <= value <= found.high
    assert min(covered.values()) >= least, covered
