"""A small workspace of training runs whose rankers are made by hand (`tests.serving_bundle`), so that tests know which
is better: a sharpness of 1 follows the user's taste, 0 knows nothing, -1 shows the opposite.
"""

from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.optimize import minimize

from features import specs
from models.arrays import save_arrays
from models.bundle import CALIBRATION, ITEMS, LAYOUT, RANKER
from models.examples import BATCH_ROWS, COLUMNS, assemble
from models.item_table import train_item_table
from models.ranker.calibration import Calibration, identity
from models.ranker.scorer import Ranker
from models.ranker_inputs import HEADS, RankerLayout
from models.workspace import CANDIDATES, REPORT, TEST_EXAMPLES, atomic_json, new_run
from tests.serving_bundle import tiny_ranker, tiny_sources
from tests.synthetic_lake import SyntheticLake, synthetic_lake


def small_lake() -> SyntheticLake:
    """1,440 examples."""
    return synthetic_lake(users=30, items=60, slates=8)


def write_runs(workspace: Path, lake: SyntheticLake, name: str, sharpness: float, calibrated: bool = True) -> Path:
    """One candidates run and one ranker run, the latest of their kinds; returns the ranker's directory."""
    table = train_item_table(lake.items)
    with new_run(workspace, CANDIDATES, f"candidates-{name}") as draft:
        save_arrays(draft / ITEMS, table.to_arrays())
        sources = tiny_sources(table)
        for source in sources.values():
            save_arrays(draft / "sources" / f"{source.name}.npz", source.to_arrays())
        metrics = {"recall@100": 0.5, "ndcg@10": 0.1, "recall": 0.4}
        report = {"seed": 3, "config": {"als_dim": 64}, "delta_versions": {"silver/items": 1}}
        atomic_json(draft / REPORT, {**report, "sources": dict.fromkeys(sources, metrics)})
    sizes = table.trained
    layout = RankerLayout(
        devices=("phone", "tv"),
        items=sizes.items,
        categories=sizes.categories,
        creators=sizes.creators,
        languages=sizes.languages,
    )
    rows = lake.examples.select(list(COLUMNS))
    with new_run(workspace, "ranker", f"ranker-{name}") as draft:
        onnx.save(tiny_ranker(table, layout, sharpness=sharpness), str(draft / RANKER))
        calibration = identity(len(HEADS))
        if calibrated:
            examples = assemble(rows.to_batches(max_chunksize=BATCH_ROWS), rows.num_rows, layout, table)
            uncalibrated = Ranker.load(draft / RANKER, layout, calibration)
            calibration = fitted(uncalibrated.logits(examples.inputs), examples.label_NT)
        atomic_json(draft / LAYOUT, layout.to_json())
        atomic_json(draft / CALIBRATION, calibration.to_json())
        pq.write_table(pa.table(rows), draft / TEST_EXAMPLES)
        atomic_json(draft / REPORT, _report(name, sharpness))
    return workspace / "ranker" / f"ranker-{name}"


def fitted(logit_NT: np.ndarray, label_NT: np.ndarray) -> Calibration:
    """Slope and intercept of the least log loss of each head, by scipy."""
    found = []
    for t in range(len(HEADS)):
        defined_N = ~np.isnan(label_NT[:, t])
        logit_N, label_N = logit_NT[defined_N, t].astype(float), label_NT[defined_N, t].astype(float)

        def loss(beta: np.ndarray, logit_N: np.ndarray = logit_N, label_N: np.ndarray = label_N) -> float:
            scaled_N = beta[0] * logit_N + beta[1]
            return float(np.mean(np.logaddexp(0, scaled_N) - label_N * scaled_N) + 1e-6 * beta @ beta)

        found.append(minimize(loss, np.array([1.0, 0.0]), method="BFGS").x)
    slope_T, intercept_T = np.array(found).T
    return Calibration(slope_T=slope_T, intercept_T=intercept_T)


def _report(name: str, sharpness: float) -> dict[str, object]:
    metrics = {"auc": 0.7 + np.tanh(sharpness) / 100, "gauc": 0.7, "log_loss": 0.3, "ece": 0.01}
    return {
        "seed": 4,
        "config": {"epochs": 6, "sharpness": sharpness},
        "candidates_run_id": f"candidates-{name}",
        "features_version": specs.version(),
        "heads": dict.fromkeys(HEADS, metrics),
        "slate_ndcg": {"millrace": 0.8},
        "delta_versions": {"gold/examples": 2},
    }
