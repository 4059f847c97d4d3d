"""Off-policy estimates against bandits whose value is known. Shapes: N rows, A actions, S seeds."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from infra.settings import ROOT
from models.off_policy import (
    Choices,
    PolicyLog,
    clipped,
    doubly_robust,
    effective_sample_size,
    estimate,
    evaluate_policy,
    importance_weights,
    ips,
    read_policy_log,
    snips,
    unsupported_share,
)
from models.off_policy.reward_model import TreeConfig, cross_fit, tree_model
from models.off_policy.table import policy_log
from models.off_policy.thompson import thompson_distribution
from models.refusal import RefusalError

LOGGER_CA = np.array([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]])
TARGET_CA = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
REWARD_CA = np.array([[0.1, 0.2, 0.3, 0.6], [0.5, 0.4, 0.1, 0.2]])
"""Two contexts, equally likely: chances of the four actions, and of a click on each."""
VALUE = float((TARGET_CA * REWARD_CA).sum(axis=1).mean())


def bandit(rows: int, rng: np.random.Generator) -> PolicyLog:
    """Rows of the bandit above, each its own group."""
    context_N = rng.integers(2, size=rows)
    action_N = (rng.random((rows, 1)) < LOGGER_CA.cumsum(axis=1)[context_N]).argmax(axis=1)
    return PolicyLog(
        propensity_N=LOGGER_CA[context_N, action_N],
        target_probability_N=TARGET_CA[context_N, action_N],
        reward_N=(rng.random(rows) < REWARD_CA[context_N, action_N]).astype(np.float64),
        group_N=np.arange(rows),
        choices=Choices(
            action_N=action_N,
            context_NF=context_N[:, None].astype(np.float64),
            categorical_F=np.array([True]),
            row_M=np.repeat(np.arange(rows), 4),
            action_M=np.tile(np.arange(4), rows),
            probability_M=TARGET_CA[context_N].ravel(),
        ),
    )


def choices_of(log: PolicyLog) -> Choices:
    assert log.choices is not None
    return log.choices


def weights_of(log: PolicyLog) -> np.ndarray:
    return importance_weights(log.target_probability_N, log.propensity_N)


@pytest.fixture(scope="module")
def log() -> PolicyLog:
    return bandit(2_000, np.random.default_rng(1))


def test_the_loggers_own_policy_has_the_mean_reward(log: PolicyLog) -> None:
    weight_N = importance_weights(log.propensity_N, log.propensity_N)
    mean = pytest.approx(log.reward_N.mean(), abs=1e-12)
    assert ips(log.reward_N, weight_N).value == mean
    assert snips(log.reward_N, weight_N).value == mean


def test_worked_by_hand() -> None:
    """Weights 2 and 0.5; IPS (2 x 1 + 0.5 x 3) / 2, SNIPS the same over 2.5, DR with q = 1 at all actions."""
    reward_N, weight_N = np.array([1.0, 3.0]), importance_weights(np.array([0.5, 0.25]), np.array([0.25, 0.5]))
    ones_N = np.ones(2)
    assert ips(reward_N, weight_N).value == pytest.approx(1.75)
    assert snips(reward_N, weight_N).value == pytest.approx(1.4)
    assert doubly_robust(reward_N, weight_N, ones_N, ones_N).value == pytest.approx(1.5)
    assert ips(reward_N, clipped(weight_N, 1.0)).value == pytest.approx(1.25)


def test_intervals_cover_a_known_value_in_about_95_of_100_seeds() -> None:
    """Of 200 seeds, 95% +- three standard errors is 181 to 199."""
    covered = {"ips": 0, "snips": 0, "dr": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        drawn = bandit(500, rng)
        weight_N, choices = weights_of(drawn), choices_of(drawn)
        guess_A = np.full(4, 0.3)
        target_N = np.bincount(choices.row_M, weights=choices.probability_M * guess_A[choices.action_M])
        terms = {
            "ips": ips(drawn.reward_N, weight_N),
            "snips": snips(drawn.reward_N, weight_N),
            "dr": doubly_robust(drawn.reward_N, weight_N, guess_A[choices.action_N], target_N),
        }
        for name in covered:
            found = estimate(terms[name], weight_N, drawn.group_N, rng, rounds=200)
            covered[name] += found.low <= VALUE <= found.high
    for name, count in covered.items():
        assert 181 <= count <= 199, f"{name}: {covered}"


def test_cross_fitted_doubly_robust_covers_and_is_tighter_than_ips() -> None:
    covered, widths = 0, {"ips": 0.0, "dr": 0.0}
    for seed in range(10):
        drawn = bandit(1_500, np.random.default_rng(seed))
        report = evaluate_policy(drawn, seed=seed, rounds=200, fit=tree_model(TreeConfig(min_rows_in_leaf=30)))
        found = report.estimates
        covered += found["dr"].low <= VALUE <= found["dr"].high
        for name in widths:
            widths[name] += found[name].high - found[name].low
    assert covered >= 8
    assert widths["dr"] < 0.95 * widths["ips"]


def test_a_perfect_reward_model_is_exact_whatever_the_weights(log: PolicyLog) -> None:
    """Rewards without noise: the residuals are 0, so the weights do not matter."""
    choices = choices_of(log)
    context_N = choices.context_NF[:, 0].astype(np.int64)
    reward_N = REWARD_CA[context_N, choices.action_N]
    target_N = (TARGET_CA * REWARD_CA).sum(axis=1)[context_N]
    bad_N = np.random.default_rng(0).uniform(0, 1_000, len(log))
    assert doubly_robust(reward_N, bad_N, reward_N, target_N).value == pytest.approx(target_N.mean(), rel=1e-12)


def test_a_wrong_reward_model_leaves_doubly_robust_unbiased() -> None:
    """The mean of 100 estimates is within four standard errors of the value; the model alone is 0.13 off."""
    wrong_A = np.array([0.9, 0.1, 0.8, 0.0])
    assert (TARGET_CA @ wrong_A).mean() - VALUE > 0.13
    value_S = []
    for seed in range(100):
        drawn = bandit(500, np.random.default_rng(seed))
        choices = choices_of(drawn)
        target_N = np.bincount(choices.row_M, weights=choices.probability_M * wrong_A[choices.action_M])
        terms = doubly_robust(drawn.reward_N, weights_of(drawn), wrong_A[choices.action_N], target_N)
        value_S.append(terms.value)
    assert abs(np.mean(value_S) - VALUE) < 4 * np.std(value_S) / 10


def test_snips_moves_with_the_rewards_and_ips_does_not(log: PolicyLog) -> None:
    weight_N = weights_of(log)
    assert snips(log.reward_N + 7, weight_N).value == pytest.approx(snips(log.reward_N, weight_N).value + 7)
    assert ips(log.reward_N + 7, weight_N).value != pytest.approx(ips(log.reward_N, weight_N).value + 7)


def test_effective_samples() -> None:
    assert effective_sample_size(np.full(17, 0.3)) == pytest.approx(17)
    assert effective_sample_size(np.array([0.0, 5.0, 0.0])) == pytest.approx(1)
    assert effective_sample_size(np.array([1e-200, 1e-200])) == pytest.approx(2)
    assert effective_sample_size(np.zeros(3)) == 0


def test_a_users_rows_are_resampled_together() -> None:
    """40 users of 25 equal rows tell as much as 40 rows: the interval is about 5 times as wide as of 1,000 rows."""
    rng = np.random.default_rng(3)
    reward_N, ones_N = np.repeat(rng.normal(size=40), 25), np.ones(1_000)
    terms = ips(reward_N, ones_N)
    alone = estimate(terms, ones_N, np.arange(1_000), np.random.default_rng(0))
    grouped = estimate(terms, ones_N, np.repeat(np.arange(40), 25), np.random.default_rng(0))
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(5, rel=0.15)


def test_without_spread_the_interval_is_the_value() -> None:
    ones_N = np.ones(10)
    found = estimate(snips(ones_N, ones_N), ones_N, np.arange(10), np.random.default_rng(0))
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_few_rewarded_rows_are_told(log: PolicyLog) -> None:
    """Three rewards of equal weight are three effective rewarded rows."""
    rare_N = np.zeros(len(log))
    rare_N[:3] = 1
    report = evaluate_policy(replace(log, target_probability_N=log.propensity_N, reward_N=rare_N, choices=None))
    assert report.rewarded == pytest.approx(3)
    assert "from 3 effective rows" in report.warnings[0]


def test_no_row_is_predicted_by_a_model_that_saw_its_group(log: PolicyLog) -> None:
    grouped = replace(log, group_N=np.arange(len(log)) // 4, reward_N=np.arange(len(log), dtype=np.float64) // 4)

    def fit(_: np.ndarray, reward_N: np.ndarray, __: tuple[int, ...]):
        seen = set(reward_N)  # the reward is the group
        return lambda features_MF: np.full(len(features_MF), float(len(seen)))

    seen_N, mean_N = cross_fit(grouped, choices_of(grouped), fit, np.random.default_rng(0))
    assert set(seen_N) == {400.0}  # of 500 groups, none of the held-out fifth
    assert mean_N == pytest.approx(seen_N)


def test_what_the_logger_never_shows_is_reported(log: PolicyLog) -> None:
    """Drop the rows that show action 3: the target gives it 0.4 in the one context and 0.1 in the other."""
    choices = choices_of(log)
    kept = np.flatnonzero(choices.action_N != 3)
    pairs = np.repeat(kept * 4, 4) + np.tile(np.arange(4), len(kept))
    context_NF = choices.context_NF[kept]
    cut = PolicyLog(
        propensity_N=log.propensity_N[kept],
        target_probability_N=log.target_probability_N[kept],
        reward_N=log.reward_N[kept],
        group_N=np.arange(len(kept)),
        choices=Choices(
            action_N=choices.action_N[kept],
            context_NF=context_NF,
            categorical_F=choices.categorical_F,
            row_M=np.repeat(np.arange(len(kept)), 4),
            action_M=choices.action_M[pairs],
            probability_M=choices.probability_M[pairs],
        ),
    )
    report = evaluate_policy(cut, rounds=100)
    assert report.unsupported_share == pytest.approx(np.where(context_NF[:, 0] == 0, 0.4, 0.1).mean())
    assert any("never in the log" in warning for warning in report.warnings)
    assert evaluate_policy(log, rounds=100).unsupported_share == 0


def test_certain_rows_tell_of_unsupported_choices_without_a_list_of_actions() -> None:
    """A slate's positions that nothing was drawn for have propensity 1: all else there is unsupported."""
    assert unsupported_share(np.array([0.25, 1.0, 0.5]), np.array([1.0, 1.0, 0.5])) == pytest.approx(0.25)
    assert unsupported_share(np.array([0.25]), np.array([0.5])) is None


def test_wrong_propensities_are_told_by_the_mean_weight(log: PolicyLog) -> None:
    right, wrong = evaluate_policy(log, rounds=200), evaluate_policy(replace(log, propensity_N=log.propensity_N / 2))
    assert right.mean_weight.low <= 1 <= right.mean_weight.high
    assert not right.warnings
    assert wrong.mean_weight.value == pytest.approx(2 * right.mean_weight.value)
    assert "not 1" in wrong.warnings[0]


def test_clipping_bounds_the_weights_and_is_reported(log: PolicyLog) -> None:
    free, cut = evaluate_policy(log, rounds=100), evaluate_policy(log, clip=2.0, rounds=100)
    assert free.clipped_share == 0
    assert cut.clipped_share == pytest.approx((weights_of(log) > 2).mean())
    assert (cut.estimates["ips"].max_weight, free.estimates["ips"].max_weight) == (2.0, pytest.approx(8.0))
    assert cut.estimates["ips"].ess > free.estimates["ips"].ess
    assert cut.mean_weight == free.mean_weight


def test_the_same_seed_gives_the_same_report(log: PolicyLog) -> None:
    assert evaluate_policy(log, seed=4, rounds=50) == evaluate_policy(log, seed=4, rounds=50)


def test_thompson_sampling_of_two_actions_and_of_one_that_always_wins() -> None:
    """P(U > V) of two uniforms is 1/2; Beta(2, 1) beats a uniform with chance 2/3."""
    rng = np.random.default_rng(0)
    even_AP = thompson_distribution(np.ones(2), np.ones(2), 2, rng, draws=40_000)
    assert even_AP == pytest.approx(np.full((2, 2), 0.5), abs=0.01)
    two_thirds_AP = thompson_distribution(np.array([2.0, 1.0]), np.ones(2), 1, rng, draws=40_000)
    assert two_thirds_AP[:, 0] == pytest.approx([2 / 3, 1 / 3], abs=0.01)
    sure_AP = thompson_distribution(np.array([1e6, 1.0]), np.array([1.0, 1e6]), 2, rng, draws=1_000)
    assert sure_AP.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(RefusalError, match="2 alpha, 2 beta and 3 positions"):
        thompson_distribution(np.ones(2), np.ones(2), 3, rng)


@pytest.mark.parametrize(
    ("target", "propensity", "said"),
    [
        ([0.5], [0.0], "propensity: got 0.0"),
        ([0.5], [1.1], r"allowed: numbers in \(0, 1\]"),
        ([0.5], [float("nan")], "propensity: got nan"),
        ([-0.1], [0.5], r"target_probability: got -0.1 .* in \[0, 1\]"),
        ([], [], "at least one row"),
        ([0.5, 0.5], [0.5], "1 propensities and 2 target probabilities"),
    ],
)
def test_impossible_probabilities_are_refused(target: list[float], propensity: list[float], said: str) -> None:
    with pytest.raises(RefusalError, match=said):
        importance_weights(np.array(target), np.array(propensity))


def test_what_cannot_be_estimated_is_refused(log: PolicyLog) -> None:
    one, inf = np.ones(2), np.array([1.0, np.inf])
    with pytest.raises(RefusalError, match="reward: got 1 non-finite values of 2"):
        ips(inf, one)
    with pytest.raises(RefusalError, match="one length above 0"):
        snips(one, np.ones(3))
    with pytest.raises(RefusalError, match="clip: got -1"):
        clipped(one, -1)
    with pytest.raises(RefusalError, match="1 groups to resample"):
        estimate(ips(one, one), one, np.zeros(2, np.int64), np.random.default_rng(0))
    with pytest.raises(RefusalError, match="got 0 in every row"):
        evaluate_policy(replace(log, target_probability_N=np.zeros(len(log))))
    with pytest.raises(RefusalError, match="2 groups for 5 folds"):
        evaluate_policy(replace(log, group_N=np.arange(len(log)) % 2))


# Tables.

ROWS = {"propensity": [0.5, 0.5, 0.25], "target_probability": [0.5, 0.25, 1.0], "reward": [0, 1, 2]}
LISTS = {
    "action": ["a", "b", "a"],
    "target_actions": [["a", "b"], ["b", "c"], ["a"]],
    "target_action_probabilities": [[0.5, 0.5], [0.25, 0.75], [1.0]],
}


def test_a_table_is_read_with_groups_actions_and_context() -> None:
    context = {"context_hour": [1, None, 3], "context_device": ["tv", None, "phone"], "note": ["x", "y", "z"]}
    log = policy_log(pa.table({**ROWS, **LISTS, **context, "user_id": ["u", "v", "u"]}))
    choices = choices_of(log)
    assert log.group_N.tolist() == [0, 1, 0]
    assert choices.action_N.tolist() == [0, 1, 0]
    assert choices.row_M.tolist() == [0, 0, 1, 1, 2]
    assert choices.action_M.tolist() == [0, 1, 1, 2, 0]
    assert choices.categorical_F.tolist() == [False, True]
    np.testing.assert_array_equal(choices.context_NF, [[1, 0], [np.nan, np.nan], [3, 1]])
    # Never logged: c, which the second row's target takes with 0.75.
    assert unsupported_share(log.target_probability_N, log.propensity_N, choices) == pytest.approx(0.25)


def test_group_comes_before_user_and_rows_stand_alone_without_either() -> None:
    both = policy_log(pa.table({**ROWS, "group": [1, 1, 2], "user_id": [1, 2, 3]}))
    assert both.group_N.tolist() == [0, 0, 1]
    assert policy_log(pa.table(ROWS)).group_N.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"reward": None}, "lack the columns reward; got propensity"),
        ({"reward": [0, None, 1]}, "reward: got 1 rows of 3 that are null or not finite"),
        ({"reward": ["x", "y", "z"]}, "reward: got string; allowed: numbers"),
        ({"propensity": [0.5, 0.0, 0.5]}, "propensity: got 0.0"),
        ({"user_id": ["u", None, "v"]}, "user_id: got 1 nulls"),
        ({"action": ["a", "b", "c"]}, "got action alone"),
        ({**LISTS, "target_actions": ["a", "b", "c"]}, "target_actions: got string; allowed: a list column"),
        ({**LISTS, "target_actions": [["a"], ["b", "c"], ["a"]]}, "different lengths"),
        ({**LISTS, "target_action_probabilities": [[0.5, 0.4], [0.25, 0.75], [1.0]]}, "got the sum 0.9 and 0 more"),
        ({**LISTS, "target_action_probabilities": [[0.6, 0.4], [0.25, 0.75], [1.0]]}, "got 0.5 where .* says 0.6"),
        ({**LISTS, "target_action_probabilities": [[1.5, -0.5], [0.25, 0.75], [1.0]]}, r"numbers in \[0, 1\]"),
        ({**LISTS, "target_action_probabilities": [[None, 0.5], [0.25, 0.75], [1.0]]}, "got nulls"),
    ],
)
def test_tables_that_break_the_contract_are_refused(changed: dict[str, list | None], said: str) -> None:
    columns = {name: values for name, values in {**ROWS, **changed}.items() if values is not None}
    with pytest.raises(RefusalError, match=said):
        policy_log(pa.table(columns))


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_text("no table")
    pq.write_table(pa.table(ROWS).slice(0, 0), tmp_path / "empty.parquet")
    for name, said in (
        ("broken.parquet", "cannot be read"),
        ("absent.csv", "does not exist; give a Parquet or CSV file"),
        ("empty.parquet", "is empty; give one with rows"),
    ):
        with pytest.raises(RefusalError, match=said):
            read_policy_log(tmp_path / name)


def _millrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.cli", "evaluate", "policy", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, log: PolicyLog) -> None:
    names = ("propensity", "target_probability", "reward")
    columns = dict(zip(names, (log.propensity_N, log.target_probability_N, log.reward_N), strict=True))
    pa_csv.write_csv(pa.table(columns), tmp_path / "logs.csv")
    out = tmp_path / "new" / "metrics.json"
    done = _millrace("--logs", str(tmp_path / "logs.csv"), "--out", str(out), "--seed", "3", "--clip", "4")
    assert done.returncode == 0, done.stderr
    assert "effective samples" in " ".join(done.stdout.split())
    written = json.loads(out.read_text())
    assert {"logged", "ips", "snips", "mean_weight", "unsupported_share", "clipped_share", "warnings"} <= set(written)
    assert written["ips"].keys() == {"value", "low", "high", "ess", "samples", "max_weight"}
    assert written["ips"]["value"] == pytest.approx(ips(log.reward_N, clipped(weights_of(log), 4.0)).value)


def test_the_command_refuses_in_one_sentence(tmp_path: Path) -> None:
    pq.write_table(pa.table({"reward": [1.0]}), tmp_path / "logs.parquet")
    done = _millrace("--logs", str(tmp_path / "logs.parquet"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "lacks propensity, target_probability" in done.stderr
