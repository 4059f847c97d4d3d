"""How good predictions for a table are, task by task. Shapes: N rows, T tasks."""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.metrics import auc
from models.ranker.calibration import Calibration, identity
from models.ranker.evaluation import POSITIVE, auc_interval, probability_metrics
from models.refusal import RefusalError
from models.tabular.config import TabularConfig
from models.tabular.training import Part

Float32s = npt.NDArray[np.float32]
Metrics = dict[str, Any]


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
