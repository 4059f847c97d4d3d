"""Training examples: the lake's impressions as the ranker's inputs, with labels.

The assembly is `models.ranker_inputs`', as in a request. Shapes: N examples, T heads, H distinct histories.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from features.events import EVENT_TYPES
from features.names import LakeTables
from features.specs import WINDOWED_FEATURES
from models.history import HISTORY_EVENTS, Histories, UserHistory, collapse
from models.item_table import ItemTable
from models.lake import LakeError, index_in, read_table
from models.ranker_inputs import (
    CANDIDATE_FEATURES,
    HEADS,
    USER_FEATURES,
    RankerInputs,
    RankerLayout,
    clean,
    device_codes,
    history_slots,
    hours,
    item_columns,
    no_affinity,
)
from models.splits import user_draw

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

LABELS: tuple[str, ...] = tuple(f"label_{head}" for head in HEADS)
COLUMNS: tuple[str, ...] = (
    "request_id",
    "user_id",
    "item_id",
    "t_ms",
    "position",
    "device",
    "history_item_ids",
    "history_event_types",
    "history_event_times_ms",
    *(feature.name for feature in WINDOWED_FEATURES),
    *LABELS,
)
READ_AT = "feature_ms"
"""Column with the instant as of which an example's features are; rows without one, and tables from before there was the
column, have the impression's own."""
BATCH_ROWS = 10_000
MAX_EXAMPLES = 1_000_000
"""The newest examples that a training run reads, which bounds its memory at about 1 GB."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Impressions with what followed. The user side of `inputs` has a row an example."""

    inputs: RankerInputs
    label_NT: Float32s
    """In the order of `HEADS`; NaN where the label is undefined."""
    time_ms_N: Int64s
    user_N: Int64s
    """Dense index of the user within these examples."""
    user_draw_N: Float64s
    """The users' `models.splits.user_draw`."""
    request_N: Int64s
    """Dense index of the slate within these examples."""
    history_N: Int64s
    """Which of `histories` each example's user had: those of one slate share it."""
    histories: tuple[UserHistory, ...]
    """The H distinct ones, whole, where the inputs hold the newest items."""

    def __len__(self) -> int:
        return len(self.time_ms_N)

    def with_affinity(self, affinity_NA: Float32s) -> "Examples":
        """The same with another affinity, as of other ALS factors (`models.affinity`)."""
        return replace(self, inputs=replace(self.inputs, affinity_CA=affinity_NA))


def example_dataset(lake: Path) -> tuple[ds.Dataset, int]:
    """The examples table and its Delta version. Raises `LakeError` when it is absent, empty or lacks a column."""
    _, version = read_table(lake, LakeTables().examples, ["t_ms"])
    table = DeltaTable(lake / LakeTables().examples, version=version)
    dataset = table.to_pyarrow_dataset()
    missing = [column for column in COLUMNS if column not in dataset.schema.names]
    if missing:
        raise LakeError(f"the examples of {lake} lack {', '.join(missing)}; rerun batch/training_examples.py.")
    return dataset, version


def newest(dataset: ds.Dataset, limit: int = MAX_EXAMPLES) -> ds.Dataset:
    """The newest `limit` examples (a few more where instants tie)."""
    if dataset.count_rows() <= limit:
        return dataset
    time_ms_N = dataset.to_table(columns=["t_ms"]).column("t_ms").to_numpy()
    oldest_ms = int(np.partition(time_ms_N, len(time_ms_N) - limit)[len(time_ms_N) - limit])
    return dataset.filter(ds.field("t_ms") >= oldest_ms)


def example_batches(dataset: ds.Dataset) -> Iterator[pa.RecordBatch]:
    """The examples in batches of bounded size, read with as little ahead as may be."""
    batches: Iterator[pa.RecordBatch] = dataset.to_batches(
        columns=[name for name in (*COLUMNS, READ_AT) if name in dataset.schema.names],
        batch_size=BATCH_ROWS,
        batch_readahead=1,
        fragment_readahead=1,
    )
    return (batch for batch in batches if batch.num_rows)


def devices_of(dataset: ds.Dataset) -> tuple[str, ...]:
    """The devices that occur, sorted."""
    found = pc.unique(dataset.to_table(columns=["device"]).column("device")).to_pylist()
    return tuple(sorted(device for device in found if device))


def assemble(batches: Iterable[pa.RecordBatch], rows: int, layout: RankerLayout, item_table: ItemTable) -> Examples:
    """The examples as inputs and labels; `rows` is how many there are in all batches. ALS says nothing of them yet.

    Raises `LakeError` when there are none.
    """
    if not rows:
        raise LakeError("there are no examples; run batch/training_examples.py first.")
    joined: dict[str, npt.NDArray[Any]] = {}
    users, requests, start = [], [], 0
    histories = _Distinct()
    for batch in batches:
        found = _histories(batch, item_table)
        part = _inputs(batch, layout, item_table, found).feed()
        part["history_N"] = histories.rows(found, batch.num_rows)
        part["label_NT"] = _matrix(batch, LABELS, np.nan)
        part["time_ms_N"] = batch.column("t_ms").to_numpy(zero_copy_only=False).astype(np.int64)
        for name, array in part.items():
            whole = joined.setdefault(name, np.empty((rows, *array.shape[1:]), array.dtype))
            whole[start : start + len(array)] = array
        users.append(batch.column("user_id").cast(pa.string()))
        requests.append(batch.column("request_id").cast(pa.string()))
        start += batch.num_rows
    user_N, user_ids = _dense(users)
    return Examples(
        label_NT=joined.pop("label_NT"),
        time_ms_N=joined.pop("time_ms_N"),
        user_N=user_N,
        user_draw_N=np.array([user_draw(user_id) for user_id in user_ids])[user_N],
        request_N=_dense(requests)[0],
        history_N=joined.pop("history_N"),
        histories=tuple(histories.found),
        inputs=RankerInputs(**joined),
    )


class _Distinct:
    """The distinct histories of many batches, in the order in which they came."""

    def __init__(self) -> None:
        self.found: list[UserHistory] = []
        self._row_of: dict[tuple[bytes, bytes, bytes], int] = {}

    def rows(self, histories: Histories, examples: int) -> Int64s:
        """Which of those found each example of a batch has."""
        ends = np.searchsorted(histories.row_N, np.arange(examples + 1))
        return np.array([self._row(histories, slice(*ends[n : n + 2])) for n in range(examples)], np.int64)

    def _row(self, histories: Histories, entries: slice) -> int:
        history = UserHistory(
            item_index_L=histories.item_index_N[entries].copy(),
            weight_L=histories.weight_N[entries].copy(),
            time_ms_L=histories.time_ms_N[entries].copy(),
        )
        key = history.item_index_L.tobytes(), history.weight_L.tobytes(), history.time_ms_L.tobytes()
        row = self._row_of.setdefault(key, len(self.found))
        if row == len(self.found):
            self.found.append(history)
        return row


def _inputs(batch: pa.RecordBatch, layout: RankerLayout, item_table: ItemTable, histories: Histories) -> RankerInputs:
    read_ms = batch.column("t_ms")
    if READ_AT in batch.schema.names:
        read_ms = pc.coalesce(batch.column(READ_AT), read_ms)
    read_ms_N = read_ms.to_numpy(zero_copy_only=False).astype(np.int64)
    position_N = batch.column("position").fill_null(0).to_numpy(zero_copy_only=False)
    item_N = index_in(batch.column("item_id"), item_table.item_ids)
    return RankerInputs(
        user_UF=clean(_matrix(batch, USER_FEATURES, 0.0)),
        device_U=device_codes(layout, batch.column("device").to_pylist()),
        hour_U=hours(read_ms_N),
        **history_slots(layout, item_table, histories, read_ms_N),
        candidate_CF=clean(_matrix(batch, CANDIDATE_FEATURES, 0.0)),
        **item_columns(layout, item_table, item_N, read_ms_N),
        affinity_CA=no_affinity(batch.num_rows),
        position_C=position_N.astype(np.int32),
    )


def _histories(batch: pa.RecordBatch, item_table: ItemTable) -> Histories:
    names = ("history_item_ids", "history_event_types", "history_event_times_ms")
    items, types, times = (batch.column(name) for name in names)
    row_N = pc.list_parent_indices(items).to_numpy().astype(np.int64)
    newest_N = np.arange(len(row_N)) - np.searchsorted(row_N, row_N) < HISTORY_EVENTS
    type_N = index_in(types.flatten(), EVENT_TYPES)
    if len(type_N) != len(row_N) or (type_N < 0).any():
        raise LakeError("the examples' history lists differ in length or hold unknown event types; rebuild the table.")
    return collapse(
        row_N[newest_N],
        index_in(items.flatten(), item_table.item_ids)[newest_N],
        type_N[newest_N].astype(np.int8),
        times.flatten().to_numpy(zero_copy_only=False)[newest_N].astype(np.int64),
    )


def _matrix(batch: pa.RecordBatch, names: Iterable[str], null: float) -> Float32s:
    columns = [batch.column(name).cast(pa.float64()).fill_null(null) for name in names]
    return np.stack([column.to_numpy(zero_copy_only=False).astype(np.float32) for column in columns], axis=1)


def _dense(parts: list[pa.Array]) -> tuple[Int64s, list[str]]:
    """The index of each id, and the ids; the last one, which is no id, is that of null."""
    encoded = pa.chunked_array(parts).combine_chunks().dictionary_encode()
    index_N = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    return index_N, [*encoded.dictionary.to_pylist(), ""]
