"""Which rows train, validate and test. Shapes: N rows."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.own_table import SHOWN
from models.refusal import RefusalError
from models.tabular.config import ColumnSplit, RandomSplit, TabularConfig, TimeSplit
from models.tabular.table import numbers, texts

Int64s = npt.NDArray[np.int64]
Rows = dict[str, Int64s]

PARTS = ("train", "validation", "test")


def split_rows(table: pa.Table, config: TabularConfig, *, test_apart: bool) -> Rows:
    """Row numbers of each part. With `test_apart`, the test rows are in another table and none are taken here.

    Raises `RefusalError` for an empty part and for a row that belongs to none.
    """
    split = config.split
    if isinstance(split, ColumnSplit):
        rows = _by_column(texts(table.column(split.column)), split, test_apart=test_apart)
    else:
        test_share = 0.0 if test_apart else split.test
        if split.validation + test_share >= 1:
            raise RefusalError(f"split: validation and test take {split.validation + test_share:g}; allowed: below 1.")
        if isinstance(split, TimeSplit):
            rows = _by_time(numbers(table.column(split.column), f"time column {split.column}"), split, test_share)
        else:
            rows = _at_random(table.num_rows, split, test_share)
    for name in PARTS if not test_apart else PARTS[:2]:
        if not len(rows[name]):
            drawn = isinstance(split, ColumnSplit) and name == "validation"
            advice = "set split.validation to null to draw it from training rows" if drawn else "change the split"
            raise RefusalError(f"the {name} part of {table.num_rows} rows is empty; {advice} in the configuration.")
    return rows


def depends_on_order(config: TabularConfig) -> bool:
    """Whether the split is drawn by row number, so that it means nothing for another table."""
    return isinstance(config.split, RandomSplit) or (
        isinstance(config.split, ColumnSplit) and config.split.validation is None
    )


def _by_column(part: pa.ChunkedArray, split: ColumnSplit, *, test_apart: bool) -> Rows:
    part_N = np.array(part.to_pylist(), object)
    wanted = {name: getattr(split, name) for name in PARTS if getattr(split, name) is not None}
    if "test" not in wanted and not test_apart:
        raise RefusalError("split.test is null, so the test rows are in another table; give it with --test.")
    rows = {name: np.flatnonzero(part_N == str(value).strip()) for name, value in wanted.items()}
    if sum(map(len, rows.values())) != len(part_N):
        got = sorted({str(value) for value in part_N} - {str(value) for value in wanted.values()})[:SHOWN]
        raise RefusalError(
            f"split column {split.column} also holds {', '.join(got)}; allowed: "
            f"{', '.join(map(str, wanted.values()))}: name them in the configuration or remove those rows."
        )
    if test_apart and len(rows.get("test", ())):
        raise RefusalError(f"--test is given, but {split.column} marks test rows too; leave one of them out.")
    if "validation" not in rows:
        shuffled = np.random.default_rng(split.seed).permutation(rows["train"])
        cut = round(len(shuffled) * split.validation_share)
        rows["validation"], rows["train"] = np.sort(shuffled[:cut]), np.sort(shuffled[cut:])
    return {"test": np.empty(0, np.int64), **rows}


def _by_time(time_N: npt.NDArray[np.float64], split: TimeSplit, test_share: float) -> Rows:
    wrong = int((~np.isfinite(time_N)).sum())
    if wrong:
        raise RefusalError(f"time column {split.column}: {wrong} values are null or not finite; remove those rows.")
    sorted_N = np.sort(time_N)
    starts = [round(len(time_N) * (1 - share)) for share in (split.validation + test_share, test_share)]
    validation, test = (sorted_N[start] if start < len(time_N) else np.inf for start in starts)
    return {
        "train": np.flatnonzero(time_N < validation),
        "validation": np.flatnonzero((time_N >= validation) & (time_N < test)),
        "test": np.flatnonzero(time_N >= test),
    }


def _at_random(count: int, split: RandomSplit, test_share: float) -> Rows:
    shuffled = np.random.default_rng(split.seed).permutation(count)
    cuts = [round(count * share) for share in (test_share, test_share + split.validation)]
    test, validation, train = (np.sort(part) for part in np.split(shuffled, cuts))
    return {"train": train, "validation": validation, "test": test}
