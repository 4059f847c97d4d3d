"""ALS by a few steps of conjugate gradients a row (Takacs, Pilaszy and Tikk, RecSys 2011), all rows in step.

1. The part of the quadratic form that rows share, `unobserved_weight * YtY`, is one matrix product for all rows.
2. What a row's own interactions and regularisation add is a compiled loop over them.

Shapes: U rows solved, I rows of the other side, D width, N observed pairs, B bounds of the parts that threads take.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy import sparse

from models.als import AlsConfig, Factors, Float32s, row_regularization, start

log = logging.getLogger(__name__)

PARTS = 64
"""Pieces of about equally many interactions that the threads share."""
SOLVED = np.float32(1e-20)
"""Squared residual below which a row is left alone."""


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One side's interactions, as its rows see them."""

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    confidence_N: Float32s
    above_N: Float32s
    """Confidence above the unobserved weight."""
    regularization_U: Float32s
    bounds_B: npt.NDArray[np.int64]

    @staticmethod
    def of(weight_UI: "sparse.csr_matrix[Any]", config: AlsConfig) -> "_Side":
        rows, columns = weight_UI.shape
        indptr = weight_UI.indptr.astype(np.int64)
        confidence_N = np.asarray(config.alpha * weight_UI.data, np.float32)
        bounds_B = np.searchsorted(indptr, np.linspace(0, indptr[-1], PARTS + 1)).astype(np.int64)
        bounds_B[0], bounds_B[-1] = 0, rows
        return _Side(
            indptr=indptr,
            indices=weight_UI.indices.astype(np.int64),
            confidence_N=confidence_N,
            above_N=confidence_N - np.float32(config.unobserved_weight),
            regularization_U=row_regularization(np.diff(indptr), columns, config),
            bounds_B=bounds_B,
        )


def factorise(weight_UI: "sparse.csr_matrix[Any]", config: AlsConfig, seed: int) -> Factors:
    """Alternates users and items from a random start."""
    rng = np.random.default_rng(seed)
    user_UD, item_ID = (start(rows, config, rng) for rows in weight_UI.shape)
    users, items = _Side.of(weight_UI, config), _Side.of(weight_UI.T.tocsr(), config)
    numba.set_num_threads(min(config.threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    for epoch in range(config.epochs):
        _solve(users, user_UD, item_ID, config)
        _solve(items, item_ID, user_UD, config)
        log.debug("epoch %d of %d", epoch + 1, config.epochs)
    return Factors(user_UD=user_UD, item_ID=item_ID)


def _solve(side: _Side, factors_UD: Float32s, other_ID: Float32s, config: AlsConfig) -> None:
    """Moves each row of `factors_UD` by `cg_steps` towards its solution with the other side fixed. In place.

    The rows' systems are A x = b with A = YtCuY + l * I and b = YtCuPu.
    """
    gram_DD = np.float32(config.unobserved_weight) * (other_ID.T @ other_ID)

    def missing(vector_UD: Float32s, confidence_N: Float32s) -> Float32s:
        """b - A v, with the confidence that b has."""
        rest_UD: Float32s = vector_UD @ -gram_DD - side.regularization_U[:, None] * vector_UD
        _add_own(side.indptr, side.indices, confidence_N, side.above_N, vector_UD, other_ID, rest_UD, side.bounds_B)
        return rest_UD

    residual_UD = missing(factors_UD, side.confidence_N)
    direction_UD, squared_U = residual_UD.copy(), _dot(residual_UD, residual_UD)
    nothing_N = np.zeros_like(side.confidence_N)
    for _ in range(config.cg_steps):
        applied_UD = -missing(direction_UD, nothing_N)
        curvature_U = _dot(direction_UD, applied_UD)
        length_U = np.where(squared_U > SOLVED, squared_U / np.maximum(curvature_U, SOLVED), 0)
        factors_UD += length_U[:, None] * direction_UD
        residual_UD -= length_U[:, None] * applied_UD
        before_U, squared_U = squared_U, _dot(residual_UD, residual_UD)
        direction_UD *= (squared_U / np.maximum(before_U, SOLVED))[:, None]
        direction_UD += residual_UD
    factors_UD[np.diff(side.indptr) == 0] = 0


def _dot(one_UD: Float32s, other_UD: Float32s) -> Float32s:
    dot_U: Float32s = np.einsum("ud,ud->u", one_UD, other_UD)
    return dot_U


@numba.njit(parallel=True, fastmath=True, cache=True)
def _add_own(indptr, indices, confidence_N, above_N, x_UD, y_ID, out_UD, bounds_B):  # type: ignore[no-untyped-def]
    """Adds a row's own part of b - A x to it: (confidence - above * x.y) y for each of its pairs."""
    width = x_UD.shape[1]
    for part in numba.prange(len(bounds_B) - 1):
        for u in range(bounds_B[part], bounds_B[part + 1]):
            x_D, out_D = x_UD[u], out_UD[u]
            for n in range(indptr[u], indptr[u + 1]):
                y_D = y_ID[indices[n]]
                score = np.float32(0)
                for d in range(width):
                    score += y_D[d] * x_D[d]
                scale = confidence_N[n] - above_N[n] * score
                for d in range(width):
                    out_D[d] += scale * y_D[d]
