"""No future in the past: planted leaks are refused by name, honest examples pass, shuffled labels teach nothing."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from features.events import FUTURE_SKEW_MS
from models.examples import Examples
from models.leakage import LeakageError, check_split, check_windows, checked_histories
from models.metrics import auc
from models.ranker.training import Data, predict, train_ranker
from models.ranker_inputs import CANDIDATE_FEATURES, HEADS, USER_FEATURES
from models.train_ranker import look_for_leaks
from tests.ranker_examples import CONFIG, small


def planted(side: str, name: str, extra_N: np.ndarray) -> Examples:
    """The examples with `extra_N` added to one windowed feature."""
    examples = small().examples
    field, names = ("user_UF", USER_FEATURES) if side == "user" else ("candidate_CF", CANDIDATE_FEATURES)
    values = getattr(examples.inputs, field).copy()
    values[:, names.index(name)] += extra_N
    return replace(examples, inputs=replace(examples.inputs, **{field: values}))


def labels_of(head: str) -> np.ndarray:
    return np.nan_to_num(small().examples.label_NT[:, HEADS.index(head)])


def test_honest_examples_pass() -> None:
    case = small()
    check_windows(case.examples.inputs, case.examples.label_NT, case.rows["train"])
    assert sum(batch.num_rows for batch in checked_histories(case.lake.examples.to_batches(500))) == len(case.examples)


@pytest.mark.parametrize(
    ("side", "name", "head"),
    [
        ("candidate", "user_category_clicks_10m", "click"),
        ("candidate", "user_category_clicks_1h", "click"),
        ("candidate", "item_clicks_1h", "click"),
        ("user", "user_clicks_10m", "click"),
    ],
)
def test_a_window_that_counts_its_own_event_is_refused_by_name(side: str, name: str, head: str) -> None:
    leaking = planted(side, name, labels_of(head))
    with pytest.raises(LeakageError, match=f"feature {name} leaks"):
        check_windows(leaking.inputs, leaking.label_NT, small().rows["train"])


def test_any_feature_that_tells_the_click_too_well_is_refused_in_either_direction() -> None:
    """A mean or a rate, which no count of events gives away, with a little noise on top."""
    noise_N = np.random.default_rng(0).normal(0, 0.2, len(small().examples))
    for sign in (1, -1):
        leaking = planted("candidate", "item_ctr_7d", sign * labels_of("click") + noise_N)
        with pytest.raises(LeakageError, match="item_ctr_7d leaks: alone it orders clicks with an AUC"):
            check_windows(leaking.inputs, leaking.label_NT, small().rows["train"])


def test_a_leak_can_be_let_through_and_is_then_logged(caplog: pytest.LogCaptureFixture) -> None:
    leaking, rows = planted("user", "user_clicks_10m", labels_of("click")), small().rows["train"]
    with pytest.raises(LeakageError):
        look_for_leaks(leaking, rows, CONFIG)
    look_for_leaks(leaking, rows, CONFIG.model_copy(update={"refuse_leaks": False}))
    assert "user_clicks_10m leaks" in caplog.text


def batch(ahead_ms: list[list[int] | None]) -> pa.RecordBatch:
    t_ms = 10**12
    times = [None if row is None else [t_ms + each for each in row] for row in ahead_ms]
    columns = {"t_ms": pa.array([t_ms] * len(times)), "history_event_times_ms": pa.array(times, pa.list_(pa.int64()))}
    return pa.RecordBatch.from_pydict(columns)


@pytest.mark.parametrize("rows", [[], [None], [[]], [[-1, -2], None, [-5]], [[3_000], [-1] * 99]])
def test_a_past_history_and_one_fast_clock_in_a_hundred_pass(rows: list[list[int] | None]) -> None:
    assert len(list(checked_histories([batch(rows)]))) == 1


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[-1], [FUTURE_SKEW_MS + 1]], "ms after its impression"),
        ([[0], [-1] * 9], "1 of 10 entries are not before their impression"),
    ],
)
def test_a_history_of_the_future_is_refused(rows: list[list[int] | None], says: str) -> None:
    with pytest.raises(LeakageError, match=re.escape(says)):
        list(checked_histories([batch(rows)]))


def test_the_split_keeps_every_users_future_out_of_their_past() -> None:
    """
    train |        validation |        test
    ------+-------------------+------------>  t
    """
    case = small()
    time_ms_N, user_N = case.examples.time_ms_N, case.examples.user_N
    check_split(time_ms_N, case.rows)
    parts = [case.rows[name] for name in ("train", "validation", "test")]
    assert sorted(np.concatenate(parts)) == list(range(len(time_ms_N)))
    for user in range(user_N.max() + 1):
        own = [time_ms_N[part[user_N[part] == user]] for part in parts]
        for earlier, later in ((own[0], own[1]), (own[1], own[2]), (own[0], own[2])):
            assert not len(earlier) or not len(later) or earlier.max() < later.min()


@pytest.mark.parametrize(("later", "earlier"), [("validation", "train"), ("test", "validation")])
def test_one_example_on_the_wrong_side_of_the_split_is_refused(later: str, earlier: str) -> None:
    rows = dict(small().rows)
    rows[earlier], rows[later] = np.append(rows[earlier], rows[later][0]), rows[later][1:]
    rows[later] = np.append(rows[later], rows[earlier][-1])
    with pytest.raises(LeakageError, match=f"{earlier} reaches to"):
        check_split(small().examples.time_ms_N, rows)


def test_shuffled_labels_teach_nothing_about_later_examples() -> None:
    case = small()
    order = np.random.default_rng(0).permutation(len(case.examples))
    shuffled = replace(case.examples, label_NT=case.examples.label_NT[order])
    data = Data.of(shuffled, case.rows["train"], case.rows["validation"])
    network = train_ranker(data, case.layout, CONFIG.model_copy(update={"epochs": 2}), seed=0).network
    clicked_N = shuffled.label_NT[case.rows["test"], 0] > 0
    got = auc(clicked_N, predict(network, data.inputs, case.rows["test"])[:, 0])
    assert got == pytest.approx(0.5, abs=0.07)
