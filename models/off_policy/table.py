"""One's own logs as a table: the contract of `millrace evaluate policy`. Shapes: N rows, F context features, M pairs.

One row is one decision: the item at one position of one slate.

| column | type | meaning |
|---|---|---|
| `propensity` | number in (0, 1] | chance with which the logging policy showed this item at this position |
| `target_probability` | number in [0, 1] | chance with which the new policy would |
| `reward` | finite number | what followed |
| `group`, or else `user_id` | text or integer, optional | what the bootstrap draws; without either, each row |

For the doubly robust estimate all three of the following, in Parquet since CSV has no lists:

| column | type | meaning |
|---|---|---|
| `action` | text or integer | the item that was shown |
| `target_actions` | list of the same | the items that the new policy may show here |
| `target_action_probabilities` | list of numbers that sum to 1 | how likely it is to show each |

and any number of columns `context_*` (numbers, booleans or text): what is known before the item is chosen. Other
columns are ignored.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.off_policy.log import Choices, Float64s, Int64s, PolicyLog
from models.off_policy.weights import importance_weights
from models.own_table import read_table
from models.refusal import RefusalError

REQUIRED = ("propensity", "target_probability", "reward")
GROUPS = ("group", "user_id")
CHOICES = ("action", "target_actions", "target_action_probabilities")
CONTEXT = "context_"
TOLERANCE = 1e-3
"""How far a row's probabilities may be from their sum 1, and from its `target_probability`: room for 32-bit floats."""


def read_policy_log(path: Path) -> PolicyLog:
    """The log in a Parquet or CSV file. Raises `RefusalError` for what breaks the contract above."""
    return policy_log(read_table(path, REQUIRED, whole=True))


def policy_log(table: pa.Table) -> PolicyLog:
    """The table as arrays. Raises `RefusalError` for missing columns, no rows, nulls and impossible numbers."""
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise RefusalError(
            f"logs lack the columns {', '.join(missing)}; got {', '.join(table.column_names)}; "
            f"needed: {', '.join(REQUIRED)}; add them."
        )
    if not table.num_rows:
        raise RefusalError("logs: got a table without rows; allowed: at least two; log some decisions first.")
    target_N, propensity_N, reward_N = (
        _numbers(table, name) for name in ("target_probability", "propensity", "reward")
    )
    importance_weights(target_N, propensity_N)
    return PolicyLog(
        propensity_N=propensity_N,
        target_probability_N=target_N,
        reward_N=reward_N,
        group_N=_groups(table),
        choices=_choices(table, target_N),
    )


def _numbers(table: pa.Table, name: str) -> Float64s:
    try:
        column = table.column(name).cast(pa.float64())
    except pa.ArrowException as error:
        raise RefusalError(f"{name}: got {table.schema.field(name).type}; allowed: numbers; convert it.") from error
    value_N = np.asarray(column.to_numpy(), np.float64)
    if bad := int((~np.isfinite(value_N)).sum()):
        raise RefusalError(
            f"{name}: got {bad} rows of {len(value_N)} that are null or not finite; allowed: finite numbers; "
            "correct or leave out those rows."
        )
    return value_N


def _groups(table: pa.Table) -> Int64s:
    named = next((name for name in GROUPS if name in table.column_names), None)
    if named is None:
        return np.arange(table.num_rows, dtype=np.int64)
    return _codes(_no_nulls(table, named))


def _choices(table: pa.Table, target_N: Float64s) -> Choices | None:
    present = [name for name in CHOICES if name in table.column_names]
    if not present:
        return None
    if len(present) < len(CHOICES):
        raise RefusalError(
            f"logs: got {', '.join(present)} alone; allowed: all of {', '.join(CHOICES)}, for the doubly robust "
            "estimate, or none; add or drop columns."
        )
    names, chances = (_lists(table, name) for name in CHOICES[1:])
    size_N = pc.list_value_length(names).to_numpy()
    if (size_N != pc.list_value_length(chances).to_numpy()).any():
        raise RefusalError(f"got {CHOICES[1]} and {CHOICES[2]} of different lengths; allowed: a probability an action.")
    logged = _no_nulls(table, "action")
    code = _codes(pa.chunked_array([*logged.chunks, *pc.list_flatten(names).cast(pa.string()).chunks]))
    context_NF, categorical_F = _context(table)
    choices = Choices(
        action_N=code[: len(logged)],
        context_NF=context_NF,
        categorical_F=categorical_F,
        row_M=np.repeat(np.arange(table.num_rows), size_N),
        action_M=code[len(logged) :],
        probability_M=pc.list_flatten(chances).cast(pa.float64()).to_numpy().astype(np.float64),
    )
    _check_probabilities(choices, target_N)
    return choices


def _check_probabilities(choices: Choices, target_N: Float64s) -> None:
    chance_M, rows = choices.probability_M, len(target_N)
    if not ((chance_M >= 0) & (chance_M <= 1)).all():
        raise RefusalError(f"{CHOICES[2]}: allowed: numbers in [0, 1], without nulls; correct those rows.")
    sum_N = np.bincount(choices.row_M, weights=chance_M, minlength=rows)
    if (off_N := np.abs(sum_N - 1) > TOLERANCE).any():
        raise RefusalError(
            f"{CHOICES[2]}: got the sum {sum_N[off_N][0]:.6g} and {int(off_N.sum()) - 1} more such rows; allowed: 1 "
            f"within {TOLERANCE}; list every action that the new policy may take."
        )
    same_M = choices.action_M == choices.action_N[choices.row_M]
    listed_N = np.bincount(choices.row_M, weights=chance_M * same_M, minlength=rows)
    if (off_N := np.abs(listed_N - target_N) > TOLERANCE).any():
        raise RefusalError(
            f"target_probability: got {target_N[off_N][0]:.6g} where {CHOICES[2]} says {listed_N[off_N][0]:.6g} of the "
            f"logged action, and {int(off_N.sum()) - 1} more such rows; allowed: the same; correct one of them."
        )


def _lists(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise RefusalError(f"{name}: got {column.type}; allowed: a list column, which Parquet has and CSV lacks.")
    if column.null_count or pc.list_flatten(column).null_count:
        raise RefusalError(f"{name}: got nulls; allowed: lists without nulls; correct or leave out those rows.")
    return column


def _context(table: pa.Table) -> tuple[Float64s, np.ndarray]:
    columns, categorical = [], []
    for name in (name for name in table.column_names if name.startswith(CONTEXT)):
        column = table.column(name)
        kind = column.type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        categorical.append(not is_number)
        if is_number:
            columns.append(column.cast(pa.float64()).to_numpy().astype(np.float64))
        else:
            known_N = column.is_valid().to_numpy()
            columns.append(np.where(known_N, _codes(column.cast(pa.string())), np.nan))
    context_NF = np.column_stack(columns) if columns else np.empty((table.num_rows, 0))
    return context_NF, np.array(categorical, np.bool_)


def _no_nulls(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    if column.null_count:
        raise RefusalError(
            f"{name}: got {column.null_count} nulls in {len(column)} rows; allowed: none; fill them or drop the column."
        )
    return column.cast(pa.string())


def _codes(column: pa.ChunkedArray) -> Int64s:
    encoded = column.combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
