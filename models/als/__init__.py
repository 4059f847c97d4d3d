"""ALS for implicit feedback behind one interface: what is minimised, and who minimises it.

The loss of factors x (users) and y (items), after Hu, Koren and Volinsky (ICDM 2008), with the unobserved weight and
the frequency-scaled regularisation of iALS (Rendle et al., "Revisiting the Performance of iALS on Item Recommendation
Benchmarks", RecSys 2022):

    sum over all pairs of c (p - x.y)^2  +  sum over users and items of l |x|^2

where p is 1 and c is `alpha * weight` on the observed pairs, p is 0 and c is `unobserved_weight` elsewhere, and the l
of a row with n observed pairs is `regularization * (n + unobserved_weight * other side's size) ** frequency_exponent`.
Their loss counts the unobserved weight on observed pairs too: it is this one with `alpha` greater by that weight, and
`regularization` times `alpha`. Spark's ALS, which runs on a cluster, is `batch.als`. Shapes: U users, I items, D width.
"""

from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy import sparse

from models.refusal import RefusalError

Float32s = npt.NDArray[np.float32]


class Backend(StrEnum):
    """Who solves the rows."""

    IMPLICIT = "implicit"
    """The implicit library: the fastest, with the same regularisation for every row."""
    IALS = "ials"
    """Our own conjugate gradients, compiled by numba: the whole loss above."""
    REFERENCE = "reference"
    """Plain NumPy, for hundreds of rows."""


class AlsConfig(BaseModel):
    """Hyper-parameters of one factorisation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend = Backend.IMPLICIT
    embedding_dim: int = Field(default=64, ge=1, le=1024)
    """Width D of the factors."""
    regularization: float = Field(default=0.05, ge=0)
    frequency_exponent: float = Field(default=0.0, ge=0, le=1)
    """0 regularises every row alike, 1 in proportion to its frequency."""
    alpha: float = Field(default=2.0, gt=0)
    """Confidence of an observed pair is alpha times its weight."""
    unobserved_weight: float = Field(default=1.0, gt=0)
    """Confidence of every other pair."""
    epochs: int = Field(default=15, ge=1)
    cg_steps: int = Field(default=3, ge=1)
    """Steps of conjugate gradients a row and epoch; three are enough, since each epoch starts from the last."""
    threads: int = Field(default=2, ge=1)


class Factors(NamedTuple):
    """Factors of both sides. A row without interactions has zeros."""

    user_UD: Float32s
    item_ID: Float32s


class Factorise(Protocol):
    """A backend: seeded, and independent of the number of threads up to rounding."""

    def __call__(self, weight_UI: "sparse.csr_matrix[Any]", config: AlsConfig, seed: int) -> Factors: ...


class AlsError(RefusalError):
    """Input that cannot be factorised."""


def factorise(weight_UI: "sparse.csr_matrix[Any]", config: AlsConfig, seed: int) -> Factors:
    """The factors of the weights by the configured backend.

    Raises `AlsError` for a matrix without positive weights or with other ones, and for a backend that cannot
    regularise as the configuration says.
    """
    if not weight_UI.nnz:
        raise AlsError("ALS: got no interactions; needed: at least one pair of positive weight.")
    if not np.isfinite(weight_UI.data).all() or (weight_UI.data <= 0).any():
        raise AlsError("ALS: got weights that are not positive and finite; leave those pairs out.")
    return _backend(config.backend)(weight_UI.astype(np.float32), config, seed)


def row_regularization(counts_U: npt.NDArray[Any], columns: int, config: AlsConfig) -> Float32s:
    """The l of each row with so many observed pairs, where the other side has `columns` rows."""
    mass_U = counts_U + config.unobserved_weight * columns
    return np.asarray(config.regularization * mass_U**config.frequency_exponent, np.float32)


def start(rows: int, config: AlsConfig, rng: np.random.Generator) -> Float32s:
    """Random factors to begin with, whose products are about 0.1 in size at any width."""
    return rng.normal(0, 0.1 / config.embedding_dim**0.5, (rows, config.embedding_dim)).astype(np.float32)


def _backend(name: Backend) -> Factorise:
    if name is Backend.IMPLICIT:
        from models.als import implicit_backend

        return implicit_backend.factorise
    if name is Backend.IALS:
        from models.als import conjugate_gradients

        return conjugate_gradients.factorise
    from models.als import reference

    return reference.factorise
