"""`python -m models.train_ranker`: trains, calibrates, exports and reports the multitask ranker.

The last tenth of the examples by time is test, the tenth before it validation (early stopping, calibration).
"""

import argparse
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import dataset as ds

from features import specs
from features.names import LakeTables
from models import refusal
from models.bundle import CALIBRATION, LAYOUT, RANKER
from models.examples import Examples, assemble, devices_of, example_batches, example_dataset, newest
from models.item_table import ItemTable
from models.ranker import baselines
from models.ranker.calibration import Calibration, fit_platt, identity
from models.ranker.config import RankerConfig
from models.ranker.evaluation import (
    auc_interval,
    probability_metrics,
    ranking_metrics,
    realised_value,
    slate_ndcg,
)
from models.ranker.export import export
from models.ranker.scorer import Ranker
from models.ranker.training import Data, Trained, predict, train_ranker
from models.ranker_inputs import HEADS, RankerInputs, RankerLayout
from models.splits import TimeSplit, time_split
from models.value import DEFAULT_WEIGHTS, value
from models.workspace import CANDIDATES, REPORT, TEST_EXAMPLES, atomic_json, latest_run, new_run
from models.workspace import RANKER as KIND

log = logging.getLogger(__name__)

Int64s = npt.NDArray[np.int64]

MAX_TEST_EXAMPLES = 20_000


def layout_for(item_table: ItemTable, devices: tuple[str, ...]) -> RankerLayout:
    """The inputs of a ranker that is trained on this catalogue."""
    sizes = item_table.trained
    return RankerLayout(
        devices=devices,
        items=sizes.items,
        categories=sizes.categories,
        creators=sizes.creators,
        languages=sizes.languages,
    )


def calibrate(logit_NT: npt.NDArray[np.float32], label_NT: npt.NDArray[np.float32]) -> Calibration:
    """Platt scaling of each head on the examples where its label is defined."""
    fitted = []
    for t in range(len(HEADS)):
        defined_N = ~np.isnan(label_NT[:, t])
        fitted.append(fit_platt(logit_NT[defined_N, t], label_NT[defined_N, t]))
    slope_T, intercept_T = np.array(fitted).T
    return Calibration(slope_T=slope_T, intercept_T=intercept_T)


def report_on(
    examples: Examples, ranker: Ranker, rows: dict[str, Int64s], seed: int, threads: int
) -> dict[str, dict[str, Any]]:
    """Metrics of every head on the test rows, beside popularity, the training rate and trees."""
    test = rows["test"]
    inputs, label_NT, user_N = examples.inputs.take(test), examples.label_NT[test], examples.user_N[test]
    served_NT, logged_NT = ranker.logits(inputs.as_served()), ranker.logits(inputs)
    before_NT, after_NT = identity(len(HEADS))(logged_NT), ranker.calibration(logged_NT)
    popular_N = baselines.popularity(inputs)
    matrix_NF = baselines.tree_matrix(examples.inputs)
    served_NF = baselines.tree_matrix(inputs.as_served())
    heads: dict[str, dict[str, Any]] = {}
    tuning = (rows["train"], rows["validation"])
    for t, head in enumerate(HEADS):
        label_N = label_NT[:, t]
        rate = float(np.nan_to_num(np.nanmean(examples.label_NT[rows["train"], t])))
        low, high = auc_interval(label_N, served_NT[:, t], user_N, seed)
        trees = baselines.train_trees(matrix_NF, examples.label_NT[:, t], tuning, seed, threads)
        heads[head] = {
            **ranking_metrics(label_N, served_NT[:, t], user_N),
            "auc_interval": [low, high],
            **probability_metrics(label_N, after_NT[:, t]),
            "ece_before": probability_metrics(label_N, before_NT[:, t])["ece"],
            "examples": int((~np.isnan(label_N)).sum()),
            "rate": float(np.nanmean(label_N)) if (~np.isnan(label_N)).any() else None,
            "popularity": ranking_metrics(label_N, popular_N, user_N),
            "training_rate": probability_metrics(label_N, np.full(len(label_N), rate)),
        }
        if trees is not None:
            heads[head]["lightgbm"] = {
                **ranking_metrics(label_N, baselines.tree_probabilities(trees, served_NF), user_N),
                **probability_metrics(label_N, baselines.tree_probabilities(trees, matrix_NF[test])),
            }
    return heads


def slate_report(examples: Examples, ranker: Ranker, test: Int64s) -> dict[str, float]:
    """NDCG of the logged test slates reordered by value, by popularity and as they were shown."""
    inputs, request_N = examples.inputs.take(test), examples.request_N[test]
    gain_N = realised_value(examples.label_NT[test], DEFAULT_WEIGHTS)
    scores: dict[str, npt.NDArray[Any]] = {
        "millrace": value(ranker.score(inputs.as_served()), DEFAULT_WEIGHTS),
        "popularity": baselines.popularity(inputs),
        "as_shown": -inputs.position_C,
    }
    return {name: slate_ndcg(gain_N, score_N.astype(np.float64), request_N) for name, score_N in scores.items()}


def fit(
    examples: Examples, layout: RankerLayout, config: RankerConfig, rows: dict[str, Int64s], seed: int, workspace: Path
) -> tuple[Trained, Calibration]:
    """The trained network and its calibration; test rows are not touched."""
    data = Data.of(examples, rows["train"], rows["validation"])
    checkpoint = workspace / KIND / "checkpoint.pt"
    trained = train_ranker(data, layout, config, seed, checkpoint)
    checkpoint.unlink(missing_ok=True)
    logit_NT = predict(trained.network, data.inputs, rows["validation"])
    return trained, calibrate(logit_NT, examples.label_NT[rows["validation"]])


def export_samples(examples: Examples, rows: Int64s) -> list[RankerInputs]:
    """Inputs as served (one user row) and as trained (a user row an example), for the exporter to compare."""
    many = examples.inputs.take(rows[:256])
    one_user = {name: array[:1] for name, array in many.feed().items() if "_U" in name}
    return [replace(many, **one_user), many]


def train(lake: Path, workspace: Path, seed: int, config: RankerConfig, run_id: str) -> dict[str, Any]:
    """Runs the whole training and leaves a run of this kind in the workspace; returns its report."""
    started = time.monotonic()
    candidates = latest_run(workspace, CANDIDATES)
    with np.load(candidates / "items.npz", allow_pickle=False) as stored:
        item_table = ItemTable.from_arrays(dict(stored))
    dataset, version = example_dataset(lake)
    layout = layout_for(item_table, devices_of(dataset))
    chosen = newest(dataset)
    examples = assemble(example_batches(chosen), chosen.count_rows(), layout, item_table)
    split = time_split(examples.time_ms_N)
    rows = {
        name: np.flatnonzero(part(examples.time_ms_N))
        for name, part in (("train", split.train), ("validation", split.validation), ("test", split.test))
    }
    log.info("read %d examples in %.1f s", len(examples), time.monotonic() - started)
    trained, calibration = fit(examples, layout, config, rows, seed, workspace)
    with new_run(workspace, KIND, run_id) as draft:
        export(trained.network, draft / RANKER, export_samples(examples, rows["validation"]))
        atomic_json(draft / LAYOUT, layout.to_json())
        atomic_json(draft / CALIBRATION, calibration.to_json())
        pq.write_table(_test_rows(dataset, split), draft / TEST_EXAMPLES)
        ranker = Ranker.load(draft / RANKER, layout, calibration, config.threads)
        log.info("trained and exported after %.1f s; evaluating", time.monotonic() - started)
        report: dict[str, Any] = {
            "heads": report_on(examples, ranker, rows, seed, config.threads),
            "slate_ndcg": slate_report(examples, ranker, rows["test"]),
            "run_id": run_id,
            "candidates_run_id": candidates.name,
            "seed": seed,
            "config": config.model_dump(),
            "epochs": trained.epochs,
            "best_epoch": trained.best_epoch,
            "examples": {name: len(part) for name, part in rows.items()},
            "split": {"validation_start_ms": split.validation_start_ms, "test_start_ms": split.test_start_ms},
            "features_version": specs.version(),
            "delta_versions": {LakeTables().examples: version},
            "seconds": time.monotonic() - started,
        }
        atomic_json(draft / REPORT, report)
    log.info("run %s: click AUC %.4f in %.1f s", run_id, report["heads"]["click"]["auc"], report["seconds"])
    return report


def _test_rows(dataset: ds.Dataset, split: TimeSplit) -> pa.Table:
    test = dataset.filter(ds.field("t_ms") >= split.test_start_ms)
    return pa.Table.from_batches(example_batches(newest(test, MAX_TEST_EXAMPLES)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, required=True, help="root of the Delta tables")
    parser.add_argument("--workspace", type=Path, required=True, help="holds the candidates' run, gets this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, help="JSON file of models.ranker.config.RankerConfig's fields")
    parser.add_argument("--now-ms", type=int, help="names the run (default: the wall clock)")
    parser.add_argument("--run-id", help="name of the run (default: from the instant)")
    parser.add_argument("--report", type=Path, help="also write the report there")
    flags = parser.parse_args()
    now_ms = flags.now_ms if flags.now_ms is not None else time.time_ns() // 1_000_000
    config = read_config(flags.config) if flags.config else RankerConfig()
    report = train(flags.lake, flags.workspace, flags.seed, config, flags.run_id or f"{KIND}-{now_ms}")
    if flags.report:
        atomic_json(flags.report, report)


def read_config(file: Path) -> RankerConfig:
    """The configuration in a JSON file. Raises `RefusalError` that names what is wrong."""
    try:
        return RankerConfig(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        wrong = " ".join(str(error).split())
        raise refusal.RefusalError(f"ranker configuration {file}: {wrong}") from error


if __name__ == "__main__":
    refusal.run(main)
