"""Served values against recomputed ones, feature by feature.

N rows of one entity, F features in the order of `features_of(entity)`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batch.served_rows import ServedRow, State
from batch.slate_values import Float32s
from features.specs import KEY_FIELDS, Entity, features_of

MAX_EXAMPLES = 5
Bools = npt.NDArray[np.bool_]
Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """What one served row should have been: the values at its instant, and at the earliest at which they may have been
    finalised.
    """

    state: State
    latest_F: Float64s
    earliest_F: Float64s


def compare(entity: Entity, rows: Sequence[ServedRow], recomputed: Sequence[Recomputed]) -> list[dict[str, Any]]:
    """One record a feature: `rows`, `mismatches`, `share` (null without rows), `worst_difference` and `examples` (the
    worst first) of the settled rows; `unsettled_rows` and `unsettled_mismatches` of those with too late an arrival.

    A value is right when it equals either recomputed one, both as the 32-bit floats that the ranker reads; the
    difference of a wrong one is to the nearer of them.
    """
    shape = (len(rows), len(features_of(entity)))
    served_NF = np.array([row.values_F for row in rows], np.float32).reshape(shape)
    latest_NF = np.array([one.latest_F for one in recomputed]).reshape(shape).astype(np.float32)
    earliest_NF = np.array([one.earliest_F for one in recomputed]).reshape(shape).astype(np.float32)
    difference_NF = np.minimum(np.abs(served_NF - latest_NF), np.abs(served_NF - earliest_NF))
    settled_N = np.array([one.state is State.SETTLED for one in recomputed], np.bool_)
    unsettled_N = np.array([one.state is State.UNSETTLED for one in recomputed], np.bool_)
    records = []
    for f, feature in enumerate(features_of(entity)):
        difference_N = np.where(settled_N, difference_NF[:, f], 0)
        worst = [n for n in np.argsort(-difference_N, kind="stable")[:MAX_EXAMPLES].tolist() if difference_N[n]]
        examples = [_example(entity, rows[n], served_NF[n, f], latest_NF[n, f], earliest_NF[n, f]) for n in worst]
        record = {"feature": feature.name, "entity": str(entity), **_tally(difference_NF[:, f], settled_N)}
        apart = _tally(difference_NF[:, f], unsettled_N)
        record |= {"unsettled_rows": apart["rows"], "unsettled_mismatches": apart["mismatches"]}
        records.append({**record, "examples": examples})
    return records


def overview(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the settled rows of all features: how many `values`, the share that is equal (null without), the worst."""
    values, wrong = (sum(each[name] for each in features) for name in ("rows", "mismatches"))
    differing = [each for each in features if each["mismatches"]]
    worst = sorted(differing, key=lambda each: (-each["share"], each["feature"]))[:MAX_EXAMPLES]
    told = ("feature", "rows", "mismatches", "share", "worst_difference")
    return {
        "values": values,
        "equal_share": 1 - wrong / values if values else None,
        "worst": [{name: each[name] for name in told} for each in worst],
    }


def states_of(recomputed: Sequence[Recomputed]) -> dict[str, int]:
    """How many rows are in each state."""
    found = Counter(one.state for one in recomputed)
    return {str(state): found[state] for state in State}


def _tally(difference_N: Float32s, chosen_N: Bools) -> dict[str, Any]:
    chosen = difference_N[chosen_N]
    mismatches = int(np.count_nonzero(chosen))
    return {
        "rows": len(chosen),
        "mismatches": mismatches,
        "share": mismatches / len(chosen) if len(chosen) else None,
        "worst_difference": float(chosen.max(initial=0.0)),
    }


def _example(
    entity: Entity, row: ServedRow, served: np.float32, latest: np.float32, earliest: np.float32
) -> dict[str, Any]:
    # Whose it is stands in the slate alone: an erasure need not look for users in reports.
    key = {field: value for field, value in zip(KEY_FIELDS[entity], row.key, strict=True) if field != "user_id"}
    return {
        "request_id": row.request_id,
        "position": row.position,
        **key,
        "instant_ms": row.instant_ms,
        "served": float(served),
        "recomputed": float(latest),
        "recomputed_earlier": float(earliest),
    }
