"""ALS as the paper writes it, in plain NumPy: slow, readable, and the judge of the fast one.

Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008.
Shapes: U users, I items, D width.
"""

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]


def solve_rows(confidence_UI: Float64s, factors_ID: Float64s, regularization: float) -> Float64s:
    """The factors `[U, D]` of each row with the other side fixed. A row without interactions gets zeros.

    Minimises sum over all pairs of c (p - x·y)^2 + regularization |x|^2, where p is 1 and c the confidence on the
    observed pairs, p is 0 and c 1 elsewhere.
    """
    width = factors_ID.shape[1]
    out_UD = np.zeros((len(confidence_UI), width))
    for u, confidence_I in enumerate(confidence_UI):
        observed_I = confidence_I > 0
        weight_I = np.where(observed_I, confidence_I, 1.0)
        # Xu = (YtCuY + regularization * I)^-1 YtCuPu
        left_DD = factors_ID.T @ (weight_I[:, None] * factors_ID) + regularization * np.eye(width)
        out_UD[u] = np.linalg.solve(left_DD, factors_ID.T @ (weight_I * observed_I))
    return out_UD


def factorise(
    confidence_UI: Float64s, user_UD: Float64s, item_ID: Float64s, regularization: float, epochs: int
) -> tuple[Float64s, Float64s]:
    """Alternates users and items from the given start; returns the factors of both."""
    for _ in range(epochs):
        user_UD = solve_rows(confidence_UI, item_ID, regularization)
        item_ID = solve_rows(confidence_UI.T, user_UD, regularization)
    return user_UD, item_ID
