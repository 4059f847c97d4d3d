"""Training the ranker: masked losses, AdamW, the best epoch by validation loss. Shapes: N examples, T heads."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.examples import Examples
from models.ranker.config import RankerConfig
from models.ranker.network import RankerNetwork
from models.ranker.optimiser import AdamW
from models.ranker_inputs import HEADS, OOV, RankerLayout
from models.refusal import RefusalError

log = logging.getLogger(__name__)

Int64s = npt.NDArray[np.int64]
Batch = dict[str, Tensor]
EVALUATION_ROWS = 8_192
CONSTANTS_ROWS = 50_000
"""About how many training examples the standardising constants are taken from."""


class TrainingError(RefusalError):
    """Training that cannot go on."""


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


def train_ranker(
    data: Data, layout: RankerLayout, config: RankerConfig, seed: int, checkpoint: Path | None = None
) -> Trained:
    """Trains until validation stops improving, and returns the best epoch's network.

    A run that finds its own `checkpoint` goes on from its last whole epoch, to the same result as without a stop.
    Raises `TrainingError` before an update with a non-finite loss.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(seed)
    network = RankerNetwork(layout, config)
    _fit_constants(network, data)
    optimiser = AdamW(network.parameters(), config.learning_rate, config.weight_decay)
    state = _State(network=network, optimiser=optimiser)
    fingerprint = f"{config.model_dump_json()}|{seed}|{len(data.train_rows)}|{len(data.validation_rows)}"
    if checkpoint is not None:
        state.resume(checkpoint, fingerprint)
    while len(state.epochs) < config.epochs and not state.finished(config.patience):
        order = np.random.default_rng([seed, len(state.epochs)]).permutation(data.train_rows)
        train_loss = _one_epoch(network, optimiser, data, order, config)
        validation_loss = loss_of(network, data, config)
        state.add(train_loss, validation_loss)
        log.info("epoch %d: train loss %.5f, validation loss %.5f", len(state.epochs), train_loss, validation_loss)
        if checkpoint is not None:
            state.save(checkpoint, fingerprint)
    network.load_state_dict(state.best)
    network.eval()
    seen = np.bincount(data.inputs["item_C"].numpy()[data.train_rows], minlength=layout.items + 1)
    network.forget_rare_items(seen[1:], config.min_item_examples)
    return Trained(network=network, epochs=state.epochs, best_epoch=state.best_epoch)


def masked_loss(logit_NT: Tensor, label_NT: Tensor, weight_T: Tensor) -> Tensor:
    """Cross-entropy per head over the defined labels (not NaN), weighted; a head without labels adds 0."""
    defined_NT = ~torch.isnan(label_NT)
    target_NT = torch.where(defined_NT, label_NT, torch.zeros_like(label_NT))
    entropy_NT = torch.nn.functional.binary_cross_entropy_with_logits(logit_NT, target_NT, reduction="none")
    mean_T = (entropy_NT * defined_NT).sum(dim=0) / defined_NT.sum(dim=0).clamp(min=1)
    return (mean_T * weight_T).sum()


def predict(network: RankerNetwork, inputs: Mapping[str, Tensor], rows: Int64s) -> npt.NDArray[np.float32]:
    """Logits `[N, T]` of the rows."""
    network.eval()
    with torch.inference_mode():
        parts = [
            network({name: array[torch.from_numpy(part)] for name, array in inputs.items()})
            for part in np.split(rows, range(EVALUATION_ROWS, len(rows), EVALUATION_ROWS))
        ]
    return torch.cat(parts).numpy()


def loss_of(network: RankerNetwork, data: Data, config: RankerConfig) -> float:
    """The loss on the validation rows."""
    logit_NT = torch.from_numpy(predict(network, data.inputs, data.validation_rows))
    return float(masked_loss(logit_NT, data.label_NT[data.validation_rows], _head_weights(config)))


def _one_epoch(network: RankerNetwork, optimiser: AdamW, data: Data, order: Int64s, config: RankerConfig) -> float:
    network.train()
    weight_T, total = _head_weights(config), 0.0
    batches = np.split(order, range(config.batch_size, len(order), config.batch_size))
    for step, rows in enumerate(batches):
        inputs, label_NT = data.batch(torch.from_numpy(rows))
        loss = masked_loss(network(_with_unknowns(inputs, config.oov_dropout)), label_NT, weight_T)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"loss {loss.item()} at step {step}: stopped before the update; "
                "look for extreme feature values, or lower learning_rate."
            )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        total += loss.item() * len(rows)
    return total / len(order)


def _with_unknowns(inputs: Batch, share: float) -> Batch:
    """Shows some items, with their own history slots, and some creators as out of vocabulary."""
    out = dict(inputs)
    for name in ("item_C", "creator_C", "history_item_UL"):
        hidden = torch.rand(inputs[name].shape) < share
        out[name] = torch.where(hidden, torch.full_like(inputs[name], OOV), inputs[name])
    return out


def _head_weights(config: RankerConfig) -> Tensor:
    return torch.tensor([config.head_weights[head] for head in HEADS])


def _fit_constants(network: RankerNetwork, data: Data) -> None:
    every = max(1, len(data.train_rows) // CONSTANTS_ROWS)
    rows = torch.from_numpy(data.train_rows[::every])
    network.standard_user.fit(data.inputs["user_UF"][rows])
    network.standard_candidate.fit(data.inputs["candidate_CF"][rows])
    network.standard_static.fit(data.inputs["static_CS"][rows])
    label_NT = data.label_NT[rows]
    rate_T = torch.nanmean(label_NT, dim=0).nan_to_num(0.5).clamp(1e-4, 1 - 1e-4)
    with torch.no_grad():
        network.head_bias.copy_(torch.log(rate_T / (1 - rate_T)))


class _State:
    """What an epoch leaves: weights, the best ones so far, the losses; on disk when asked."""

    def __init__(self, network: RankerNetwork, optimiser: AdamW) -> None:
        self.network, self.optimiser = network, optimiser
        self.epochs: list[dict[str, float]] = []
        self.best_epoch = 0
        self.best: dict[str, Any] = _copy(network)

    def add(self, train_loss: float, validation_loss: float) -> None:
        if not np.isfinite(validation_loss):
            raise TrainingError(f"validation loss {validation_loss} after epoch {len(self.epochs) + 1}; stopped.")
        best = min((epoch["validation_loss"] for epoch in self.epochs), default=float("inf"))
        self.epochs.append({"train_loss": train_loss, "validation_loss": validation_loss})
        if validation_loss < best:
            self.best_epoch, self.best = len(self.epochs), _copy(self.network)

    def finished(self, patience: int) -> bool:
        return len(self.epochs) - self.best_epoch >= patience and bool(self.epochs)

    def save(self, path: Path, fingerprint: str) -> None:
        draft = path.with_suffix(".draft")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            "fingerprint": fingerprint,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "best": self.best,
            "random": torch.get_rng_state(),
        }
        torch.save(kept, draft)
        draft.replace(path)

    def resume(self, path: Path, fingerprint: str) -> None:
        if not path.exists():
            return
        kept = torch.load(path, weights_only=True)
        if kept["fingerprint"] != fingerprint:
            log.info("checkpoint %s is of another run; starting afresh", path)
            return
        self.network.load_state_dict(kept["network"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.epochs, self.best_epoch, self.best = kept["epochs"], kept["best_epoch"], kept["best"]
        torch.set_rng_state(kept["random"])
        log.info("resumed after epoch %d from %s", len(self.epochs), path)


def _copy(network: RankerNetwork) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
