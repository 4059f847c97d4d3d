"""ALS as the papers write it, in plain NumPy: slow, readable, and the judge of the fast ones.

Shapes: U users, I items, D width.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from models.als import AlsConfig, Factors, row_regularization, start

Float64s = npt.NDArray[np.float64]


def solve_rows(confidence_UI: Float64s, factors_ID: Float64s, config: AlsConfig) -> Float64s:
    """The factors `[U, D]` of each row with the other side fixed; confidence 0 marks a pair that is not observed."""
    items, width = factors_ID.shape
    regularization_U = row_regularization((confidence_UI > 0).sum(axis=1), items, config)
    out_UD = np.zeros((len(confidence_UI), width))
    for u, confidence_I in enumerate(confidence_UI):
        observed_I = confidence_I > 0
        weight_I = np.where(observed_I, confidence_I, config.unobserved_weight)
        # Xu = (YtCuY + l * I)^-1 YtCuPu
        left_DD = factors_ID.T @ (weight_I[:, None] * factors_ID) + regularization_U[u] * np.eye(width)
        out_UD[u] = np.linalg.solve(left_DD, factors_ID.T @ (weight_I * observed_I))
    return out_UD


def factorise(weight_UI: "sparse.csr_matrix[Any]", config: AlsConfig, seed: int) -> Factors:
    """Alternates users and items from a random start."""
    rng = np.random.default_rng(seed)
    user_UD, item_ID = (start(rows, config, rng).astype(np.float64) for rows in weight_UI.shape)
    confidence_UI = config.alpha * weight_UI.toarray().astype(np.float64)
    for _ in range(config.epochs):
        user_UD = solve_rows(confidence_UI, item_ID, config)
        item_ID = solve_rows(confidence_UI.T, user_UD, config)
    return Factors(user_UD=user_UD.astype(np.float32), item_ID=item_ID.astype(np.float32))
