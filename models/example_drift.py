"""Features and labels of the newest examples against those of the days before, which the champion was trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from features.names import LakeTables
from features.specs import KEY_FIELDS, WINDOWED_FEATURES
from models.drift import Stability, population_stability
from models.examples import LABELS
from models.metrics.bootstrap import Interval, bootstrap
from models.monitor_limits import MonitorLimits

SEED = 0
_COLUMNS = (
    "user_id",
    "item_id",
    "category",
    "creator_id",
    "t_ms",
    *(feature.name for feature in WINDOWED_FEATURES),
    *LABELS,
)


@dataclass(frozen=True, kw_only=True)
class ExampleSides:
    """The newest examples of the window, and of the time before it; None without a table of examples."""

    now: pa.Table | None = None
    before: pa.Table | None = None


def read_sides(lake: Path, reference_ms: int, window_ms: int, now_ms: int, max_rows: int) -> ExampleSides:
    """The examples of `[reference_ms, window_ms)` and `[window_ms, now_ms)`, at most so many of each."""
    path = str(lake / LakeTables().examples)
    if not DeltaTable.is_deltatable(path):
        return ExampleSides()
    dataset = DeltaTable(path).to_pyarrow_dataset()
    names = [name for name in _COLUMNS if name in dataset.schema.names]

    def side(from_ms: int, until_ms: int) -> pa.Table:
        within = (pc.field("t_ms") >= from_ms) & (pc.field("t_ms") < until_ms)
        times = dataset.to_table(columns=["t_ms"], filter=within).column("t_ms").to_numpy()
        if len(times) > max_rows:
            within &= pc.field("t_ms") >= int(np.partition(times, len(times) - max_rows)[len(times) - max_rows])
        return dataset.to_table(columns=names, filter=within)

    return ExampleSides(now=side(window_ms, now_ms), before=side(reference_ms, window_ms))


def feature_drift(sides: ExampleSides, limits: MonitorLimits) -> dict[str, Any]:
    """PSI of each feature; wrong when beyond the limit by more than chance explains, since a user's, an item's or a
    category's examples have nearly the same values: there are as many independent ones as there are keys.
    """
    record, why = _rows(sides, limits)
    if sides.now is None or sides.before is None or why:
        return {**record, "not_judged": why}
    found = []
    for feature in WINDOWED_FEATURES:
        if feature.name not in sides.now.column_names:
            continue
        before, now = (_floats(side, feature.name) for side in (sides.before, sides.now))
        stability = population_stability(before, now)
        keys = [_distinct(side, KEY_FIELDS[feature.entity]) for side in (sides.before, sides.now)]
        found.append(judged(feature.name, stability, keys[0], keys[1], limits.max_feature_psi))
    return {**record, "found": found}


def judged(subject: str, stability: Stability, reference: int, now: int, limit: float) -> dict[str, Any]:
    """The record of one index against its limit and chance, for so many independent values a side."""
    chance = stability.by_chance(reference, now)
    return {
        "subject": subject,
        "psi": stability.index,
        "by_chance": chance,
        "wrong": stability.index > limit + chance,
        "detail": f"PSI of {subject} {stability.index:.3f}, allowed: {limit:g} and {chance:.3f} by chance",
    }


def _distinct(side: pa.Table, key: tuple[str, ...]) -> int:
    return int(side.group_by(list(key)).aggregate([]).num_rows)


def label_changes(sides: ExampleSides, limits: MonitorLimits) -> dict[str, Any]:
    """Relative change of each head's rate, with its interval over users of both sides; wrong when the whole interval is
    beyond the limit, since of rare heads a few users make half the rate.
    """
    record, why = _rows(sides, limits)
    if sides.now is None or sides.before is None or why:
        return {**record, "not_judged": why}
    both = pa.concat_tables([sides.before, sides.now])
    is_now_N = np.arange(both.num_rows) >= sides.before.num_rows
    _, user_N = np.unique(np.array(both.column("user_id").to_pylist(), str), return_inverse=True)
    found = []
    for label in LABELS:
        label_N = _floats(both, label)
        defined_N = np.isfinite(label_N)
        if min((defined_N & is_now_N).sum(), (defined_N & ~is_now_N).sum()) < limits.min_rows:
            continue
        change = _change(label_N[defined_N], is_now_N[defined_N], user_N[defined_N])
        wrong = change.low > limits.max_label_change or change.high < -limits.max_label_change
        head = label.removeprefix("label_")
        detail = (
            f"the rate of {head} changed by {change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}], "
            f"allowed: {limits.max_label_change:.0%}"
        )
        found.append({"subject": head, **vars(change), "wrong": bool(wrong), "detail": detail})
    return {**record, "found": found}


def _change(label_N: np.ndarray, is_now_N: np.ndarray, user_N: np.ndarray) -> Interval:
    def change(rows: np.ndarray) -> float:
        now, before = label_N[rows[is_now_N[rows]]], label_N[rows[~is_now_N[rows]]]
        return float(now.mean() / before.mean() - 1) if len(now) and before.sum() else float("nan")

    return bootstrap(change, user_N.astype(np.int64), np.random.default_rng(SEED))


def _rows(sides: ExampleSides, limits: MonitorLimits) -> tuple[dict[str, Any], str]:
    rows = [0 if side is None else side.num_rows for side in (sides.now, sides.before)]
    record: dict[str, Any] = {"rows": rows[0], "reference_rows": rows[1], "found": []}
    return record, "too few examples on one side" if min(rows) < limits.min_rows else ""


def _floats(table: pa.Table, name: str) -> np.ndarray:
    column = table.column(name).cast(pa.float64())
    return np.asarray(column.fill_null(np.nan).to_numpy(), np.float64)
