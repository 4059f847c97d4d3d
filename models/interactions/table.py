"""Tables of interactions, checked and with dense indices. Shapes: N rows, U users, I items."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from models.own_table import TableError, read_table

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
UNKNOWN = -1
"""Index of an id that training does not know."""


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """Observed pairs in the order of the table. A pair may come several times."""

    user_ids: pa.Array
    item_ids: pa.Array
    user_N: Int32s
    item_N: Int32s
    """Indices into the ids; of items that training does not know `UNKNOWN`."""
    weight_N: Float32s
    time_ms_N: Int64s | None
    """None where the table has no times."""

    def __len__(self) -> int:
        return len(self.user_N)

    def where(self, chosen_N: npt.NDArray[np.bool_]) -> "Interactions":
        """The chosen rows, with the same ids."""
        return Interactions(
            user_ids=self.user_ids,
            item_ids=self.item_ids,
            user_N=self.user_N[chosen_N],
            item_N=self.item_N[chosen_N],
            weight_N=self.weight_N[chosen_N],
            time_ms_N=None if self.time_ms_N is None else self.time_ms_N[chosen_N],
        )

    def matrix(self) -> "sparse.csr_matrix[Any]":
        """The weights `[U, I]`, those of one pair added up."""
        shape = (len(self.user_ids), len(self.item_ids))
        return sparse.csr_matrix((self.weight_N, (self.user_N, self.item_N)), shape=shape)


def read_training(path: Path) -> Interactions:
    """A table with `user_id, item_id` and optional `weight` (positive; else 1) and `event_time_ms`.

    Raises `TableError` when it is unreadable, empty, lacks a column or has nulls or weights that are not positive.
    """
    rows = _pairs_table(path, ("weight", "event_time_ms"))
    users, items = (_text(rows.column(name)).dictionary_encode() for name in ("user_id", "item_id"))
    return Interactions(
        user_ids=users.dictionary,
        item_ids=items.dictionary,
        user_N=users.indices.to_numpy(),
        item_N=items.indices.to_numpy(),
        weight_N=_weights(path, rows),
        time_ms_N=_times(path, rows),
    )


def read_pairs(path: Path, known: Interactions) -> Interactions:
    """A table of pairs in the indices of another, for test rows and for negatives. Raises `TableError`.

    Items that the other does not know are `UNKNOWN`; such users are added behind its own, so that each stays one. A
    table of which it knows no item is refused.
    """
    rows = _pairs_table(path)
    users, items = (_text(rows.column(name)) for name in ("user_id", "item_id"))
    is_stranger = pc.invert(pc.is_in(users, value_set=known.user_ids))
    user_ids = pa.concat_arrays([known.user_ids, pc.unique(users.filter(is_stranger))])
    item_N = _index_in(items, known.item_ids)
    if (item_N == UNKNOWN).all():
        raise TableError(
            f"table {path}: training knows none of its item ids, such as {rows.column('item_id')[0]}; "
            "give tables whose ids have the same spelling."
        )
    return Interactions(
        user_ids=user_ids,
        item_ids=known.item_ids,
        user_N=_index_in(users, user_ids),
        item_N=item_N,
        weight_N=np.ones(rows.num_rows, np.float32),
        time_ms_N=None,
    )


def _index_in(texts: pa.Array, ids: pa.Array) -> Int32s:
    found = pc.index_in(texts, value_set=ids).fill_null(UNKNOWN)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int32)


def _pairs_table(path: Path, optional: Sequence[str] = ()) -> pa.Table:
    """The table, whose columns have no nulls. Raises `TableError`."""
    rows = read_table(path, ("user_id", "item_id"), optional).combine_chunks()
    for name in rows.column_names:
        if rows.column(name).null_count:
            raise TableError(f"table {path}: {name} has {rows.column(name).null_count} nulls; leave those rows out.")
    return rows


def _text(column: pa.ChunkedArray) -> pa.Array:
    """Ids as text, so that a CSV's 7 and a Parquet's "7" are one id."""
    texts = column.cast(pa.string())
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts


def _weights(path: Path, rows: pa.Table) -> Float32s:
    if "weight" not in rows.column_names:
        return np.ones(rows.num_rows, np.float32)
    weight_N = _numbers(path, rows, "weight", pa.float64())
    wrong_N = ~(np.isfinite(weight_N) & (weight_N > 0))
    if wrong_N.any():
        raise TableError(
            f"table {path}: weight is {weight_N[wrong_N][0]} in {wrong_N.sum()} rows; "
            "allowed: positive and finite. Leave out what a user did not like."
        )
    return weight_N.astype(np.float32)


def _times(path: Path, rows: pa.Table) -> Int64s | None:
    if "event_time_ms" not in rows.column_names:
        return None
    return _numbers(path, rows, "event_time_ms", pa.int64())


def _numbers(path: Path, rows: pa.Table, name: str, kind: pa.DataType) -> npt.NDArray[Any]:
    try:
        return np.asarray(rows.column(name).cast(kind).to_numpy())
    except pa.ArrowException as error:
        raise TableError(f"table {path}: {name} is {rows.schema.field(name).type}; allowed: numbers.") from error
