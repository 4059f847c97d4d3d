"""ALS: implicit against the NumPy reference, and the fold-in against both."""

import numpy as np
import pytest
from implicit.cpu.als import AlternatingLeastSquares
from scipy import sparse

from models.als_reference import factorise, solve_rows
from models.train_sources import Feedback, SourcesConfig, fit_implicit

CONFIG = SourcesConfig(embedding_dim=12, regularization=0.3, alpha=2.5, epochs=4, threads=1)


def random_feedback(seed: int, users: int = 30, items: int = 40) -> Feedback:
    rng = np.random.default_rng(seed)
    weight_UI = np.where(rng.random((users, items)) < 0.2, rng.integers(1, 6, (users, items)), 0).astype(np.float32)
    matrix = sparse.csr_matrix(weight_UI)
    return Feedback(weight_UI=matrix, time_ms_UI=matrix.copy())


def test_implicit_agrees_with_the_reference_from_the_same_start() -> None:
    rng, matrix = np.random.default_rng(0), random_feedback(0)
    user_UD, item_ID = rng.normal(0, 0.1, (30, 8)), rng.normal(0, 0.1, (40, 8))
    fast = AlternatingLeastSquares(
        factors=8, regularization=0.5, alpha=2.0, iterations=3, use_cg=False, num_threads=1, random_state=0
    )
    fast.user_factors, fast.item_factors = user_UD.astype(np.float32), item_ID.astype(np.float32)
    fast.fit(matrix.weight_UI, show_progress=False)
    slow_UD, slow_ID = factorise(2.0 * matrix.weight_UI.toarray().astype(float), user_UD, item_ID, 0.5, 3)
    np.testing.assert_allclose(fast.user_factors, slow_UD, atol=2e-4)
    np.testing.assert_allclose(fast.item_factors, slow_ID, atol=2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_folded_in_user_gets_what_training_gives_with_items_fixed(seed: int) -> None:
    source, model = fit_implicit(random_feedback(seed), CONFIG, seed)
    strangers = random_feedback(seed + 100, users=5).weight_UI
    expected_UD = model.recalculate_user(np.arange(5), strangers)
    reference_UD = solve_rows(
        CONFIG.alpha * strangers.toarray().astype(float), source.item_factors_ID.astype(float), CONFIG.regularization
    )
    for u in range(5):
        row = strangers[u]
        folded_D = source.fold_in(row.indices.astype(np.int32), row.data)
        np.testing.assert_allclose(folded_D, expected_UD[u], atol=1e-4)
        np.testing.assert_allclose(folded_D, reference_UD[u], atol=1e-4)


def test_items_unknown_to_the_model_do_not_move_the_user() -> None:
    source, _ = fit_implicit(random_feedback(1), CONFIG, 1)
    known = source.fold_in(np.array([3, 5], np.int32), np.array([1.0, 2.0], np.float32))
    more = source.fold_in(np.array([3, 99, 5], np.int32), np.array([1.0, 9.0, 2.0], np.float32))
    np.testing.assert_array_equal(known, more)
    assert not source.fold_in(np.array([99], np.int32), np.array([1.0], np.float32)).any()


def test_a_checker_board_is_recovered() -> None:
    """Even users like even items, odd users odd ones; each is scored above every item of the other colour."""
    board = np.array([[(u + i) % 2 == 0 for i in range(20)] for u in range(20)]).astype(np.float32)
    matrix = sparse.csr_matrix(board)
    source, _ = fit_implicit(Feedback(weight_UI=matrix, time_ms_UI=matrix.copy()), CONFIG, 0)
    user_D = source.fold_in(np.array([0, 2, 4], np.int32), np.ones(3, np.float32))
    score_I = source.item_factors_ID @ user_D
    assert score_I[0::2].min() > score_I[1::2].max()


def test_the_seed_decides_the_factors() -> None:
    one, two, other = (fit_implicit(random_feedback(2), CONFIG, seed)[0].item_factors_ID for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-3
