"""Reading the lake's Delta tables with no JVM."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from features.events import EVENT_TYPES
from features.items import Item
from features.names import LakeTables
from features.quarantine import QuarantineError, refuse_held
from models.item_table import UNKNOWN, ItemTable
from models.refusal import RefusalError

Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


class LakeError(RefusalError):
    """A lake table that is absent, unreadable, empty or of another shape."""


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """Valid events as columns. Shapes: N events, U users."""

    user_ids: tuple[str, ...]
    user_N: Int64s
    """Index into `user_ids`."""
    item_N: Int32s
    """Index into the item table; `UNKNOWN` for items that the catalogue lacks."""
    type_N: Int8s
    """Index into `features.events.EVENT_TYPES`."""
    time_ms_N: Int64s

    def __len__(self) -> int:
        return len(self.user_N)

    def where(self, chosen_N: npt.NDArray[np.bool_]) -> "EventLog":
        """The chosen events, with the same users."""
        return EventLog(
            user_ids=self.user_ids,
            user_N=self.user_N[chosen_N],
            item_N=self.item_N[chosen_N],
            type_N=self.type_N[chosen_N],
            time_ms_N=self.time_ms_N[chosen_N],
        )


def read_table(lake: Path, name: str, columns: Sequence[str]) -> tuple[pa.Table, int]:
    """The columns of a lake table, with the Delta version that was read.

    Raises `LakeError` when the table is absent, lacks a column or has no rows, or when a quality gate has shut it.
    """
    path = lake / name
    try:
        refuse_held(lake, [name])
        table = DeltaTable(path)
        present = [field.name for field in table.schema().fields]
        missing = [column for column in columns if column not in present]
        if missing:
            raise LakeError(
                f"lake table {path} lacks {', '.join(missing)}; it has {', '.join(present)}: rerun its job."
            )
        rows = table.to_pyarrow_table(columns=list(columns))
    except QuarantineError as error:
        raise LakeError(str(error)) from error
    except TableNotFoundError as error:
        raise LakeError(f"no Delta table at {path}; run the batch job that writes {name} first.") from error
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise LakeError(f"lake table {path} cannot be read: {error}") from error
    if not rows.num_rows:
        raise LakeError(f"lake table {path} is empty; run the batch job that writes {name} first.")
    return rows, table.version()


def read_items(lake: Path) -> tuple[list[Item], int]:
    """The catalogue, with its Delta version. Raises `LakeError`."""
    columns = ["item_id", "category", "creator_id", "language", "duration_ms", "published_at_ms", "available"]
    rows, version = read_table(lake, LakeTables().items, columns)
    return [Item(**row) for row in rows.to_pylist()], version


def read_events(lake: Path, item_table: ItemTable) -> tuple[EventLog, int]:
    """The counted events, with their Delta version. Raises `LakeError`."""
    name = LakeTables().silver_events
    rows, version = read_table(lake, name, ["user_id", "item_id", "event_type", "event_time_ms"])
    users = rows.column("user_id").combine_chunks().dictionary_encode()
    log = EventLog(
        user_ids=tuple(users.dictionary.to_pylist()),
        user_N=users.indices.to_numpy().astype(np.int64),
        item_N=index_in(rows.column("item_id"), item_table.item_ids),
        type_N=index_in(rows.column("event_type"), EVENT_TYPES).astype(np.int8),
        time_ms_N=rows.column("event_time_ms").to_numpy(),
    )
    if (log.type_N < 0).any():
        raise LakeError(f"lake table {lake / name} holds unknown event types; allowed: {', '.join(EVENT_TYPES)}.")
    return log, version


def index_in(texts: pa.ChunkedArray | pa.Array, names: Sequence[str]) -> Int32s:
    """Index of each text in `names`, `UNKNOWN` where it is absent or null."""
    found = pc.index_in(texts.cast(pa.string()), value_set=pa.array(list(names), pa.string()), skip_nulls=True)
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    return np.asarray(found.fill_null(UNKNOWN).to_numpy(zero_copy_only=False), np.int32)
