"""What differs between two bundles: their manifests, and their answers to the same examples. Shapes: N examples."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.bundle import Bundle, read_layout, read_manifest, read_value_weights
from models.evaluate_bundle import ScoredExamples, score_examples
from models.metrics import Interval, auc, bootstrap, gauc, log_loss
from models.ranker.evaluation import POSITIVE, realised_value, slate_ndcg
from models.ranker_inputs import HEADS

Int64s = npt.NDArray[np.int64]

ROUNDS = 100
"""Of the bootstrap, which draws users."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One fact in which two bundles differ; None where a bundle lacks it."""

    section: str
    """`parts`, `features`, `delta versions`, `seeds`, `configuration`, `runs`, `code`, `weights` or `metrics`."""
    name: str
    a: Any
    b: Any

    @property
    def change(self) -> float | None:
        """b - a of two numbers."""
        numeric = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (self.a, self.b))
        return float(self.b) - float(self.a) if numeric else None


@dataclass(frozen=True, kw_only=True)
class MetricDifference:
    """One metric of both bundles on the same examples, and b - a with its 95% interval over users."""

    metric: str
    a: float
    b: float
    change: Interval

    @property
    def told(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.change.low > 0 or self.change.high < 0


def differences(path_a: Path, path_b: Path) -> list[Difference]:
    """Every fact in which two bundles' manifests, weights and ranker inputs differ, without loading the rankers.

    A metric is as measured in training, each on its own test examples. Raises `BundleError`.
    """
    one, other = _facts(path_a), _facts(path_b)
    return [found for section in one for found in _between(section, one[section], other[section])]


def _facts(path: Path) -> dict[str, Mapping[str, Any]]:
    manifest, layout = read_manifest(path), read_layout(path)
    features = [*layout.user_features, *layout.candidate_features]
    return {
        "parts": _parts(manifest),
        "features": {"version": manifest["features_version"], **dict.fromkeys(features, "read")},
        "delta versions": manifest.get("delta_versions", {}),
        "seeds": manifest.get("seeds", {}),
        "configuration": manifest.get("configuration", {}),
        "runs": manifest.get("runs", {}),
        "code": {"version": manifest.get("code_version")},
        "weights": read_value_weights(path),
        "metrics": manifest.get("metrics", {}),
    }


def on_the_same_examples(a: Bundle, b: Bundle, rows: pa.Table, seed: int = 0) -> list[MetricDifference]:
    """Every head's AUC and log loss, click GAUC and slate NDCG of both, with bootstrap intervals of b - a.

    Both are judged by the gains of b's value weights, and users are drawn for both at once. A metric that the examples
    cannot tell is left out.
    """
    scored = (score_examples(a, rows), score_examples(b, rows))
    gain_N = realised_value(scored[0].label_NT, b.value_weights)
    value_N = [one.value(bundle.value_weights) for one, bundle in zip(scored, (a, b), strict=True)]
    request_N, user_N = scored[0].request_N, scored[0].user_N

    def ndcg_of(side: int, rows_N: Int64s) -> float:
        return slate_ndcg(gain_N[rows_N], value_N[side][rows_N], _drawn_anew(request_N[rows_N], rows_N))

    metrics: dict[str, Callable[[int, Int64s], float]] = {"slate NDCG": ndcg_of, "click GAUC": _click_gauc(scored)}
    for head in HEADS:
        metrics |= _head_metrics(scored, head)
    found = [_difference(name, of, user_N, seed) for name, of in metrics.items()]
    return [one for one in found if np.isfinite([one.a, one.b]).all()]


def _difference(name: str, of: Callable[[int, Int64s], float], user_N: Int64s, seed: int) -> MetricDifference:
    everyone_N = np.arange(len(user_N))
    change = bootstrap(lambda rows_N: of(1, rows_N) - of(0, rows_N), user_N, np.random.default_rng(seed), rounds=ROUNDS)
    return MetricDifference(metric=name, a=of(0, everyone_N), b=of(1, everyone_N), change=change)


def _click_gauc(scored: tuple[ScoredExamples, ScoredExamples]) -> Callable[[int, Int64s], float]:
    clicked_N, user_N = scored[0].label("click") > 0, scored[0].user_N
    return lambda side, rows_N: gauc(clicked_N[rows_N], scored[side].served["click"][rows_N], user_N[rows_N])


def _head_metrics(
    scored: tuple[ScoredExamples, ScoredExamples], head: str
) -> dict[str, Callable[[int, Int64s], float]]:
    label_N = scored[0].label(head)
    defined_N = ~np.isnan(label_N)

    def auc_of(side: int, rows_N: Int64s) -> float:
        kept_N = rows_N[defined_N[rows_N]]
        return auc(label_N[kept_N] >= POSITIVE, scored[side].served[head][kept_N])

    def log_loss_of(side: int, rows_N: Int64s) -> float:
        kept_N = rows_N[defined_N[rows_N]]
        return log_loss(label_N[kept_N], scored[side].logged[head][kept_N])

    return {f"{head} AUC": auc_of, f"{head} log loss": log_loss_of}


def _drawn_anew(request_N: Int64s, rows_N: Int64s) -> Int64s:
    """Slates of a drawn sample, numbered so that a slate that was drawn twice is two slates."""
    order = np.argsort(rows_N, kind="stable")
    sorted_N = rows_N[order]
    time_N = np.empty(len(rows_N), np.int64)
    time_N[order] = np.arange(len(rows_N)) - np.searchsorted(sorted_N, sorted_N)
    return np.asarray(request_N * (time_N.max(initial=0) + 1) + time_N, np.int64)


def _parts(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(digest)[:12] for name, digest in manifest["files"].items()}


def _between(section: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    for name in {**flat_a, **flat_b}:
        if flat_a.get(name) != flat_b.get(name):
            yield Difference(section=section, name=name, a=flat_a.get(name), b=flat_b.get(name))


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value
