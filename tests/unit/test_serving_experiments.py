"""Who is in which arm: deterministic, uniform, independent between salts, and stable when shares change."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2, chi2_contingency

from infra.settings import ROOT
from models.refusal import RefusalError
from serving import ranking_pb2 as pb
from serving.arms import MILLRACE, POPULAR, RANDOM, Arm
from serving.experiments import Experiments
from serving.experiments_file import read_experiments
from serving.query import RequestError, rank_query, recommend_query
from serving.rerank import RerankConfig
from serving.traffic import BUCKETS, UNASSIGNED, TrafficError, arm_of_bucket, bucket_of

USERS = [f"user-{k:05d}" for k in range(20_000)]
EXAMPLE = ROOT / "infra" / "serving" / "experiments.toml"

TWO_ARMS = """
[[experiments]]
name = "likes"
salt = "likes-1"
[[experiments.arms]]
name = "control"
share = 0.25
[[experiments.arms]]
name = "more"
share = 0.25
"""


def _read(tmp_path: Path, text: str) -> Experiments:
    file = tmp_path / "experiments.toml"
    file.write_text(text)
    return read_experiments(file).at(0)


def test_buckets_are_the_first_bits_of_sha_256() -> None:
    # printf 'salt\0user' | sha256sum: ee636e347794429…, and 0xee636e347794429 / 2^64 is 0.93120…
    assert bucket_of("salt", "user") == 9312
    assert {bucket_of("s", user) for user in USERS} <= set(range(BUCKETS))


@pytest.mark.parametrize("salt", ["likes-1", "likes-2", "holdout", ""])
def test_users_are_spread_evenly(salt: str) -> None:
    counts = np.bincount([bucket_of(salt, user) * 100 // BUCKETS for user in USERS], minlength=100)
    statistic = float(((counts - 200) ** 2 / 200).sum())
    assert statistic < chi2.ppf(1 - 1e-4, df=99)


@pytest.mark.parametrize(("one", "other"), list(combinations(["likes-1", "likes-2", "shadow"], 2)))
def test_salts_are_independent(one: str, other: str) -> None:
    table = np.zeros((10, 10))
    for user in USERS:
        table[bucket_of(one, user) * 10 // BUCKETS, bucket_of(other, user) * 10 // BUCKETS] += 1
    assert chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize(
    "shares",
    [(5000, 5000), (9000, 1000), (1000, 9000), (3334, 3333, 3333), (8000, 1000, 1000), (2500,) * 4, (2000,) * 5, (1,)],
)
def test_each_arm_gets_exactly_its_share(shares: tuple[int, ...]) -> None:
    got = np.bincount(np.array(_arms_of(shares)) + 1, minlength=len(shares) + 1)
    assert tuple(got[1:]) == shares and got[0] == BUCKETS - sum(shares)


def _arms_of(shares: tuple[int, ...], starts: tuple[int | None, ...] | None = None) -> tuple[int, ...]:
    return arm_of_bucket([f"a{k}" for k in range(len(shares))], shares, starts or (None,) * len(shares))


def test_a_changed_share_moves_only_whom_it_must() -> None:
    rng = np.random.default_rng(0)
    changes = 0
    while changes < 300:
        shares = rng.integers(0, 2_000, rng.integers(2, 6))
        grown = shares.copy()
        arm = int(rng.integers(len(shares)))
        grown[arm] += rng.integers(1, 1_000)
        try:
            before, after = (np.array(_arms_of(tuple(map(int, each)))) for each in (shares, grown))
        except TrafficError:
            continue
        changes += 1
        moved = before != after
        assert (before[before == arm] == after[before == arm]).all(), "a user left an arm that grew"
        if arm == 0:
            assert set(before[moved]) == {UNASSIGNED} and moved.sum() == grown[0] - shares[0]
            continue
        assert set(before[moved]) <= {UNASSIGNED, 0}, "a user left an arm that did not change"
        assert set(after[moved]) <= {arm, 0}
        assert (after == arm).sum() - (before == arm).sum() == (moved & (after == arm)).sum()


def test_a_full_split_moves_exactly_the_difference() -> None:
    before, after = np.array(_arms_of((9000, 1000))), np.array(_arms_of((8000, 2000)))
    assert (before != after).sum() == 1000 and set(before[before != after]) == {0}


def test_another_arm_at_the_end_moves_no_other_treatment() -> None:
    before, after = np.array(_arms_of((4000, 1000, 1000))), np.array(_arms_of((3000, 1000, 1000, 1000)))
    for arm in (1, 2):
        assert ((before == arm) == (after == arm)).all()


@pytest.mark.parametrize(
    ("shares", "starts", "words"),
    [
        ((9000, 1001), (None, None), "the shares sum to 1.0001; allowed: at most 1"),
        ((0, 6000, 100), (None, None, None), "the arm a2 takes from 0.5 to 0.51 and meets the arm a1"),
        ((0, 100, 100), (None, 9950, 0), "the arm a1 takes from 0.995 to 1.005 and meets the end"),
        ((100, 100), (5, None), "a0, the first arm, is the control"),
        ((1,) * 17, (None,) * 17, "got 17 arms; allowed: at most 16"),
    ],
)
def test_splits_that_cannot_be(shares: tuple[int, ...], starts: tuple[int | None, ...], words: str) -> None:
    with pytest.raises(TrafficError, match=words):
        _arms_of(shares, starts)


def test_sixteen_arms_have_room() -> None:
    assert np.bincount(_arms_of((625,) * 16)).tolist() == [625] * 16


# The file.


def test_the_example_says_what_it_shows() -> None:
    found = read_experiments(EXAMPLE)
    assert found.holdout is not None and found.declared and found.shadow is None
    assert found.bundle_ids == frozenset()
    settings = [arm for experiment in found.declared for arm in experiment.arms]
    assert any(arm.rerank for arm in settings) and any(arm.value_weights for arm in settings)
    assert any(arm.quotas != MILLRACE.quotas for arm in settings)


def test_users_get_their_arms_and_keep_them(tmp_path: Path) -> None:
    found = _read(tmp_path, TWO_ARMS)
    names = [found.assigned(user).name for user in USERS]
    for name, share in {"likes/control": 0.25, "likes/more": 0.25, "millrace": 0.5}.items():
        assert names.count(name) / len(names) == pytest.approx(share, abs=0.02)
    assert names == [found.assigned(user).name for user in USERS]
    assert found.assigned("") is MILLRACE


def test_the_holdout_is_in_no_experiment_and_keeps_its_users(tmp_path: Path) -> None:
    def held(share: float, salt: str) -> set[str]:
        experiment = TWO_ARMS.replace("0.25", "0.5").replace("likes-1", salt)
        found = _read(tmp_path, f'[holdout]\nshare = {share}\nsalt = "h"\n{experiment}')
        return {user for user in USERS[:4_000] if found.assigned(user) is MILLRACE}

    first = held(0.05, "one")
    assert len(first) == pytest.approx(200, abs=60)
    assert held(0.05, "two") == first < held(0.1, "three")


def test_a_user_is_in_the_first_experiment_that_takes_them(tmp_path: Path) -> None:
    second = TWO_ARMS.replace("likes", "later")
    alone, both = _read(tmp_path, TWO_ARMS), _read(tmp_path, TWO_ARMS + second)
    names = {user: both.assigned(user).name for user in USERS[:4_000]}
    assert all(names[user] == alone.assigned(user).name for user in names if alone.assigned(user) is not MILLRACE)
    later = sum(name.startswith("later/") for name in names.values())
    assert later / len(names) == pytest.approx(0.25, abs=0.03)


def test_experiments_run_from_start_to_end(tmp_path: Path) -> None:
    times = "start = 1970-01-01T00:00:01Z\nend = 1970-01-01T01:00:02+01:00\n[[experiments.arms]]"
    found = _read(tmp_path, TWO_ARMS.replace("[[experiments.arms]]", times, 1))
    assert [bool(found.at(instant_ms).running) for instant_ms in (999, 1_000, 1_999, 2_000)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert found.assigned(USERS[0]) is MILLRACE and "likes/more" in found.arms


def test_an_arm_has_settings_of_its_own(tmp_path: Path) -> None:
    settings = (
        'bundle = "b1"\nvalue_weights = { like = 2 }\nrerank = { epsilon = 0.1 }\nquotas = { als = 0, popular = 9 }\n'
    )
    found = _read(tmp_path, TWO_ARMS + settings)
    arm = found.arms["likes/more"]
    assert (arm.bundle_id, arm.value_weights, arm.rerank) == ("b1", {"like": 2.0}, RerankConfig(epsilon=0.1))
    assert "als" not in arm.quotas and arm.quotas["popular"] == 9
    assert arm.quotas["content"] == MILLRACE.quotas["content"]
    assert found.bundle_ids == {"b1"}
    other = found.arms["likes/control"]
    assert other == Arm(name="likes/control", quotas=MILLRACE.quotas)


ARM = '[[experiments.arms]]\nname = "more"\nshare = 0.25\n'
MANY_BUNDLES = [f'[[experiments.arms]]\nname = "a{k}"\nshare = 0.01\nbundle = "b{k}"\n' for k in range(7)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("share = 0.25", "share = 0.9", "experiment likes: the shares sum to 1.8; allowed: at most 1"),
        ("share = 0.25", "share = -0.1", "arm control: got -0.1; allowed: 0 to 1 in steps of 0.0001"),
        ("share = 0.25", "share = 0.00005", "got 5e-05; allowed: 0 to 1 in steps of 0.0001"),
        ("share = 0.25", "share = nan", "finite number"),
        (ARM, ARM + 'bundle = "../x"', "experiments.0.arms.1.bundle: string should match pattern"),
        (ARM, ARM + "color = 1", "unknown key experiments.0.arms.1.color"),
        (ARM, ARM + "quotas = { telepathy = 3 }", "unknown source telepathy; allowed: als, "),
        (ARM, ARM + "quotas = { als = -1 }", "quotas.als: input should be greater than or equal to 0"),
        (ARM, ARM + "value_weights = { joy = 3 }", "value weight for 'joy'; allowed heads: click, "),
        (ARM, ARM + "rerank = { epsilons = 3 }", "unknown rerank setting epsilons; allowed: "),
        (ARM, ARM + "rerank = { epsilon = 3 }", "rerank.*epsilon=3.0.*allowed: 0 to 1"),
        (ARM, ARM + 'rerank = { epsilon = "x" }', "experiment likes: rerank.epsilon: Input should be a valid number"),
        (ARM, ARM + ARM, "the name of two arms is 'more'"),
        (ARM, ARM + TWO_ARMS, "the name of two experiments is 'likes'"),
        (ARM, ARM + TWO_ARMS.replace('"likes"', '"other"'), "the salt of two draws is 'likes-1'"),
        ('name = "likes"', 'name = "Likes"', "experiments.0.name: string should match pattern"),
        ('salt = "likes-1"\n', "", "experiments.0.salt: field required"),
        ('"likes-1"\n', '"likes-1"\nstart = 2026-01-01T00:00:00\n', "start: input should have timezone"),
        ('"likes-1"\n', '"l"\nstart = 2026-01-02T00:00:00Z\nend = 2026-01-01T00:00:00Z\n', "is not after start"),
        ("[[experiments]]", "[[experiments]", "cannot be read"),
        (ARM, "".join(MANY_BUNDLES), "got 7 bundles; allowed: at most 6"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in TWO_ARMS
    with pytest.raises(RefusalError, match=words) as refused:
        _read(tmp_path, TWO_ARMS.replace(old, new))
    assert "experiments.toml" in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match="cannot be read"):
        read_experiments(tmp_path / "none.toml")


# Requests.


def test_a_request_gets_its_users_arm_or_the_one_that_it_names(tmp_path: Path) -> None:
    found = _read(tmp_path, TWO_ARMS.replace("0.25", "0.5"))
    user = USERS[0]
    own = recommend_query(pb.RecommendRequest(user_id=user, count=1), "r", found).arm
    assert own is found.assigned(user) is not MILLRACE
    assert rank_query(pb.RankRequest(user_id=user, item_ids=["i"]), "r", found).arm is own
    for named in ("likes/control", "likes/more", "popular", "random", "millrace"):
        asked = pb.RecommendRequest(user_id=user, count=1, experiment_arm=named)
        assert recommend_query(asked, "r", found).arm.name == named
    with pytest.raises(RequestError, match=r"experiment_arm: got 'likes/none'; allowed: .*likes/control, likes/more"):
        recommend_query(pb.RecommendRequest(count=1, experiment_arm="likes/none"), "r", found)


@pytest.mark.parametrize("arm", [MILLRACE, POPULAR, RANDOM, Arm(name="e/a", quotas={"als": 3}, bundle_id="b")])
def test_an_effective_arm_survives_json(arm: Arm) -> None:
    import json

    effective = arm.effective("champion", {"click": 1.0, "like": 0.5}, RerankConfig(epsilon=0.3))
    assert effective.bundle_id == "champion" and effective.rerank == RerankConfig(epsilon=0.3)
    for each in (arm, effective):
        back = Arm.from_json(json.loads(json.dumps(each.to_json())))
        assert back == each and back.uniform == (arm is RANDOM)
