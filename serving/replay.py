"""A logged request run again: what comes out as it was, bit for bit, and what does not.

| part | made again of |
|---|---|
| features | the user's state, history and the catalogue; items', creators' and categories' windowed ones as logged |
| probabilities | the logged inputs, by the bundle's ranker |
| scores | the probabilities, under the logged value weights |
| slate | the logged scores, by the logged settings and rules, with the request's own draws |
| propensities | the same |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from models.value import value
from serving.past_request import PastRequest

TOLERANCE = 1e-5
"""How far probabilities may be off where only the returned items' inputs were logged: the last bits of a matrix product
depend on how many rows it has."""


class Verdict(StrEnum):
    """How a part came out."""

    EQUAL = "equal"
    """Bit for bit."""
    CLOSE = "close"
    """Not bit for bit, but as near as can be expected of what was logged."""
    DIFFERENT = "different"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One part of a replay."""

    part: str
    verdict: Verdict
    said: str
    """One clause: what was compared, or what differs."""


def replay(past: PastRequest) -> tuple[Check, ...]:
    """Runs the request again, part by part."""
    return (*_scoring(past), *_slate(past))


def _scoring(past: PastRequest) -> tuple[Check, ...]:
    logged = past.logged_inputs()
    if logged is None:
        return (Check(part="features", verdict=Verdict.EQUAL, said="the ranker did not score this request"),)
    if not len(logged):
        return (Check(part="features", verdict=Verdict.EQUAL, said="no candidates"),)
    row_R = past.arrays["input_row_R"]
    again_RT = past.view.bundle.ranker.score(logged)
    logged_RT = past.arrays["probability_RT"]
    probability_RT = np.stack(list(again_RT.values()), axis=1)
    value_R = value(again_RT, past.arm.value_weights).astype(np.float64)
    return (
        _features(past, logged.feed()),
        _numbers(past, "probabilities", probability_RT, logged_RT),
        _numbers(past, "scores", value_R, past.score_C[row_R]),
    )


def _features(past: PastRequest, logged: Mapping[str, npt.NDArray[Any]]) -> Check:
    made = past.assembled_inputs().feed()
    other = [name for name, array in logged.items() if not _bitwise(made[name], array)]
    whose = "every candidate" if past.evidence.full_features else "the returned items; only theirs were logged"
    said = f"differ: {', '.join(other)}" if other else f"{len(logged)} inputs of {whose}"
    return Check(part="features", verdict=_equal(not other), said=said)


def _numbers(past: PastRequest, part: str, made: npt.NDArray[Any], logged: npt.NDArray[Any]) -> Check:
    if _bitwise(made.astype(logged.dtype), logged):
        return Check(part=part, verdict=Verdict.EQUAL, said=f"{logged.size} numbers, bit for bit")
    with np.errstate(invalid="ignore"):
        off = np.where(made == logged, 0.0, np.abs(made.astype(np.float64) - logged))
    off = np.where(np.isnan(made) & np.isnan(logged), 0.0, off)
    greatest = float(np.nanmax(off)) if np.isfinite(off).any() else float("inf")
    differ = f"{int(np.count_nonzero(off))} of {logged.size} differ, by {greatest:.2g} at most"
    if not past.evidence.full_features and np.isfinite(off).all() and greatest <= TOLERANCE:
        why = "only the returned items' inputs were logged, and the ranker rounds by how many it scores at once"
        return Check(part=part, verdict=Verdict.CLOSE, said=f"{differ}: {why}")
    return Check(part=part, verdict=Verdict.DIFFERENT, said=differ)


def _slate(past: PastRequest) -> tuple[Check, ...]:
    rows, served = past.reranked(), past.served
    row_S = rows.row_S[: len(served.row_S)]
    same = bool(np.array_equal(row_S, served.row_S))
    if same:
        said = f"{len(served.row_S)} items in their order"
    else:
        ids = [[past.item_id(row) for row in each.tolist()] for each in (served.row_S, rows.row_S)]
        first = next((k for k, (was, now) in enumerate(zip(*ids, strict=False)) if was != now), min(map(len, ids)))
        was, now = ((each[first] if first < len(each) else "nothing") for each in ids)
        said = f"position {first} held {was} and gets {now}"
    drawn = rows.propensity_S[: len(served.row_S)]
    explored = np.array_equal(rows.explored_S[: len(served.row_S)], served.explored_S)
    fair = explored and _bitwise(drawn, served.propensity_S)
    odds = f"{len(drawn)} numbers, bit for bit" if fair else "other draws, or other chances"
    return (
        Check(part="slate", verdict=_equal(same), said=said),
        Check(part="propensities", verdict=_equal(fair), said=odds),
    )


def _equal(same: bool) -> Verdict:
    return Verdict.EQUAL if same else Verdict.DIFFERENT


def _bitwise(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
