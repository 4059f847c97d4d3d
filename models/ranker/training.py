"""Training the ranker: masked losses, AdamW, the best epoch by validation loss. Shapes: N examples, T heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.examples import Examples
from models.ranker.config import RankerConfig
from models.ranker.epochs import masked_loss, run_epochs, update
from models.ranker.network import RankerNetwork
from models.ranker.optimiser import AdamW
from models.ranker_inputs import OOV, RankerLayout

Int64s = npt.NDArray[np.int64]
Batch = dict[str, Tensor]
EVALUATION_ROWS = 8_192
CONSTANTS_ROWS = 50_000
"""About how many training examples the standardising constants are taken from."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The network of the best epoch, ready to score."""

    network: RankerNetwork
    epochs: list[dict[str, float]]
    """Training and validation loss of each epoch."""
    best_epoch: int


@dataclass(frozen=True, kw_only=True)
class Data:
    """The examples as tensors, and which rows are for what."""

    inputs: Batch
    label_NT: Tensor
    train_rows: Int64s
    validation_rows: Int64s

    @staticmethod
    def of(examples: Examples, train_rows: Int64s, validation_rows: Int64s) -> "Data":
        """Shares memory with the examples."""
        inputs = {name: torch.from_numpy(array) for name, array in examples.inputs.feed().items()}
        label_NT = torch.from_numpy(examples.label_NT)
        return Data(inputs=inputs, label_NT=label_NT, train_rows=train_rows, validation_rows=validation_rows)

    def batch(self, rows: Tensor) -> tuple[Batch, Tensor]:
        """The rows' inputs and labels."""
        return {name: array[rows] for name, array in self.inputs.items()}, self.label_NT[rows]

    def order(self, seed: int, epoch: int) -> Int64s:
        """The training rows in the epoch's order, a function of the seed and the epoch alone."""
        return np.random.default_rng([seed, epoch]).permutation(self.train_rows)


def train_ranker(
    data: Data, layout: RankerLayout, config: RankerConfig, seed: int, checkpoint: Path | None = None
) -> Trained:
    """Trains the layout's heads until validation stops improving, and returns the best epoch's network.

    The labels' columns are the layout's heads. A run that finds its own `checkpoint` goes on from its last whole epoch,
    to the same result as without a stop.
    Raises `TrainingError` before an update with a non-finite loss.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(seed)
    network = RankerNetwork(layout, config)
    weight_T = torch.tensor([config.head_weights[head] for head in layout.heads])
    _fit_constants(network, data)
    optimiser = AdamW(network.parameters(), config.learning_rate, config.weight_decay)
    progress = run_epochs(
        network,
        optimiser,
        train=lambda epoch: _one_epoch(network, optimiser, data, data.order(seed, epoch), config, weight_T),
        validate=lambda: {"validation_loss": loss_of(network, data, weight_T)},
        epochs=config.epochs,
        patience=config.patience,
        checkpoint=checkpoint,
        fingerprint=f"{config.model_dump_json()}|{seed}|{len(data.train_rows)}|{len(data.validation_rows)}",
    )
    seen = np.bincount(data.inputs["item_C"].numpy()[data.train_rows], minlength=layout.items + 1)
    network.forget_rare_items(seen[1:], config.min_item_examples)
    return Trained(network=network, epochs=progress.epochs, best_epoch=progress.best_epoch)


def predict(network: RankerNetwork, inputs: Mapping[str, Tensor], rows: Int64s) -> npt.NDArray[np.float32]:
    """Logits `[N, T]` of the rows."""
    network.eval()
    with torch.inference_mode():
        parts = [
            network({name: array[torch.from_numpy(part)] for name, array in inputs.items()})
            for part in np.split(rows, range(EVALUATION_ROWS, len(rows), EVALUATION_ROWS))
        ]
    return torch.cat(parts).numpy()


def loss_of(network: RankerNetwork, data: Data, weight_T: Tensor) -> float:
    """The loss on the validation rows."""
    logit_NT = torch.from_numpy(predict(network, data.inputs, data.validation_rows))
    return float(masked_loss(logit_NT, data.label_NT[data.validation_rows], weight_T))


def _one_epoch(
    network: RankerNetwork, optimiser: AdamW, data: Data, order: Int64s, config: RankerConfig, weight_T: Tensor
) -> float:
    network.train()
    total = 0.0
    batches = np.split(order, range(config.batch_size, len(order), config.batch_size))
    for step, rows in enumerate(batches):
        inputs, label_NT = data.batch(torch.from_numpy(rows))
        loss = masked_loss(network(_with_unknowns(inputs, config)), label_NT, weight_T)
        total += update(network, optimiser, loss, step) * len(rows)
    return total / len(order)


def _with_unknowns(inputs: Batch, config: RankerConfig) -> Batch:
    """Shows some items, history slots and creators as out of vocabulary, and some items as new: ALS is silent, too."""
    out = dict(inputs)
    for name in ("item_C", "creator_C", "history_item_UL"):
        hidden = torch.rand(inputs[name].shape) < config.oov_dropout
        out[name] = torch.where(hidden, torch.full_like(inputs[name], OOV), inputs[name])
    new_C = torch.rand(inputs["item_C"].shape) < config.new_item_share
    out["item_C"] = torch.where(new_C, torch.full_like(inputs["item_C"], OOV), out["item_C"])
    out["affinity_CA"] = torch.where(new_C[:, None], 0.0, inputs["affinity_CA"])
    return out


def _fit_constants(network: RankerNetwork, data: Data) -> None:
    every = max(1, len(data.train_rows) // CONSTANTS_ROWS)
    rows = torch.from_numpy(data.train_rows[::every])
    network.standard_user.fit(data.inputs["user_UF"][rows])
    network.standard_candidate.fit(data.inputs["candidate_CF"][rows])
    network.standard_static.fit(data.inputs["static_CS"][rows])
    network.standard_affinity.fit(data.inputs["affinity_CA"][rows])
    network.towers.start_at(data.label_NT[rows])
