"""Metrics against analytic answers and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from models.metrics import (
    auc,
    bootstrap,
    expected_calibration_error,
    gauc,
    hit_rate,
    log_loss,
    ndcg,
    recall,
    reciprocal_rank,
)


def test_a_single_relevant_item_at_rank_three() -> None:
    relevant_BK = np.array([[False, False, True, False]])
    assert hit_rate(relevant_BK) == [1.0]
    assert recall(relevant_BK, np.array([2])) == [0.5]
    assert reciprocal_rank(relevant_BK) == pytest.approx([1 / 3])
    assert ndcg(relevant_BK, np.array([1])) == pytest.approx([1 / np.log2(4)])


def test_lists_without_relevant_items_score_zero() -> None:
    relevant_BK, relevant_B = np.zeros((2, 3), bool), np.array([0, 4])
    for values in (hit_rate(relevant_BK), recall(relevant_BK, relevant_B), reciprocal_rank(relevant_BK)):
        assert values.tolist() == [0.0, 0.0]
    assert ndcg(relevant_BK, relevant_B).tolist() == [0.0, 0.0]


def test_a_perfect_list_has_ndcg_one_even_when_more_is_relevant_than_it_holds() -> None:
    assert ndcg(np.ones((1, 5), bool), np.array([9])) == pytest.approx([1.0])


def test_ndcg_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        relevant = rng.random((1, 12)) < 0.3
        relevant[0, 0] = True
        shuffled = rng.permutation(12)[None, :]
        in_order = np.take_along_axis(relevant, np.argsort(-shuffled, axis=1), axis=1)
        expected = ndcg_score(relevant.astype(float), shuffled.astype(float), k=5)
        assert ndcg(in_order[:, :5], relevant.sum(axis=1)) == pytest.approx([expected])


def test_auc_agrees_with_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        label_N, score_N = rng.random(200) < 0.3, rng.integers(0, 12, 200).astype(float)
        assert auc(label_N, score_N) == pytest.approx(roc_auc_score(label_N, score_N))


def test_gauc_is_the_weighted_mean_of_groups_that_have_both_classes() -> None:
    rng = np.random.default_rng(2)
    label_N, score_N, group_N = rng.random(300) < 0.2, rng.random(300), rng.integers(0, 40, 300)
    parts = [group_N == g for g in range(40)]
    told = [part for part in parts if 0 < label_N[part].sum() < part.sum()]
    expected = np.average(
        [roc_auc_score(label_N[part], score_N[part]) for part in told], weights=[part.sum() for part in told]
    )
    assert gauc(label_N, score_N, group_N) == pytest.approx(expected)


def test_one_class_has_no_auc() -> None:
    assert np.isnan(auc(np.ones(5, bool), np.arange(5.0)))
    assert np.isnan(auc(np.empty(0, bool), np.empty(0)))


def test_log_loss_agrees_with_scikit_learn_and_survives_certainty() -> None:
    rng = np.random.default_rng(3)
    label_N, probability_N = (rng.random(100) < 0.4).astype(float), rng.random(100)
    assert log_loss(label_N, probability_N) == pytest.approx(sklearn_log_loss(label_N, probability_N))
    assert np.isfinite(log_loss(np.array([1.0]), np.array([0.0])))


def test_calibration_error_is_the_shift_of_a_shifted_forecast() -> None:
    rng = np.random.default_rng(4)
    truth_N = rng.random(200_000) * 0.5
    label_N = (rng.random(200_000) < truth_N).astype(float)
    assert expected_calibration_error(label_N, truth_N) < 0.01
    assert expected_calibration_error(label_N, truth_N + 0.2) == pytest.approx(0.2, abs=0.01)


def test_bootstrap_of_a_mean_matches_its_standard_error_and_is_wider_for_few_groups() -> None:
    rng = np.random.default_rng(5)
    values_N = rng.normal(size=400)
    alone = bootstrap(lambda rows: float(values_N[rows].mean()), np.arange(400), np.random.default_rng(0), rounds=400)
    assert alone.value == pytest.approx(values_N.mean())
    assert (alone.high - alone.low) / 3.92 == pytest.approx(values_N.std() / 20, rel=0.15)
    repeated_N = np.repeat(values_N[:40], 10)
    groups_N = np.repeat(np.arange(40), 10)
    grouped = bootstrap(lambda rows: float(repeated_N[rows].mean()), groups_N, np.random.default_rng(0), rounds=400)
    assert (grouped.high - grouped.low) / 3.92 == pytest.approx(values_N[:40].std() / np.sqrt(40), rel=0.15)
