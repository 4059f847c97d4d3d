"""Approximate search of the largest inner products (Malkov and Yashunin, TPAMI 2020), by faiss.

Shapes: I items, D width, C found.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 32
"""Links an item and layer."""
BUILD_WIDTH, SEARCH_WIDTH = 100, 400
"""Candidates kept while linking and while searching: more finds more and takes longer."""

LARGE_ITEMS = 300_000
"""Catalogues from this size on are searched approximately. Measured with 64 factors on a busy machine: exact search
takes 8 ms for 50 thousand items, 13 for 200 thousand, 25 for a million; the index 1 to 1.5 at recall .80 to .86."""


def build_if_large(factors_ID: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8] | None:
    """`build` for catalogues that are too large to be searched exactly; None for others."""
    return build(factors_ID) if len(factors_ID) >= LARGE_ITEMS else None


def build(factors_ID: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The index as bytes. One thread, since the order in which items are linked decides the graph."""
    import faiss  # here and below: few catalogues need it

    faiss.omp_set_num_threads(1)
    index = faiss.IndexHNSWFlat(factors_ID.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_WIDTH
    index.add(np.ascontiguousarray(factors_ID))
    return np.asarray(faiss.serialize_index(index), np.uint8)


def read(index_N: npt.NDArray[np.uint8]) -> Any:
    """The index of these bytes, for `search`."""
    import faiss

    index: Any = faiss.deserialize_index(index_N)
    index.hnsw.efSearch = SEARCH_WIDTH
    return index


def search(index: Any, user_D: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """About the `count` items of the largest inner product, best first; fewer where the graph yields fewer."""
    _, found_1C = index.search(np.ascontiguousarray(user_D[None, :]), count)
    found_C: npt.NDArray[np.int64] = found_1C[0]
    return found_C[found_C >= 0]
