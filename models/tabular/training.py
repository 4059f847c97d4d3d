"""Training the network of a table. Shapes: N rows, T tasks."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.metrics import auc
from models.ranker.epochs import Record, masked_loss, run_epochs, update
from models.ranker.evaluation import POSITIVE
from models.ranker.optimiser import AdamW
from models.tabular.config import TabularConfig
from models.tabular.encoding import UNKNOWN, Encoded, Encoder
from models.tabular.network import Network, build_network

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

EVALUATION_ROWS = 8_192
WARM_UP = 0.1
"""Share of the first epoch over which the learning rate rises."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows with their labels, NaN where undefined."""

    inputs: Encoded
    label_NT: Float32s

    def __len__(self) -> int:
        return len(self.label_NT)

    def take(self, rows: Int64s) -> "Part":
        """The given rows."""
        return Part(inputs=self.inputs.take(rows), label_NT=self.label_NT[rows])


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The network of the best epoch, ready to score."""

    network: Network
    epochs: list[Record]
    best_epoch: int


def train_network(
    train: Part, validation: Part, encoder: Encoder, config: TabularConfig, checkpoint: Path | None = None
) -> Trained:
    """Trains until validation stops improving, and returns the best epoch's network.

    The same configuration, rows and number of threads give the same weights, also after a kill (see `run_epochs`).
    Raises `TrainingError` before an update with a non-finite loss.
    """
    settings = config.network
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    network = build_network(encoder.sizes, encoder.edges, len(config.tasks), settings)
    network.start_at(torch.from_numpy(train.label_NT))
    optimiser = AdamW(network.parameters(), settings.learning_rate, settings.weight_decay)
    progress = run_epochs(
        network,
        optimiser,
        train=lambda epoch: _one_epoch(network, optimiser, train, config, epoch),
        validate=lambda: _judge(network, validation, config),
        epochs=settings.epochs,
        patience=settings.patience,
        checkpoint=checkpoint,
        fingerprint=fingerprint(train, validation, encoder, config),
        cost="validation_loss" if settings.stop_on == "loss" else "one_minus_auc",
    )
    return Trained(network=network, epochs=progress.epochs, best_epoch=progress.best_epoch)


def fingerprint(train: Part, validation: Part, encoder: Encoder, config: TabularConfig) -> str:
    """Names a training run: equal for equal configuration, rows and labels."""
    digest = hashlib.sha256(config.model_dump_json().encode())
    digest.update(repr(encoder).encode())
    for part in (train, validation):
        for array in (part.inputs.number_NF, part.inputs.code_NK, part.label_NT):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def predict(network: Network, inputs: Encoded) -> Float32s:
    """Logits `[N, T]` of the rows."""
    network.eval()
    starts = range(0, len(inputs), EVALUATION_ROWS)
    with torch.inference_mode():
        parts = [network(*_tensors(inputs, slice(start, start + EVALUATION_ROWS))) for start in starts]
    return torch.cat(parts).numpy()


def _tensors(inputs: Encoded, rows: Int64s | slice) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(inputs.number_NF[rows]), torch.from_numpy(inputs.code_NK[rows])


def _one_epoch(network: Network, optimiser: AdamW, train: Part, config: TabularConfig, epoch: int) -> float:
    network.train()
    settings, weight_T, total = config.network, _weights(config), 0.0
    order = np.random.default_rng([settings.seed, epoch]).permutation(len(train))
    batches = np.split(order, range(settings.batch_size, len(order), settings.batch_size))
    for step, rows in enumerate(batches):
        at = epoch + step / len(batches)
        optimiser.learning_rate = settings.learning_rate * _schedule(at, settings.epochs)
        number_NF, code_NK = _tensors(train.inputs, rows)
        hidden_NK = torch.rand(code_NK.shape) < settings.unknown_share
        code_NK = torch.where(hidden_NK, torch.full_like(code_NK, UNKNOWN), code_NK)
        loss = masked_loss(network(number_NF, code_NK), torch.from_numpy(train.label_NT[rows]), weight_T)
        total += update(network, optimiser, loss, step) * len(rows)
    return total / len(order)


def _schedule(at: float, epochs: int) -> float:
    """Factor of the learning rate at a point of the run, in epochs: a linear rise, then half a cosine down."""
    return min(1.0, (at + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * at / epochs)) / 2


def _judge(network: Network, validation: Part, config: TabularConfig) -> Record:
    logit_NT = predict(network, validation.inputs)
    label_NT = validation.label_NT
    loss = masked_loss(torch.from_numpy(logit_NT), torch.from_numpy(label_NT), _weights(config))
    aucs = []
    for t in range(len(config.tasks)):
        defined_N = ~np.isnan(label_NT[:, t])
        aucs.append(auc(label_NT[defined_N, t] >= POSITIVE, logit_NT[defined_N, t]))
    told = [value for value in aucs if not math.isnan(value)]
    # A fractional task may have no label on one side of the threshold; with no AUC at all the loss judges.
    lost = 1 - sum(told) / len(told) if told else float(loss)
    return {"validation_loss": float(loss), "one_minus_auc": lost}


def _weights(config: TabularConfig) -> Tensor:
    return torch.tensor([task.weight for task in config.tasks])
