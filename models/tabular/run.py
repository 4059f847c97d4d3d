"""Training and evaluating on one's own tables, from files to a report. Shapes: N rows, T tasks."""

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.own_table import read_table
from models.refusal import RefusalError
from models.tabular.config import RUN, TabularConfig
from models.tabular.encoding import UNKNOWN, Encoder
from models.tabular.evaluation import Metrics, demand_classes, report_on
from models.tabular.model import Origin, TabularModel, calibrate
from models.tabular.split import PARTS, depends_on_order, split_rows
from models.tabular.table import columns_of, labels_of
from models.tabular.training import Part, Trained, fingerprint, predict, train_network

log = logging.getLogger(__name__)

ALL = "all"
SPLITS = (*PARTS, ALL)
"""What `evaluate` can be asked for: a part of the configuration's split, or every row of the table."""
MANY_UNKNOWN = 0.2
"""A column with a larger share of categories that training did not know is warned of."""

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Table:
    rows: pa.Table
    label_NT: Float32s

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.label_NT).data).hexdigest()


def train(
    examples: Path,
    config: TabularConfig,
    out: Path,
    *,
    test: Path | None = None,
    tracking_uri: str | None = None,
) -> Metrics:
    """Trains on the table, leaves the model in the directory `out`, and returns the test rows' metrics by task.

    With `test`, the test rows are that table's, and `examples` is split into training and validation rows only.
    A run that was killed goes on when it is started again with the same rows, configuration and parent of `out`.
    Raises `RefusalError` for input that cannot be worked with, before training where it can be known.
    """
    started = time.monotonic()
    if out.exists():
        raise RefusalError(f"{out} exists already; give another directory or remove it.")
    table = _read(examples, config, with_split=True)
    rows = split_rows(table.rows, config, test_apart=test is not None)
    encoder = Encoder.fit(table.rows, rows["train"], config)
    parts = _parts(table, encoder, rows)
    if test is not None:
        parts["test"] = _whole(_read(test, config, with_split=False), encoder)
    for name in PARTS:
        demand_classes(parts[name], name, config)
    _warn_of_unknown(parts["test"], encoder)
    log.info("%s rows after %.1f s", {name: len(part) for name, part in parts.items()}, time.monotonic() - started)
    trained, model, checkpoint = _fit(table, parts, encoder, config, out, test_apart=test is not None)
    report = report_on(parts["test"].label_NT, predict(model.network, parts["test"].inputs), model.calibration, config)
    report[RUN] = _about(trained, parts, config, time.monotonic() - started)
    model.save(out, report)
    checkpoint.unlink(missing_ok=True)
    if tracking_uri is not None:
        from models.registry import Registry  # MLflow takes seconds to import

        Registry(tracking_uri).log_run(out.name, config.model_dump(mode="json"), report)
    return report


def evaluate(
    model_dir: Path,
    examples: Path,
    *,
    split: str = "test",
    test: Path | None = None,
    with_baselines: bool = False,
) -> Metrics:
    """Metrics by task of a trained model on one part of a table, or on all of it (`ALL`).

    With baselines, what the table's training rows teach LightGBM, single networks and the mean stands beside them.
    Raises `RefusalError` when the part cannot be told as it was in training.
    """
    model = TabularModel.load(model_dir)
    config = model.config
    if split == ALL:
        if with_baselines or test is not None:
            raise RefusalError(f"--split {ALL} goes without --baselines and --test, since no row is left to train on.")
        parts = {ALL: _whole(_read(examples, config, with_split=False), model.encoder)}
    else:
        parts = _parts_as_trained(model, examples, test, split, with_baselines=with_baselines)
    asked = parts[split]
    demand_classes(asked, split, config)
    _warn_of_unknown(asked, model.encoder)
    report = report_on(asked.label_NT, predict(model.network, asked.inputs), model.calibration, config)
    if with_baselines:
        from models.tabular.baselines import baselines  # LightGBM takes seconds to import

        for name in PARTS[:2]:
            demand_classes(parts[name], name, config)
        found = baselines(parts["train"], parts["validation"], asked, model.encoder, config)
        report = {name: {**metrics, **found[name]} for name, metrics in report.items()}
    report[RUN] = {"split": split, "rows": {name: len(part) for name, part in parts.items()}, "model": model_dir.name}
    return report


def _parts_as_trained(
    model: TabularModel, examples: Path, test: Path | None, split: str, *, with_baselines: bool
) -> dict[str, Part]:
    """The parts as training saw them; those of a table that is given apart come from there."""
    apart = model.origin.test_apart
    if apart and test is None and split == "test":
        raise RefusalError(
            f"the model was trained with a test table of its own; give one with --test, or use --split {ALL}."
        )
    table = _read(examples, model.config, with_split=True)
    needs_rows = with_baselines or test is None or split != "test"
    if needs_rows and depends_on_order(model.config) and table.fingerprint != model.origin.labels:
        raise RefusalError(
            f"{examples} is not the table that the model was trained with, and its split is drawn at random, so no "
            f"{split} part can be told; use --split {ALL} for rows that training did not see."
        )
    parts = _parts(table, model.encoder, split_rows(table.rows, model.config, test_apart=apart))
    if test is not None:
        parts["test"] = _whole(_read(test, model.config, with_split=False), model.encoder)
    return parts


def _read(path: Path, config: TabularConfig, *, with_split: bool) -> _Table:
    rows = read_table(path, columns_of(config, with_split=with_split))
    return _Table(rows=rows, label_NT=labels_of(rows, config.tasks))


def _whole(table: _Table, encoder: Encoder) -> Part:
    return Part(inputs=encoder(table.rows), label_NT=table.label_NT)


def _parts(table: _Table, encoder: Encoder, rows: dict[str, npt.NDArray[np.int64]]) -> dict[str, Part]:
    whole = _whole(table, encoder)
    return {name: whole.take(rows[name]) for name in PARTS}


def _fit(
    table: _Table, parts: dict[str, Part], encoder: Encoder, config: TabularConfig, out: Path, *, test_apart: bool
) -> tuple[Trained, TabularModel, Path]:
    """The trained, calibrated model, and the checkpoint that can go once it is saved. Test rows are not touched."""
    training, validation = parts["train"], parts["validation"]
    name = fingerprint(training, validation, encoder, config)[:16]
    checkpoint = out.parent / f".{name}.checkpoint"
    trained = train_network(training, validation, encoder, config, checkpoint)
    calibration = calibrate(predict(trained.network, validation.inputs), validation.label_NT)
    origin = Origin(labels=table.fingerprint, test_apart=test_apart)
    model = TabularModel(
        config=config, encoder=encoder, network=trained.network, calibration=calibration, origin=origin
    )
    return trained, model, checkpoint


def _about(trained: Trained, parts: dict[str, Part], config: TabularConfig, seconds: float) -> dict[str, Any]:
    return {
        "split": "test",
        "rows": {name: len(part) for name, part in parts.items()},
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        "best": trained.epochs[trained.best_epoch - 1],
        "seed": config.network.seed,
        "seconds": seconds,
    }


def _warn_of_unknown(part: Part, encoder: Encoder) -> None:
    for k, name in enumerate(encoder.categorical):
        share = float((part.inputs.code_NK[:, k] == UNKNOWN).mean())
        if share > MANY_UNKNOWN:
            log.warning("%s: %.0f%% of the rows hold a category that training hardly knew", name, 100 * share)
