"""The ranker's network with one head at a time: what sharing brings beyond the network itself.

They train on a budget, since six nets in full take 3.6 times the ranker's own time. On a budget they are a lower bound,
far below what they reach: on 24,000 made-up examples a click AUC of .737 after 5% of the updates, .786 after all of
them, where the ranker has .786. So the report says what share each saw, and `single_task_share` 6 trains them in full.
Shapes: N examples, T heads.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.ranker.calibration import Calibration, fit_platt
from models.ranker.config import RankerConfig
from models.ranker.evaluation import Scores
from models.ranker.training import Data, Trained, predict, train_ranker
from models.ranker_inputs import HEADS, SERVING_POSITION, RankerLayout

log = logging.getLogger(__name__)

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SingleTask:
    """The nets' predictions, and how much each was trained."""

    scores: Scores
    trained: dict[str, dict[str, float]]
    """Of each head `examples` an epoch, `epochs`, and `share_of_updates`: their product over what the ranker saw."""


def train_single_tasks(
    data: Data, layout: RankerLayout, config: RankerConfig, trained: Trained, test_rows: Int64s, seed: int
) -> SingleTask:
    """One net a head, on examples where its label is defined, calibrated on validation as the ranker is.

    Together they see at most `single_task_share` times the examples that the ranker's own training saw. A head without
    a defined label in training or validation has no net, and NaN.
    """
    served_NT = np.full((len(test_rows), len(HEADS)), np.nan, np.float32)
    logged_NT, told = served_NT.copy(), {}
    for t, (part, epochs) in enumerate(budget(data, trained, config, seed)):
        head = HEADS[t]
        if not len(part.train_rows) or not len(part.validation_rows):
            continue
        log.info("a net for %s alone: %d examples an epoch, %d epochs at most", head, len(part.train_rows), epochs)
        own = config.model_copy(update={"epochs": epochs, "head_weights": dict.fromkeys(HEADS, 1.0)})
        alone = train_ranker(part, replace(layout, heads=(head,)), own, seed)
        network = alone.network
        logit_V = predict(network, part.inputs, part.validation_rows)[:, 0]
        slope, intercept = fit_platt(logit_V, part.label_NT[part.validation_rows, 0].numpy())
        calibration = Calibration(slope_T=np.array([slope]), intercept_T=np.array([intercept]))
        for out_NT, inputs in ((served_NT, _as_served(data.inputs)), (logged_NT, data.inputs)):
            out_NT[:, t] = calibration(predict(network, inputs, test_rows))[:, 0]
        defined = int((~torch.isnan(data.label_NT[data.train_rows, t])).sum())
        share = len(part.train_rows) * len(alone.epochs) / (defined * len(trained.epochs))
        told[head] = {"examples": len(part.train_rows), "epochs": len(alone.epochs), "share_of_updates": share}
    return SingleTask(scores=Scores(served_NT=served_NT, logged_NT=logged_NT), trained=told)


def budget(data: Data, trained: Trained, config: RankerConfig, seed: int) -> list[tuple[Data, int]]:
    """What each head's net trains on, and for how many epochs at most: whole ones, else one on a random part."""
    updates = int(config.single_task_share * len(trained.epochs) * len(data.train_rows) / len(HEADS))
    parts = []
    for t in range(len(HEADS)):
        label_NT = data.label_NT[:, t : t + 1]
        defined_N = ~torch.isnan(label_NT[:, 0]).numpy()
        train, validation = (rows[defined_N[rows]] for rows in (data.train_rows, data.validation_rows))
        epochs = max(1, min(config.epochs, updates // max(len(train), 1)))
        if updates < len(train):
            train = np.sort(np.random.default_rng(seed).permutation(train)[:updates])
        parts.append((replace(data, label_NT=label_NT, train_rows=train, validation_rows=validation), epochs))
    return parts


def _as_served(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**inputs, "position_C": torch.full_like(inputs["position_C"], SERVING_POSITION)}
