"""What the network of a table must beat: trees and networks of one task. Shapes: N rows, T tasks, F inputs."""

import logging

import numpy as np
import numpy.typing as npt

from models.ranker.baselines import train_trees, tree_probabilities
from models.ranker.evaluation import probability_metrics
from models.tabular.config import TabularConfig
from models.tabular.encoding import Encoded, Encoder
from models.tabular.evaluation import Metrics, task_metrics
from models.tabular.model import calibrate
from models.tabular.training import Part, predict, train_network

log = logging.getLogger(__name__)

Float32s = npt.NDArray[np.float32]

TREE_ROUNDS = 1_000
"""At most; validation stops them (Adult takes 150)."""
TREE_LEARNING_RATE = 0.05


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
