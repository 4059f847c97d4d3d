"""One's own tables, as every command that takes one reads them: Parquet, a directory of Parquet, or CSV."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.dataset as ds

from models.refusal import RefusalError

CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
NULL_TEXTS = ["", "NA", "N/A", "NULL", "null", "None"]
"""What a CSV file means by null; `nan` stays a number."""
SHOWN = 8
"""How many names an error lists."""


class TableError(RefusalError):
    """A table that cannot be used: says which, what was got and what is needed."""


def read_table(path: Path, needed: Sequence[str], optional: Sequence[str] = (), *, whole: bool = False) -> pa.Table:
    """The needed columns and those of the optional ones that are there, in that order; all columns when `whole`.

    Dictionary columns come decoded. Raises `TableError` when the table cannot be read, lacks a column or has no row.
    """
    if not path.exists():
        raise TableError(f"table {path} does not exist; give a Parquet or CSV file, or a directory of Parquet files.")
    try:
        names, source = _open(path)
        missing = [name for name in needed if name not in names]
        if missing:
            raise TableError(
                f"table {path} lacks {listed(missing)}; it has {listed(names)}: correct the configuration or the table."
            )
        chosen = names if whole else [name for name in dict.fromkeys((*needed, *optional)) if name in names]
        table = source.select(chosen) if isinstance(source, pa.Table) else source.to_table(columns=chosen)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise TableError(f"table {path} cannot be read: {reason[:300]}; give Parquet, or CSV with a header.") from error
    if not table.num_rows:
        raise TableError(f"table {path} is empty; give one with rows.")
    return pa.table({name: _plain(table.column(name)) for name in chosen})


def listed(names: Sequence[str]) -> str:
    """The first names, for an error."""
    more = ", …" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _open(path: Path) -> tuple[list[str], pa.Table | ds.Dataset]:
    delimiter = CSV_DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        dataset = ds.dataset(path, format="parquet", partitioning="hive")
        return dataset.schema.names, dataset
    options = csv.ConvertOptions(null_values=NULL_TEXTS, strings_can_be_null=True)
    table = csv.read_csv(path, parse_options=csv.ParseOptions(delimiter=delimiter), convert_options=options)
    return table.column_names, table


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
