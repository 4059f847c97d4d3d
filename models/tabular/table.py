"""Which columns of a table are read, and its labels as numbers. Shapes: N rows, T tasks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.own_table import SHOWN, listed
from models.refusal import RefusalError
from models.tabular.config import TabularConfig, Task, Value

Float64s = npt.NDArray[np.float64]


def columns_of(config: TabularConfig, *, with_split: bool) -> list[str]:
    """The columns that a configuration reads, each once."""
    names = [*config.numeric, *config.categorical, *(task.column for task in config.tasks)]
    if with_split and config.split.by != "random":
        names.append(config.split.column)
    return list(dict.fromkeys(names))


def labels_of(table: pa.Table, tasks: Sequence[Task]) -> npt.NDArray[np.float32]:
    """Labels `[N, T]`, NaN where a label is null.

    Raises `RefusalError` for a label that is NaN, infinite, outside [0, 1] or, of a binary task, neither class.
    """
    return np.stack([_label(table.column(task.column), task) for task in tasks], axis=1).astype(np.float32)


def numbers(column: pa.ChunkedArray, what: str) -> Float64s:
    """A column as float64, null as NaN. Raises `RefusalError` for anything but numbers."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    try:
        if pa.types.is_temporal(column.type):
            column = column.cast(pa.int64())
        return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    except (pa.ArrowException, ValueError) as error:
        raise RefusalError(f"{what}: got {column.type} values such as {_some(column)}; allowed: numbers.") from error


def texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as text without spaces around it. Whole floats read as integers, so that 3.0 is 3; NaN is null."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        whole = pc.all(pc.equal(pc.floor(column), column), min_count=0).as_py()
        bound = pc.max(pc.abs(column)).as_py()
        if whole and (bound is None or bound < 2**53):
            column = column.cast(pa.int64())
    return pc.utf8_trim_whitespace(column.cast(pa.string()))


def _label(column: pa.ChunkedArray, task: Task) -> Float64s:
    if task.positive is not None:
        return _by_positive(column, task, task.positive)
    what = f"label {task.column} of task {task.name}"
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        hint = "set positive to the value that counts as 1" if task.kind == "binary" else "give numbers in [0, 1]"
        raise RefusalError(f"{what} is text such as {_some(column)}; {hint}.")
    label_N = numbers(column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column, what)
    is_null_N = np.asarray(column.is_null().to_numpy(), bool)
    given_N = label_N[~is_null_N]
    _demand_finite(given_N, what)
    allowed_N = np.isin(given_N, (0, 1)) if task.kind == "binary" else (given_N >= 0) & (given_N <= 1)
    if not allowed_N.all():
        allowed = "0 and 1, or set positive" if task.kind == "binary" else "numbers in [0, 1]"
        wrong = given_N[~allowed_N]
        raise RefusalError(f"{what}: got {wrong[0]:g} and {len(wrong) - 1} more of its kind; allowed: {allowed}.")
    return label_N


def _by_positive(column: pa.ChunkedArray, task: Task, positive: Value | list[Value]) -> Float64s:
    what = f"label {task.column} of task {task.name}"
    if pa.types.is_floating(column.type):
        _demand_finite(np.asarray(column.drop_null().to_numpy(), np.float64), what)
    text = texts(column)
    wanted = [_as_text(value) for value in (positive if isinstance(positive, list) else [positive])]
    found = pc.is_in(text, pa.array(wanted, pa.string()))
    if not pc.any(found, min_count=0).as_py():
        raise RefusalError(f"{what}: no row holds {' or '.join(map(repr, wanted))}; there are {_some(text)}.")
    marked = pc.if_else(text.is_null(), pa.scalar(None, pa.float64()), found.cast(pa.float64()))
    return np.asarray(marked.to_numpy(), np.float64)


def _demand_finite(given_N: Float64s, what: str) -> None:
    wrong = int((~np.isfinite(given_N)).sum())
    if wrong:
        raise RefusalError(
            f"{what}: {wrong} of {len(given_N)} values are NaN or infinite; allowed: finite numbers, "
            "and null where the label is undefined."
        )


def _as_text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _some(column: pa.ChunkedArray) -> str:
    return listed([repr(value) for value in pc.unique(column).slice(0, SHOWN + 1).to_pylist()])
