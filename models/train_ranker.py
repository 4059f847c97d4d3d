"""`python -m models.train_ranker`: trains, calibrates, exports and reports the multitask ranker.

Twice. What is reported is trained on the older examples: the last tenth by time is test, the tenth before it validation
(early stopping, calibration). What is shipped is trained by the same settings on examples of all times, the newest too,
but for those of some users: one part of them is its validation, the other judges it (`models.splits`).
"""

import argparse
import json
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import dataset as ds

from features import specs
from features.names import LakeTables
from models import refusal
from models.affinity import affinity_of, cross_fitted
from models.als import AlsConfig
from models.arrays import load_arrays
from models.bundle import CALIBRATION, LAYOUT, RANKER
from models.configuration import read_configuration
from models.examples import Examples, assemble, devices_of, example_batches, example_dataset, newest
from models.item_table import ItemTable
from models.lake import read_events
from models.leakage import LeakageError, check_split, check_windows, checked_histories
from models.ranker import baselines
from models.ranker.calibration import Calibration, fit_platt
from models.ranker.config import RankerConfig
from models.ranker.evaluation import Scores
from models.ranker.export import export
from models.ranker.report import report_on, training_rates
from models.ranker.scorer import Ranker
from models.ranker.single_task import train_single_tasks
from models.ranker.training import Data, Trained, predict, train_ranker
from models.ranker_inputs import HEADS, RankerInputs, RankerLayout
from models.sources.als import AlsSource
from models.splits import SplitError, TimeSplit, is_calibrating, is_judging, time_split, user_draw
from models.workspace import CANDIDATES, REPORT, TEST_EXAMPLES, atomic_json, latest_run, new_run
from models.workspace import RANKER as KIND

log = logging.getLogger(__name__)

Int64s = npt.NDArray[np.int64]

MAX_TEST_EXAMPLES = 20_000
"""The newest that are left for promotion to judge bundles on."""


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


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The trained network with its calibration, and what both were made of."""

    data: Data
    layout: RankerLayout
    trained: Trained
    calibration: Calibration


def split_rows(examples: Examples, split: TimeSplit) -> dict[str, Int64s]:
    """The rows of `train`, `validation` and `test`. Raises `LeakageError` when their times overlap."""
    parts = (("train", split.train), ("validation", split.validation), ("test", split.test))
    rows = {name: np.flatnonzero(part(examples.time_ms_N)) for name, part in parts}
    check_split(examples.time_ms_N, rows)
    return rows


def shipped_rows(examples: Examples, split: TimeSplit) -> dict[str, Int64s]:
    """The rows of what is shipped: `train`, `validation` (of the calibrating users) and `test`, those of the judging
    users since the time split's train part. Raises `SplitError` when a part is empty.
    """
    draw_N = examples.user_draw_N
    judging_N, calibrating_N = is_judging(draw_N), is_calibrating(draw_N)
    parts = {
        "train": ~judging_N & ~calibrating_N,
        "validation": calibrating_N,
        "test": judging_N & (examples.time_ms_N >= split.validation_start_ms),
    }
    rows = {name: np.flatnonzero(part) for name, part in parts.items()}
    for name, part in rows.items():
        if not len(part):
            users = len(np.unique(examples.user_N))
            raise SplitError(f"no example of {users} users is in the part {name}: let more users gather.")
    return rows


def look_for_leaks(examples: Examples, train_rows: Int64s, config: RankerConfig) -> None:
    """Raises `LeakageError` for a windowed feature that knows the future, or only logs it where so configured."""
    try:
        check_windows(examples.inputs, examples.label_NT, train_rows)
    except LeakageError as error:
        if config.refuse_leaks:
            raise
        log.warning("%s", error)


def fit(
    examples: Examples, layout: RankerLayout, config: RankerConfig, rows: dict[str, Int64s], seed: int, checkpoint: Path
) -> Fitted:
    """Trains and calibrates; test rows are not touched. The checkpoint stays."""
    data = Data.of(examples, rows["train"], rows["validation"])
    trained = train_ranker(data, layout, config, seed, checkpoint)
    logit_NT = predict(trained.network, data.inputs, rows["validation"])
    calibration = calibrate(logit_NT, examples.label_NT[rows["validation"]])
    return Fitted(data=data, layout=layout, trained=trained, calibration=calibration)


def export_samples(examples: Examples, rows: Int64s) -> list[RankerInputs]:
    """Inputs as served (one user row) and as trained (a user row an example), for the exporter to compare."""
    many = examples.inputs.take(rows[:256])
    one_user = {name: array[:1] for name, array in many.feed().items() if "_U" in name}
    return [replace(many, **one_user), many]


def comparisons(
    examples: Examples, fitted: Fitted, config: RankerConfig, rows: dict[str, Int64s], seed: int
) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """What the ranker is compared with on the test rows, and how far the single-task nets among it were trained."""
    label_NT = examples.label_NT
    rate_T = training_rates(label_NT[rows["train"]])
    others = {
        "popularity": baselines.popularity_scores(examples.inputs, label_NT, rows, rate_T),
        "lightgbm": baselines.tree_scores(examples.inputs, label_NT, rows, seed, config.threads),
    }
    if not config.single_task_share:
        return others, {}
    single = train_single_tasks(fitted.data, fitted.layout, config, fitted.trained, rows["test"], seed)
    return {**others, "single_task": single.scores}, single.trained


def with_affinities(
    examples: Examples, split: TimeSplit, lake: Path, candidates: Path, item_table: ItemTable, seed: int
) -> tuple[Examples, Examples, dict[str, int]]:
    """The examples for what is reported, by ALS factors that know nothing from the split's train part on, and for what
    is shipped, by factors of all times; and the Delta version of the events that these were trained on.

    Where the candidates' ALS knows the users who judge, it says nothing in either.
    """
    report = json.loads((candidates / REPORT).read_text())
    if report.get("als_knows_judges", True):
        log.warning("the ranker does without ALS's affinities: the factors of %s know its judges", candidates.name)
        return examples, examples, {}
    config = AlsConfig.model_validate(report["config"]["als"])
    events, version = read_events(lake, item_table)
    bundled = AlsSource.from_arrays(load_arrays(candidates / "sources" / "als.npz"))
    before = events.where(split.train(events.time_ms_N))
    sources = (
        cross_fitted(before, len(item_table), config, seed),
        cross_fitted(events, len(item_table), config, seed, bundled),
    )
    reported, shipping = (examples.with_affinity(affinity_of(examples, of_folds)) for of_folds in sources)
    return reported, shipping, {LakeTables().silver_events: version}


def train(lake: Path, workspace: Path, seed: int, config: RankerConfig, run_id: str) -> dict[str, Any]:
    """Runs the whole training and leaves a run of this kind in the workspace; returns its report."""
    started = time.monotonic()
    candidates = latest_run(workspace, CANDIDATES)
    item_table = ItemTable.from_arrays(load_arrays(candidates / "items.npz"))
    dataset, version = example_dataset(lake)
    layout = layout_for(item_table, devices_of(dataset))
    chosen = newest(dataset)
    batches = checked_histories(example_batches(chosen))
    examples = assemble(batches, chosen.count_rows(), layout, item_table)
    split = time_split(examples.time_ms_N)
    rows = split_rows(examples, split)
    look_for_leaks(examples, rows["train"], config)
    log.info("read %d examples in %.1f s", len(examples), time.monotonic() - started)
    own_rows = shipped_rows(examples, split)
    reported, shipping, events_version = with_affinities(examples, split, lake, candidates, item_table, seed)
    log.info("ALS's affinities after %.1f s", time.monotonic() - started)
    checkpoints = [workspace / KIND / f"checkpoint-{name}.pt" for name in ("reported", "shipped")]
    fitted = fit(reported, layout, config, rows, seed, checkpoints[0])
    log.info("trained what is reported after %.1f s", time.monotonic() - started)
    shipped = fit(shipping, layout, config, own_rows, seed, checkpoints[1])
    samples = export_samples(reported, rows["validation"])
    with new_run(workspace, KIND, run_id) as draft:
        export(shipped.trained.network, draft / RANKER, samples)
        atomic_json(draft / LAYOUT, layout.to_json())
        atomic_json(draft / CALIBRATION, shipped.calibration.to_json())
        pq.write_table(_judging_rows(dataset, split), draft / TEST_EXAMPLES)
        trained_s = time.monotonic() - started
        log.info("trained and exported after %.1f s; comparing", trained_s)
        with TemporaryDirectory() as directory:
            exported = Path(directory) / RANKER
            export(fitted.trained.network, exported, samples)
            ranker = Ranker.load(exported, layout, fitted.calibration, config.threads)
        others, single_task = comparisons(reported, fitted, config, rows, seed)
        report: dict[str, Any] = {
            **report_on(reported, ranker, others, rows, seed),
            "shipped": {
                "epochs": shipped.trained.epochs,
                "best_epoch": shipped.trained.best_epoch,
                "examples": {name: len(part) for name, part in own_rows.items()},
            },
            "single_task_training": single_task,
            "run_id": run_id,
            "candidates_run_id": candidates.name,
            "seed": seed,
            "config": config.model_dump(),
            "epochs": fitted.trained.epochs,
            "best_epoch": fitted.trained.best_epoch,
            "examples": {name: len(part) for name, part in rows.items()},
            "split": {"validation_start_ms": split.validation_start_ms, "test_start_ms": split.test_start_ms},
            "features_version": specs.version(),
            "delta_versions": {LakeTables().examples: version, **events_version},
            "seconds_trained": trained_s,
            "seconds": time.monotonic() - started,
        }
        atomic_json(draft / REPORT, report)
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)
    log.info("run %s: click AUC %.4f in %.1f s", run_id, report["heads"]["click"]["auc"], report["seconds"])
    return report


def _judging_rows(dataset: ds.Dataset, split: TimeSplit) -> pa.Table:
    """The newest examples of the judging users, since the time split's train part."""
    recent = dataset.filter(ds.field("t_ms") >= split.validation_start_ms)
    batches = []
    for batch in example_batches(recent):
        draw_N = np.array([user_draw(user_id or "") for user_id in batch.column("user_id").to_pylist()])
        batches.append(batch.filter(pa.array(is_judging(draw_N))))
    return newest(ds.dataset(pa.Table.from_batches(batches)), MAX_TEST_EXAMPLES).to_table()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, required=True, help="root of the Delta tables")
    parser.add_argument("--workspace", type=Path, required=True, help="holds the candidates' run, gets this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, help="file of models.ranker.config.RankerConfig's fields")
    parser.add_argument("--now-ms", type=int, help="names the run (default: the wall clock)")
    parser.add_argument("--run-id", help="name of the run (default: from the instant)")
    parser.add_argument("--report", type=Path, help="also write the report there")
    flags = parser.parse_args()
    now_ms = flags.now_ms if flags.now_ms is not None else time.time_ns() // 1_000_000
    config = read_configuration(RankerConfig, flags.config, "ranker configuration") if flags.config else RankerConfig()
    report = train(flags.lake, flags.workspace, flags.seed, config, flags.run_id or f"{KIND}-{now_ms}")
    if flags.report:
        atomic_json(flags.report, report)


if __name__ == "__main__":
    refusal.run(main)
