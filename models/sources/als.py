"""Matrix factorisation of implicit feedback (Hu, Koren and Volinsky, ICDM 2008), with the user folded in live.

Shapes: I items of the bundle, D width, L history.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from numba import boolean, float32, float64, int32

from features.compiled import compiled, given
from models.sources import hnsw
from models.sources.base import EMPTY, Arrays, Candidates, Float32s, Int32s, RetrievalRequest, padded, top
from models.sources.inner_product import RoundedFactors
from models.sources.kept import Kept

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AlsSource:
    """Item factors of a trained model. The user's factors are solved in each request from their history."""

    name: ClassVar[str] = "als"

    item_factors_ID: Float32s
    alpha: float
    """Confidence of an observed pair: `alpha * weight`."""
    regularization: float
    frequency_exponent: float = 0.0
    unobserved_weight: float = 1.0
    """This and the two above as `models.als.AlsConfig` has them."""
    frequency_offset: float = 0.0
    """What is added to the number of a row's pairs before the exponent."""
    hnsw_N: npt.NDArray[np.uint8] | None = None
    """An index over the factors (`models.sources.hnsw`); None searches exactly."""
    _user_D: Kept[Float32s] = field(default_factory=Kept, init=False, repr=False, compare=False)

    @cached_property
    def gram_DD(self) -> npt.NDArray[np.float64]:  # noqa: N802 - shape suffix
        """YtY."""
        factors_ID = self.item_factors_ID.astype(np.float64)
        gram: npt.NDArray[np.float64] = factors_ID.T @ factors_ID
        return gram

    def fold_in(self, item_index_L: Int32s, weight_L: Float32s) -> Float32s:
        """The user's factors `[D]` with items fixed: what training would give for the same interactions.

        Items that the model does not know are left out; with none left the factors are 0. The same arrays again, as of
        one request, are not solved again.
        """
        return self._user_D.of((item_index_L, weight_L), lambda: self._solved(item_index_L, weight_L))

    def _solved(self, item_index_L: Int32s, weight_L: Float32s) -> Float32s:
        known_L = item_index_L < len(self.item_factors_ID)
        confidence_L = self.alpha * weight_L[known_L].astype(np.float64)
        ridge = self.regularization * (len(confidence_L) + self.frequency_offset) ** self.frequency_exponent
        # Xu = (YtCuY + l * I)^-1 YtCuPu
        left_DD, user_D = np.empty_like(self.gram_DD), np.empty(len(self.gram_DD))
        _normal_equations(
            *(self._rows_ID, item_index_L[known_L], confidence_L, self.gram_DD, self.unobserved_weight, ridge),
            *(left_DD, user_D),
        )
        if not _solve(left_DD, user_D):
            raise np.linalg.LinAlgError("the history leaves the user's factors open; train with a regularization")
        return user_D.astype(np.float32)

    def affinity(self, user_D: Float32s, item_index_C: Int32s) -> Float32s:
        """Inner product and cosine `[C, 2]` of a user's factors and each item's: `models.ranker_inputs.AFFINITIES`.

        0 for items that the model does not know, `UNKNOWN` among them, and for factors of 0. What it says of one item
        does not depend on the others that are asked for, to the last bit.
        """
        affinity_CA = np.empty((len(item_index_C), 2), np.float32)
        _affinity(self._rows_ID, self.length_I, user_D, np.asarray(item_index_C, np.int32), affinity_CA)
        return affinity_CA

    @cached_property
    def length_I(self) -> Float32s:  # noqa: N802 - shape suffix
        """Euclidean length of each item's factors, 1 in place of 0."""
        length_I: Float32s = np.sqrt(np.einsum("id,id->i", self.item_factors_ID, self.item_factors_ID))
        return np.where(length_I > 0, length_I, np.float32(1))

    def unit_factors(self, item_index_C: Int32s) -> Float32s:
        """Factors `[C, D]` of length 1; 0 for items that the model does not know. Their products are cosines."""
        unit_CD = np.empty((len(item_index_C), self.item_factors_ID.shape[1]), np.float32)
        _unit_rows(self._rows_ID, self.length_I, np.asarray(item_index_C, np.int32), unit_CD)
        return unit_CD

    def similar(self, request: RetrievalRequest, item_index: int, count: int) -> Candidates:
        """The allowed items whose factors point the same way: a positive cosine, greatest first; none for an item that
        the model does not know.
        """
        if not 0 <= item_index < len(self.item_factors_ID):
            return EMPTY
        cosine_I = self.item_factors_ID @ self.unit_factors(np.array([item_index], np.int32))[0] / self.length_I
        cosine_I = padded(cosine_I, len(request.item_table))
        return top(cosine_I, request.allowed_I & (cosine_I > 0), count)

    @cached_property
    def _rows_ID(self) -> Float32s:  # noqa: N802 - shape suffix
        """The factors, an item's next to each other."""
        return np.ascontiguousarray(self.item_factors_ID)

    @cached_property
    def _rounded(self) -> RoundedFactors:
        return RoundedFactors.of(self.item_factors_ID)

    @cached_property
    def _index(self) -> Any:
        assert self.hnsw_N is not None  # asked only where there is one
        return hnsw.read(self.hnsw_N)

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """The items of the largest inner product with the folded-in user; none without a known history.

        With an index about those. Where what is excluded leaves fewer than asked for, all items are searched.
        """
        if not (request.history_index_L < len(self.item_factors_ID)).any():
            return EMPTY
        user_D = self.fold_in(request.history_index_L, request.history_weight_L)
        if self.hnsw_N is not None:
            found = self._approximate(request, user_D, count)
            if len(found) == count:
                return found
        return self._rounded.best(user_D, request.allowed_I[: len(self.item_factors_ID)], count)

    def _approximate(self, request: RetrievalRequest, user_D: Float32s, count: int) -> Candidates:
        item_C = hnsw.search(self._index, user_D, 2 * count)
        item_C = item_C[request.allowed_I[item_C]][:count]
        score_C = self.item_factors_ID[item_C] @ user_D
        order_C = np.argsort(-score_C, kind="stable")
        return Candidates(item_index=item_C[order_C].astype(np.int32), score=score_C[order_C])

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Factors, the constants of the fold-in, and the index if there is one."""
        constants = np.array([getattr(self, name) for name in _CONSTANTS])
        index = {} if self.hnsw_N is None else {"hnsw_N": self.hnsw_N}
        return {"item_factors_ID": self.item_factors_ID, "constants": constants, **index}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Reads what `to_arrays` gave."""
        constants = dict(zip(_CONSTANTS, map(float, arrays["constants"]), strict=True))
        return cls(item_factors_ID=arrays["item_factors_ID"], hnsw_N=arrays.get("hnsw_N"), **constants)


_CONSTANTS = ("alpha", "regularization", "frequency_exponent", "unobserved_weight", "frequency_offset")


_ROWS, _FLOATS = given(float32, 2, contiguous=True), given(float32, 1, contiguous=True)


@compiled(
    *[_ROWS, given(int32, 1), given(float64, 1), given(float64, 2, contiguous=True), float64, float64],
    *[float64[:, ::1], float64[::1]],
)
def _normal_equations(
    item_factors_ID: Float32s,
    item_index_L: Int32s,
    confidence_L: Float64s,
    gram_DD: Float64s,
    unobserved_weight: float,
    ridge: float,
    left_DD: Float64s,
    right_D: Float64s,
) -> None:
    """YtCuY + l * I, of which the lower half is filled, and YtCuPu, where Cu is w on every item and c - w more on the
    observed ones.
    """
    items, width = item_factors_ID.shape
    factors_D = np.empty(width)
    for d in range(width):
        for e in range(d + 1):
            left_DD[d, e] = unobserved_weight * gram_DD[d, e]
        left_DD[d, d] += ridge
        right_D[d] = 0.0
    for n in range(len(item_index_L)):
        item, confidence = item_index_L[n], confidence_L[n]
        if not 0 <= item < items:
            raise IndexError("item_index_L: an item without factors.")
        for d in range(width):
            factors_D[d] = item_factors_ID[item, d]
            right_D[d] += confidence * factors_D[d]
        for d in range(width):
            more = (confidence - unobserved_weight) * factors_D[d]
            for e in range(d + 1):
                left_DD[d, e] += more * factors_D[e]


@compiled(float64[:, ::1], float64[::1], returns=boolean, any_order=True)
def _solve(left_DD: Float64s, right_D: Float64s) -> bool:
    """Turns the right side into the solution by Cholesky's decomposition, which the lower half of the left side turns
    into; false where it has none.
    """
    width = len(right_D)
    for d in range(width):
        for e in range(d + 1):
            rest = left_DD[d, e]
            for k in range(e):
                rest -= left_DD[d, k] * left_DD[e, k]
            if e < d:
                left_DD[d, e] = rest / left_DD[e, e]
            elif rest > 0:
                left_DD[d, d] = np.sqrt(rest)
            else:
                return False
        for e in range(d):
            right_D[d] -= left_DD[d, e] * right_D[e]
        right_D[d] /= left_DD[d, d]
    for d in range(width - 1, -1, -1):
        right_D[d] /= left_DD[d, d]
        for e in range(d):
            right_D[e] -= left_DD[d, e] * right_D[d]
    return True


@compiled(_ROWS, *[_FLOATS] * 2, given(int32, 1), float32[:, ::1], any_order=True)
def _affinity(
    item_factors_ID: Float32s, length_I: Float32s, user_D: Float32s, item_index_C: Int32s, affinity_CA: Float32s
) -> None:
    items, width = item_factors_ID.shape
    squared = float32(0)
    for d in range(width):
        squared += user_D[d] * user_D[d]
    length = max(np.sqrt(squared), float32(1e-12))
    for c in range(len(item_index_C)):
        item, product = item_index_C[c], float32(0)
        if 0 <= item < items:
            for d in range(width):
                product += item_factors_ID[item, d] * user_D[d]
        affinity_CA[c, 0] = product
        affinity_CA[c, 1] = product / (length * length_I[item]) if 0 <= item < items else float32(0)


@compiled(_ROWS, _FLOATS, given(int32, 1), float32[:, ::1])
def _unit_rows(item_factors_ID: Float32s, length_I: Float32s, item_index_C: Int32s, unit_CD: Float32s) -> None:
    items, width = item_factors_ID.shape
    for c in range(len(item_index_C)):
        item = item_index_C[c]
        if not 0 <= item < items:
            unit_CD[c] = 0
            continue
        scale = 1 / length_I[item]
        for d in range(width):
            unit_CD[c, d] = item_factors_ID[item, d] * scale
