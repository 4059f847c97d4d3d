"""How good predictions for a table are, task by task, beside baselines. Shapes: N rows, T tasks, F inputs."""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from models.metrics import auc
from models.ranker.baselines import train_trees, tree_probabilities
from models.ranker.calibration import Calibration, identity
from models.ranker.evaluation import POSITIVE, auc_interval, probability_metrics
from models.refusal import RefusalError
from models.tabular.config import TabularConfig
from models.tabular.encoding import Encoded, Encoder
from models.tabular.model import calibrate
from models.tabular.training import Part, predict, train_network

log = logging.getLogger(__name__)

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Metrics = dict[str, Any]

TREE_ROUNDS = 1_000
TREE_LEARNING_RATE = 0.05


def demand_classes(part: Part, name: str, config: TabularConfig) -> None:
    """Raises `RefusalError` when a task's labels in a part are undefined throughout, or all the same."""
    for t, task in enumerate(config.tasks):
        label_N = part.label_NT[:, t]
        defined_N = label_N[~np.isnan(label_N)]
        if not len(defined_N):
            raise RefusalError(
                f"task {task.name}: no row of the {name} part has a label; give labels, or drop the task."
            )
        if defined_N.min() == defined_N.max():
            raise RefusalError(
                f"task {task.name}: all {len(defined_N)} labels of the {name} part are {defined_N[0]:g}; "
                "each part needs more than one class: give more rows or change the split."
            )


def task_metrics(label_N: Float32s, score_N: npt.NDArray[Any], probability_N: npt.NDArray[Any]) -> Metrics:
    """AUC of the scores, log loss and ECE of the probabilities, over the rows with a label."""
    defined_N = ~np.isnan(label_N)
    ranked = auc(label_N[defined_N] >= POSITIVE, score_N[defined_N].astype(np.float64))
    return {"auc": ranked, **probability_metrics(label_N, probability_N)}


def report_on(label_NT: Float32s, logit_NT: Float32s, calibration: Calibration, config: TabularConfig) -> Metrics:
    """Metrics of every task by its name, with the 95% bootstrap interval of the AUC over rows."""
    before_NT, after_NT = identity(len(config.tasks))(logit_NT), calibration(logit_NT)
    report: Metrics = {}
    for t, name in enumerate(config.task_names):
        label_N = label_NT[:, t]
        low, high = auc_interval(label_N, logit_NT[:, t], np.arange(len(label_N)), config.network.seed)
        report[name] = {
            **task_metrics(label_N, logit_NT[:, t], after_NT[:, t]),
            "auc_interval": [low, high],
            "ece_before": probability_metrics(label_N, before_NT[:, t])["ece"],
            "rate": float(np.nanmean(label_N)),
            "examples": int((~np.isnan(label_N)).sum()),
            "undefined": int(np.isnan(label_N).sum()),
        }
    return report


def baselines(train: Part, validation: Part, test: Part, encoder: Encoder, config: TabularConfig) -> dict[str, Metrics]:
    """By task: LightGBM, a network of that task alone, and the training rate, trained and judged on the same rows."""
    together = Part(
        inputs=_concatenated(train.inputs, validation.inputs),
        label_NT=np.concatenate([train.label_NT, validation.label_NT]),
    )
    rows = [np.arange(len(train)), np.arange(len(train), len(together))]
    matrix_NF, test_NF = _matrix(together.inputs), _matrix(test.inputs)
    found: dict[str, Metrics] = {}
    for t, name in enumerate(config.task_names):
        label_N, rate = test.label_NT[:, t], float(np.nanmean(train.label_NT[:, t]))
        trees = train_trees(
            matrix_NF,
            together.label_NT[:, t],
            rows,
            config.network.seed,
            config.network.threads,
            rounds=TREE_ROUNDS,
            learning_rate=TREE_LEARNING_RATE,
        )
        found[name] = {
            "single_task": _alone(t, train, validation, test, encoder, config),
            "training_rate": probability_metrics(label_N, np.full(len(label_N), rate)),
        }
        if trees is not None:
            probability_N = tree_probabilities(trees, test_NF)
            found[name]["lightgbm"] = task_metrics(label_N, probability_N, probability_N)
    return found


def _alone(t: int, train: Part, validation: Part, test: Part, encoder: Encoder, config: TabularConfig) -> Metrics:
    """The same network with this task alone, stopped and calibrated for it."""
    network = config.network.model_copy(update={"mixture": "single-task"})
    alone = config.model_copy(update={"tasks": (config.tasks[t],), "network": network})
    log.info("training a network of %s alone", config.tasks[t].name)
    train, validation, test = (
        Part(inputs=part.inputs, label_NT=part.label_NT[:, t : t + 1]) for part in (train, validation, test)
    )
    trained = train_network(train, validation, encoder, alone)
    calibration = calibrate(predict(trained.network, validation.inputs), validation.label_NT)
    logit_NT = predict(trained.network, test.inputs)
    return task_metrics(test.label_NT[:, 0], logit_NT[:, 0], calibration(logit_NT)[:, 0])


def _concatenated(first: Encoded, second: Encoded) -> Encoded:
    return Encoded(
        number_NF=np.concatenate([first.number_NF, second.number_NF]),
        code_NK=np.concatenate([first.code_NK, second.code_NK]),
    )


def _matrix(inputs: Encoded) -> Float32s:
    """Numbers and category codes as columns; codes go down with a category's frequency, so trees can cut them."""
    return np.concatenate([inputs.number_NF, inputs.code_NK.astype(np.float32)], axis=1)
