"""The conformance suite of the ALS backends, and the fold-in. Spark's is tests/integration/test_als_spark.py."""

import numpy as np
import pytest
from scipy import sparse

from models.als import AlsConfig, AlsError, Backend, factorise
from models.als.reference import solve_rows
from models.sources.als import AlsSource
from models.train_sources import als_source

BACKENDS = tuple(Backend)
CONFIG = AlsConfig(embedding_dim=8, regularization=0.3, alpha=2.5, epochs=4, threads=1, cg_steps=12)
LOSSES = {
    "plain": {},
    "light unobserved": {"unobserved_weight": 0.2, "regularization": 0.05},
    "by frequency": {"frequency_exponent": 1.0, "regularization": 0.01, "unobserved_weight": 0.3},
    "by root of frequency": {"frequency_exponent": 0.5, "regularization": 0.1},
}
"""Changes to CONFIG that between them use every term of the loss."""


def random_feedback(seed: int, users: int = 30, items: int = 40) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(
        np.where(rng.random((users, items)) < 0.2, rng.integers(1, 6, (users, items)), 0).astype(np.float32)
    )


def trained(backend: Backend, weight_UI: sparse.csr_matrix, seed: int = 0, **changes: object) -> AlsSource:
    config = CONFIG.model_copy(update={"backend": backend, **changes})
    return als_source(factorise(weight_UI, config, seed), config)


def by_frequency_is_not_its_business(backend: Backend, changes: dict[str, float]) -> bool:
    return backend is Backend.IMPLICIT and bool(changes.get("frequency_exponent"))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_papers_from_the_same_start(backend: Backend, loss: str) -> None:
    matrix, config = random_feedback(1), CONFIG.model_copy(update={"backend": backend, **LOSSES[loss]})
    if by_frequency_is_not_its_business(backend, LOSSES[loss]):
        with pytest.raises(AlsError, match="take 0, or the backend ials"):
            factorise(matrix, config, 3)
        return
    found, expected = (
        factorise(matrix, one, 3) for one in (config, config.model_copy(update={"backend": "reference"}))
    )
    np.testing.assert_allclose(found.user_UD, expected.user_UD, atol=2e-3)
    np.testing.assert_allclose(found.item_ID, expected.item_ID, atol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_epoch_brings_the_loss_down(backend: Backend) -> None:
    matrix = random_feedback(4)
    losses = []
    for epochs in (1, 2, 4, 8):
        config = CONFIG.model_copy(update={"backend": backend, "epochs": epochs, "cg_steps": 3})
        losses.append(loss_of(matrix, *factorise(matrix, config, 0), config))
    assert losses == sorted(losses, reverse=True)


def loss_of(matrix: sparse.csr_matrix, user_UD: np.ndarray, item_ID: np.ndarray, config: AlsConfig) -> float:
    """The loss in the head of `models.als`, term by term; `config` regularises all rows alike."""
    total = 0.0
    for u, weight_I in enumerate(matrix.toarray()):
        for i, weight in enumerate(weight_I):
            score = float(user_UD[u] @ item_ID[i])
            total += config.alpha * weight * (1 - score) ** 2 if weight else config.unobserved_weight * score**2
    return total + config.regularization * float((user_UD**2).sum() + (item_ID**2).sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_checker_board_is_recovered(backend: Backend) -> None:
    """Even users like even items, odd users odd ones; each is scored above every item of the other colour."""
    board = sparse.csr_matrix(np.array([[(u + i) % 2 == 0 for i in range(20)] for u in range(20)]).astype(np.float32))
    source = trained(backend, board)
    user_D = source.fold_in(np.array([0, 2, 4], np.int32), np.ones(3, np.float32))
    score_I = source.item_factors_ID @ user_D
    assert score_I[0::2].min() > score_I[1::2].max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_interactions_have_zeros(backend: Backend) -> None:
    dense = random_feedback(5).toarray()
    dense[3], dense[:, 7] = 0, 0
    found = factorise(sparse.csr_matrix(dense), CONFIG.model_copy(update={"backend": backend}), 0)
    np.testing.assert_allclose(found.user_UD[3], 0, atol=1e-6)
    np.testing.assert_allclose(found.item_ID[7], 0, atol=1e-6)
    assert found.user_UD.dtype == found.item_ID.dtype == np.float32
    assert found.user_UD.shape == (30, 8) and found.item_ID.shape == (40, 8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_seed_decides_the_factors(backend: Backend) -> None:
    one, two, other = (trained(backend, random_feedback(2), seed).item_factors_ID for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", [[[0.0, 0.0]], [[1.0, -2.0]], [[np.nan, 1.0]]])
def test_weights_that_cannot_be_factorised_are_refused(backend: Backend, weights: list[list[float]]) -> None:
    with pytest.raises(AlsError, match=r"got (no interactions|weights that are not positive)"):
        factorise(sparse.csr_matrix(np.array(weights, np.float32)), CONFIG.model_copy(update={"backend": backend}), 0)


def test_threads_change_nothing() -> None:
    one, two = (trained(Backend.IALS, random_feedback(6, 200, 90), threads=n).item_factors_ID for n in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_folded_in_user_gets_what_training_gives_with_items_fixed(loss: str) -> None:
    config = CONFIG.model_copy(update={"backend": Backend.IALS, **LOSSES[loss]})
    source = als_source(factorise(random_feedback(3), config, 3), config)
    strangers = random_feedback(103, users=5)
    expected_UD = solve_rows(config.alpha * strangers.toarray().astype(float), source.item_factors_ID, config)
    again = AlsSource.from_arrays(source.to_arrays())
    for u in range(5):
        row = strangers[u]
        for served in (source, again):
            np.testing.assert_allclose(
                served.fold_in(row.indices.astype(np.int32), row.data), expected_UD[u], atol=1e-4
            )


def test_a_user_of_training_is_folded_in_to_their_own_factors() -> None:
    matrix = random_feedback(9)
    config = CONFIG.model_copy(update={"backend": Backend.IALS, "epochs": 300})
    factors = factorise(matrix, config, 0)
    source = als_source(factors, config)
    for u in range(5):
        np.testing.assert_allclose(
            source.fold_in(matrix[u].indices.astype(np.int32), matrix[u].data), factors.user_UD[u], atol=2e-3
        )


def test_items_unknown_to_the_model_do_not_move_the_user() -> None:
    source = trained(Backend.IMPLICIT, random_feedback(1))
    known = source.fold_in(np.array([3, 5], np.int32), np.array([1.0, 2.0], np.float32))
    more = source.fold_in(np.array([3, 99, 5], np.int32), np.array([1.0, 9.0, 2.0], np.float32))
    np.testing.assert_array_equal(known, more)
    assert not source.fold_in(np.array([99], np.int32), np.array([1.0], np.float32)).any()


@pytest.mark.parametrize("unobserved_weight", [0.0, 0.3, 5.0])
def test_a_folded_in_user_solves_the_normal_equations(unobserved_weight: float) -> None:
    rng = np.random.default_rng(4)
    factors_ID, width = rng.normal(size=(50, 7)).astype(np.float32), 7
    source = AlsSource(item_factors_ID=factors_ID, alpha=2.0, regularization=0.1, unobserved_weight=unobserved_weight)
    item_L, weight_L = np.array([3, 40, 8], np.int32), np.array([1.0, 0.5, 3.0], np.float32)
    confidence_I = np.full(50, unobserved_weight)
    confidence_I[item_L] = 2.0 * weight_L
    left_DD = factors_ID.T.astype(np.float64) @ (confidence_I[:, None] * factors_ID) + 0.1 * np.eye(width)
    right_D = factors_ID[item_L].T.astype(np.float64) @ (2.0 * weight_L)
    np.testing.assert_allclose(source.fold_in(item_L, weight_L), np.linalg.solve(left_DD, right_D), rtol=1e-5)


def test_a_history_that_leaves_the_factors_open_is_refused() -> None:
    source = AlsSource(item_factors_ID=np.zeros((5, 3), np.float32), alpha=1.0, regularization=0.0)
    with pytest.raises(np.linalg.LinAlgError, match="regularization"):
        source.fold_in(np.array([1], np.int32), np.ones(1, np.float32))
