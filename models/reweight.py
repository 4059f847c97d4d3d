"""Changing what an impression is worth: the champion with other value weights, without retraining."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.bundle import Bundle, champion_id, loaded
from models.bundle_writer import reweighted
from models.evaluate_bundle import ScoredExamples, score_examples
from models.gates import DEFAULT_LIMITS, GateLimits
from models.promotion import decide, judge_weights
from models.ranker.evaluation import realised_value, slate_ndcg
from models.ranker_inputs import HEADS
from models.refusal import RefusalError
from models.registry import Registry
from models.value import checked_weights


@dataclass(frozen=True, kw_only=True)
class WeightsPreview:
    """What other weights would change on the logged slates."""

    slates: int
    led_by_another: int
    """Slates whose most valued item would be another one."""
    ndcg_now: float
    """NDCG of the slates ordered by the present weights, with gains by the new ones; NaN when nothing was gained."""
    ndcg_then: float
    """The same, ordered by the new weights."""


def champion_bundle(bundles_dir: Path) -> Bundle:
    """The verified champion. Raises `RefusalError` when there is none."""
    bundle_id = champion_id(bundles_dir)
    if bundle_id is None:
        raise RefusalError(f"there is no champion in {bundles_dir} yet; promote a bundle first.")
    return loaded(bundles_dir, bundle_id)


def changed_weights(champion: Bundle, changes: Mapping[str, float]) -> dict[str, float]:
    """The champion's weights with the changes, by head. Raises `RefusalError` for what makes no sense."""
    try:
        weights = champion.value_weights | checked_weights(changes)
    except ValueError as error:
        raise RefusalError(f"{error}.") from None
    if weights == champion.value_weights:
        raise RefusalError(f"the champion {champion.bundle_id} has these weights already; give others.")
    if not any(weight > 0 for weight in weights.values()):
        raise RefusalError("no head would have a positive weight, so nothing would be worth showing; give one.")
    return weights


def set_weights(
    registry: Registry,
    workspace: Path,
    champion: Bundle,
    weights: Mapping[str, float],
    now_ms: int,
    rows: pa.Table | None,
    limits: GateLimits = DEFAULT_LIMITS,
) -> dict[str, Any]:
    """Builds the champion with these weights, registers it, and promotes it if it may be; returns the report."""
    path = reweighted(champion.path, weights, now_ms)
    verdict = judge_weights(path.parent, path, rows, limits)
    return decide(registry, workspace, path, verdict, now_ms, action="weights")


def preview(champion: Bundle, weights: Mapping[str, float], rows: pa.Table) -> WeightsPreview:
    """What the weights would change on the rows' slates."""
    scored = score_examples(champion, rows)
    now_N, then_N = scored.value(champion.value_weights), scored.value(weights)
    gain_N = realised_value(scored.label_NT, weights)
    led_now, led_then = _led_by(scored, now_N), _led_by(scored, then_N)
    return WeightsPreview(
        slates=len(led_now),
        led_by_another=int((led_now != led_then).sum()),
        ndcg_now=slate_ndcg(gain_N, now_N, scored.request_N),
        ndcg_then=slate_ndcg(gain_N, then_N, scored.request_N),
    )


def all_heads(weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of every head, 0 where none is given."""
    return {head: weights.get(head, 0.0) for head in HEADS}


def _led_by(scored: ScoredExamples, value_N: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The row of each slate's most valued example, slates in order of their index."""
    order = np.lexsort((-value_N, scored.request_N))
    _, first = np.unique(scored.request_N[order], return_index=True)
    return np.asarray(order[first], np.int64)
