"""What a bundle must pass before it is promoted. Each gate says by how much it was missed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.bundle import Bundle
from models.evaluate_bundle import BundleQuality
from models.refusal import RefusalError
from models.sources import RetrievalRequest

AUC_MARGIN = 0.005
NDCG_MARGIN = 0.01
"""How much worse than the champion (or than popularity) a challenger may be on the same examples."""
MAX_CLICK_ECE = 0.05
PROBE_HISTORY = 5


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One gate's verdict, with the numbers behind it."""

    gate: str
    passed: bool
    detail: str


class PromotionRefusedError(RefusalError):
    """A bundle that did not pass: the message names each gate and by how much it was missed."""


def refusal_of(bundle_id: str, champion: str | None, gates: Sequence[GateResult]) -> PromotionRefusedError:
    """The refusal of a bundle for the gates that it missed."""
    missed = "; ".join(f"{gate.gate}: {gate.detail}" for gate in gates if not gate.passed)
    return PromotionRefusedError(
        f"{bundle_id} is not promoted, the champion stays {champion or 'none'}; gates missed: {missed}. "
        "Correct the data or the training and promote again."
    )


def run_gates(challenger: Bundle, quality: BundleQuality, champion: BundleQuality | None) -> list[GateResult]:
    """Every gate's verdict; the comparison with the champion only where there is one that can be read."""
    results = [
        _finite(quality),
        _sources(challenger),
        _at_least("popularity", "click AUC", quality.click_auc, quality.popularity_auc, AUC_MARGIN),
        _at_most("calibration", "click ECE", quality.click_ece, MAX_CLICK_ECE),
    ]
    if champion is not None:
        results += [
            _at_least("champion_auc", "click AUC", quality.click_auc, champion.click_auc, AUC_MARGIN),
            _at_least("champion_ndcg", "slate NDCG", quality.slate_ndcg, champion.slate_ndcg, NDCG_MARGIN),
        ]
    return results


def _finite(quality: BundleQuality) -> GateResult:
    broken = [name for name, metric in vars(quality).items() if not np.isfinite(metric)]
    return GateResult(gate="finite", passed=not broken, detail=f"non-finite: {', '.join(broken) or 'none'}")


def _at_least(gate: str, what: str, got: float, reference: float, margin: float) -> GateResult:
    detail = f"{what} {got:.4f}, allowed: at least {reference:.4f} - {margin}"
    missed = reference - margin - got
    passed = bool(missed <= 0)
    return GateResult(gate=gate, passed=passed, detail=detail if passed else f"{detail}, missed by {missed:.4f}")


def _at_most(gate: str, what: str, got: float, limit: float) -> GateResult:
    passed = bool(got <= limit)
    detail = f"{what} {got:.4f}, allowed: at most {limit}"
    return GateResult(gate=gate, passed=passed, detail=detail if passed else f"{detail}, missed by {got - limit:.4f}")


def _sources(bundle: Bundle) -> GateResult:
    """Asks every source as a user would who liked popular items, follows a creator, while something trends."""
    table = bundle.item_table
    request = RetrievalRequest(
        instant_ms=int(table.published_at_ms.max(initial=0)) + 1,
        item_table=table,
        history_index_L=np.empty(0, np.int32),
        history_weight_L=np.empty(0, np.float32),
        history_age_ms_L=np.empty(0, np.int64),
        excluded_I=np.zeros(len(table), np.bool_),
        rng=np.random.default_rng(0),
        followed_creators=frozenset(table.creators),
        trending_score_I=np.ones(len(table), np.float32),
    )
    popular = bundle.sources["popular"].candidates(request, PROBE_HISTORY).item_index
    asked = replace(
        request,
        history_index_L=popular,
        history_weight_L=np.ones(len(popular), np.float32),
        history_age_ms_L=np.zeros(len(popular), np.int64),
    )
    empty = [name for name, source in bundle.sources.items() if not len(source.candidates(asked, 10))]
    return GateResult(gate="sources", passed=not empty, detail=f"empty sources: {', '.join(empty) or 'none'}")
