"""Any bundle put to the same logged examples: what promotion compares."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.bundle import Bundle
from models.examples import BATCH_ROWS, assemble
from models.metrics import auc, expected_calibration_error, gauc, log_loss
from models.ranker.evaluation import realised_value, slate_ndcg
from models.ranker_inputs import CANDIDATE_FEATURES, HEADS
from models.refusal import RefusalError
from models.value import DEFAULT_WEIGHTS, value

POPULARITY_FEATURE = "item_clicks_7d"


@dataclass(frozen=True, kw_only=True)
class BundleQuality:
    """Metrics of one bundle on a set of examples; NaN where the examples cannot tell."""

    click_auc: float
    click_gauc: float
    click_log_loss: float
    click_ece: float
    slate_ndcg: float
    """Of the logged slates, reordered by the bundle's value; gains by the default weights for every bundle."""
    popularity_auc: float
    """Of the item's clicks in the last week, on the same examples."""


def read_test_examples(path: Path) -> pa.Table:
    """The test rows that a ranker's run left. Raises `RefusalError` when they are unreadable or none."""
    try:
        rows = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RefusalError(f"test examples {path} cannot be read: {error}; train the ranker again.") from error
    if not rows.num_rows:
        raise RefusalError(f"test examples {path} are empty; train the ranker again.")
    return rows


def evaluate_bundle(bundle: Bundle, rows: pa.Table) -> BundleQuality:
    """Scores the rows as this bundle would: its own indices, ranker, calibration and value weights."""
    batches = rows.to_batches(max_chunksize=BATCH_ROWS)
    examples = assemble(batches, rows.num_rows, bundle.ranker.layout, bundle.item_table)
    clicked_N = examples.label_NT[:, HEADS.index("click")]
    served, logged = bundle.ranker.score(examples.inputs.as_served()), bundle.ranker.score(examples.inputs)
    value_N = value(served, bundle.value_weights).astype(np.float64)
    gain_N = realised_value(examples.label_NT, DEFAULT_WEIGHTS)
    popular_N = examples.inputs.candidate_CF[:, CANDIDATE_FEATURES.index(POPULARITY_FEATURE)]
    return BundleQuality(
        click_auc=auc(clicked_N > 0, served["click"]),
        click_gauc=gauc(clicked_N > 0, served["click"], examples.user_N),
        click_log_loss=log_loss(clicked_N, logged["click"]),
        click_ece=expected_calibration_error(clicked_N, logged["click"]),
        slate_ndcg=slate_ndcg(gain_N, value_N, examples.request_N),
        popularity_auc=auc(clicked_N > 0, popular_N),
    )
