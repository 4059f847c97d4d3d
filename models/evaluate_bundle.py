"""Any bundle put to the same logged examples: what promotion compares. Shapes: N examples, T heads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.affinity import affinity_of
from models.bundle import Bundle
from models.examples import BATCH_ROWS, COLUMNS, assemble
from models.metrics import auc, expected_calibration_error, gauc, log_loss
from models.ranker.evaluation import realised_value, slate_ndcg
from models.ranker_inputs import CANDIDATE_FEATURES, HEADS
from models.refusal import RefusalError
from models.value import DEFAULT_WEIGHTS, value

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

POPULARITY_FEATURE = "item_clicks_7d"
ECE_BINS = 15


@dataclass(frozen=True, kw_only=True)
class HeadCalibration:
    """How well one head's probabilities are met, over the examples where its label is defined."""

    ece: float
    """Expected calibration error at the logged positions; NaN for no examples."""
    noise: float
    """What it would be by chance alone if the probabilities were right; NaN for no examples."""
    examples: int


@dataclass(frozen=True, kw_only=True)
class BundleQuality:
    """Metrics of one bundle on a set of examples; NaN where the examples cannot tell."""

    click_auc: float
    click_gauc: float
    click_log_loss: float
    slate_ndcg: float
    """Of the logged slates, reordered by the bundle's value; gains by the same weights for every bundle."""
    popularity_auc: float
    """Of the item's clicks in the last week, on the same examples."""
    calibration: dict[str, HeadCalibration] = field(default_factory=dict)
    """By head."""


@dataclass(frozen=True, kw_only=True)
class ScoredExamples:
    """A bundle's answers to a set of examples, in the examples' order whatever the bundle."""

    label_NT: Float32s
    served: dict[str, Float32s]
    """Probability by head, asked for at the serving position."""
    logged: dict[str, Float32s]
    """Probability by head at the logged position, where the label was gathered."""
    popular_N: Float32s
    user_N: Int64s
    request_N: Int64s

    def label(self, head: str) -> Float32s:
        """The head's labels, NaN where undefined."""
        return self.label_NT[:, HEADS.index(head)]

    def value(self, weights: Mapping[str, float]) -> Float64s:
        """The value of each example by the weights."""
        return value(self.served, weights).astype(np.float64)


def read_test_examples(path: Path) -> pa.Table:
    """The test rows that a ranker's run left. Raises `RefusalError` when they are unreadable, none or incomplete."""
    try:
        rows = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RefusalError(f"test examples {path} cannot be read: {error}; train the ranker again.") from error
    if not rows.num_rows:
        raise RefusalError(f"test examples {path} are empty; train the ranker again.")
    if missing := [name for name in COLUMNS if name not in rows.column_names]:
        raise RefusalError(f"test examples {path} lack {', '.join(missing)}; train the ranker again.")
    return rows


def score_examples(bundle: Bundle, rows: pa.Table) -> ScoredExamples:
    """Scores the rows as this bundle would: its own indices, factors, ranker and calibration."""
    examples = assemble(
        rows.to_batches(max_chunksize=BATCH_ROWS), rows.num_rows, bundle.ranker.layout, bundle.item_table
    )
    if bundle.als is not None:
        examples = examples.with_affinity(affinity_of(examples, [bundle.als]))
    return ScoredExamples(
        label_NT=examples.label_NT,
        served=bundle.ranker.score(examples.inputs.as_served()),
        logged=bundle.ranker.score(examples.inputs),
        popular_N=examples.inputs.candidate_CF[:, CANDIDATE_FEATURES.index(POPULARITY_FEATURE)],
        user_N=examples.user_N,
        request_N=examples.request_N,
    )


def evaluate_bundle(
    bundle: Bundle, rows: pa.Table, gain_weights: Mapping[str, float] = DEFAULT_WEIGHTS
) -> BundleQuality:
    """The bundle's metrics on the rows, ordered by its own value weights; gains of slates by `gain_weights`."""
    scored = score_examples(bundle, rows)
    clicked_N = scored.label("click")
    gain_N = realised_value(scored.label_NT, gain_weights)
    return BundleQuality(
        click_auc=auc(clicked_N > 0, scored.served["click"]),
        click_gauc=gauc(clicked_N > 0, scored.served["click"], scored.user_N),
        click_log_loss=log_loss(clicked_N, scored.logged["click"]),
        slate_ndcg=slate_ndcg(gain_N, scored.value(bundle.value_weights), scored.request_N),
        popularity_auc=auc(clicked_N > 0, scored.popular_N),
        calibration={head: head_calibration(scored.label(head), scored.logged[head]) for head in HEADS},
    )


def head_calibration(label_N: Float32s, probability_N: Float32s) -> HeadCalibration:
    """Calibration over the examples whose label is defined."""
    defined_N = ~np.isnan(label_N)
    label_N, probability_N = label_N[defined_N], probability_N[defined_N]
    return HeadCalibration(
        ece=expected_calibration_error(label_N, probability_N, ECE_BINS),
        noise=calibration_noise(probability_N),
        examples=int(defined_N.sum()),
    )


def calibration_noise(probability_N: Float32s) -> float:
    """The ECE to expect of right probabilities, from the finite number of examples alone. NaN for no examples.

    The observed rate of a bin of n examples has the variance v = sum p (1 - p) / n², and a normal deviate of
    variance v is sqrt(2 v / pi) from its mean on average. Fractional labels vary less, so it is their upper bound.
    """
    if not len(probability_N):
        return float("nan")
    parts = np.array_split(np.sort(probability_N.astype(np.float64)), min(ECE_BINS, len(probability_N)))
    gaps = [np.sqrt(2 / np.pi * np.sum(part * (1 - part))) / len(part) for part in parts]
    return float(np.average(gaps, weights=[len(part) for part in parts]))
