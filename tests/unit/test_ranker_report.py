"""The report: intervals against copied rows, what the comparisons say, and what the single-task nets may cost."""

from dataclasses import replace

import numpy as np
import pytest

from models.metrics import auc, gauc, log_loss
from models.ranker.evaluation import Scores, slate_ndcg
from models.ranker.export import export
from models.ranker.intervals import UserDraws
from models.ranker.report import report_on
from models.ranker.scorer import Ranker
from models.ranker.single_task import budget
from models.ranker.training import Data, predict, train_ranker
from models.ranker_inputs import HEADS
from models.splits import SplitError, time_split, user_draw
from models.train_ranker import Fitted, calibrate, comparisons, export_samples, shipped_rows
from tests.ranker_examples import CONFIG, small

DRAW_OF_USER_0 = 0.44911386224110095
"""Fixed, since another would part the users otherwise than the champion's run did."""
NAN = float("nan")


def copied(draws: UserDraws, user_N: np.ndarray, statistic: object) -> tuple[float, float]:
    """The interval from rows copied as often as their user was drawn, each copy of a user a user of its own."""
    values = []
    for times_U in draws.times_BU:
        rows, copies = [], []
        for user, times in enumerate(times_U):
            for _ in range(times):
                rows.append(np.flatnonzero(user_N == user))
                copies.append(np.full(len(rows[-1]), len(copies)))
        values.append(statistic(np.concatenate(rows), np.concatenate(copies)))  # type: ignore[operator]
    low, high = np.quantile([value for value in values if np.isfinite(value)], [0.025, 0.975])
    return float(low), float(high)


def test_intervals_are_those_of_copied_rows() -> None:
    rng = np.random.default_rng(0)
    user_N = np.concatenate([np.arange(12), rng.integers(12, size=148)])
    request_N = user_N * 3 + rng.integers(3, size=160)
    label_N = np.where(rng.random(160) < 0.2, NAN, rng.random(160) < 0.4)
    score_N = np.round(np.nan_to_num(label_N) + rng.normal(size=160), 1)  # with ties
    probability_N, gain_N = 1 / (1 + np.exp(-score_N)), np.nan_to_num(label_N)
    draws = UserDraws(user_N, seed=1, rounds=40)

    def on_defined(rows: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        defined = ~np.isnan(label_N[rows])
        return rows[defined], copies[defined]

    def auc_of(rows: np.ndarray, copies: np.ndarray) -> float:
        rows, _ = on_defined(rows, copies)
        return auc(label_N[rows] > 0, score_N[rows])

    def gauc_of(rows: np.ndarray, copies: np.ndarray) -> float:
        rows, copies = on_defined(rows, copies)
        return gauc(label_N[rows] > 0, score_N[rows], copies)

    def loss_of(rows: np.ndarray, copies: np.ndarray) -> float:
        rows, _ = on_defined(rows, copies)
        return log_loss(label_N[rows], probability_N[rows])

    def ndcg_of(rows: np.ndarray, copies: np.ndarray) -> float:
        return slate_ndcg(gain_N[rows], score_N[rows], copies * 100 + request_N[rows])

    every = np.arange(160)
    for interval, statistic in (
        (draws.auc(label_N, score_N), auc_of),
        (draws.gauc(label_N, score_N), gauc_of),
        (draws.log_loss(label_N, probability_N), loss_of),
        (draws.ndcg(gain_N, score_N, request_N), ndcg_of),
    ):
        assert interval.value == pytest.approx(statistic(every, user_N))
        assert (interval.low, interval.high) == pytest.approx(copied(draws, user_N, statistic))
        assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("label_N", [np.empty(0), np.full(3, NAN), np.ones(3)])
def test_intervals_of_what_cannot_be_told_are_nan(label_N: np.ndarray) -> None:
    draws, score_N = UserDraws(np.arange(len(label_N)), seed=0, rounds=5), np.zeros(len(label_N))
    for interval in (draws.auc(label_N, score_N), draws.gauc(label_N, score_N)):
        assert np.isnan([interval.value, interval.low, interval.high]).all()


def test_a_score_that_is_missing_counts_at_the_training_rate() -> None:
    said_NT = np.full((2, len(HEADS)), 0.5)
    said_NT[:, 1] = NAN
    scores = Scores(served_NT=said_NT, logged_NT=said_NT)
    value_N = scores.value(np.full(len(HEADS), 0.2), {"click": 1.0, "completion": 1.0})
    assert value_N == pytest.approx([0.7, 0.7])
    assert scores.has(0) and not scores.has(1)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    case = small()
    data = Data.of(case.examples, case.rows["train"], case.rows["validation"])
    trained = train_ranker(data, case.layout, CONFIG, seed=0)
    validation = case.rows["validation"]
    calibration = calibrate(predict(trained.network, data.inputs, validation), case.examples.label_NT[validation])
    return Fitted(data=data, layout=case.layout, trained=trained, calibration=calibration)


def test_the_report_sets_every_model_beside_the_ranker(
    fitted: Fitted, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case, path = small(), tmp_path_factory.mktemp("report") / "ranker.onnx"
    export(fitted.trained.network, path, export_samples(case.examples, case.rows["validation"]))
    ranker = Ranker.load(path, case.layout, fitted.calibration)
    others, told = comparisons(case.examples, fitted, CONFIG, case.rows, seed=0)
    report = report_on(case.examples, ranker, others, case.rows, seed=0)
    click = report["heads"]["click"]
    for said in (click, click["lightgbm"], click["single_task"], click["popularity"]):
        for name in ("auc", "gauc", "log_loss"):
            low, high = said[f"{name}_interval"]
            assert low <= said[name] <= high and high - low < 0.3
    assert click["auc"] > click["popularity"]["auc"] + 0.05
    assert click["log_loss"] < click["training_rate"]["log_loss"]
    assert set(report["slate_ndcg"]) == {"millrace", "lightgbm", "single_task", "popularity", "as_shown"}
    assert report["slate_ndcg"]["millrace"] > report["slate_ndcg"]["popularity"]
    low, high = report["slate_ndcg_interval"]["millrace"]
    assert low < report["slate_ndcg"]["millrace"] < high
    assert set(told) == set(HEADS)


@pytest.mark.parametrize("share", [0.05, 0.3, 3.0])
def test_single_task_nets_stay_within_their_budget(fitted: Fitted, share: float) -> None:
    trained_on = len(fitted.trained.epochs) * len(fitted.data.train_rows)
    parts = budget(fitted.data, fitted.trained, CONFIG.model_copy(update={"single_task_share": share}), seed=0)
    assert sum(len(part.train_rows) * epochs for part, epochs in parts) <= share * trained_on
    for t, (part, epochs) in enumerate(parts):
        assert 1 <= epochs <= CONFIG.epochs
        assert not part.label_NT[part.train_rows].isnan().any(), HEADS[t]
        assert set(part.train_rows) <= set(fitted.data.train_rows)


def test_the_rows_of_what_is_shipped_part_the_users_alike_in_every_run() -> None:
    examples = small().examples
    split = time_split(examples.time_ms_N)
    rows = shipped_rows(examples, split)
    users = {name: set(examples.user_N[part].tolist()) for name, part in rows.items()}
    assert not users["train"] & users["validation"] and not users["train"] & users["test"]
    assert not users["validation"] & users["test"]
    assert examples.time_ms_N[rows["train"]].max() >= split.test_start_ms, "the newest examples teach, too"
    assert examples.time_ms_N[rows["test"]].min() >= split.validation_start_ms
    known = replace(examples, user_draw_N=np.full(len(examples), 0.5))
    with pytest.raises(SplitError, match="no example of 50 users is in the part validation"):
        shipped_rows(known, split)


def test_a_draw_is_the_users_own_and_spreads_evenly() -> None:
    draws = np.array([user_draw(f"user-{k:05}") for k in range(20_000)])
    assert user_draw("user-00000") == draws[0] == pytest.approx(DRAW_OF_USER_0, abs=1e-15)
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert counts.sum() == 20_000 and counts.min() > 900 and counts.max() < 1_100
