"""What all training shares: the masked loss, a guarded update, epochs until validation stops improving, checkpoints.

Shapes: N examples, T tasks.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.ranker.optimiser import AdamW
from models.refusal import RefusalError

log = logging.getLogger(__name__)

Record = dict[str, float]
MAX_GRADIENT_NORM = 5.0


class TrainingError(RefusalError):
    """Training that cannot go on."""


def masked_loss(logit_NT: Tensor, label_NT: Tensor, weight_T: Tensor) -> Tensor:
    """Cross-entropy per head over the defined labels (not NaN), weighted; a head without labels adds 0."""
    defined_NT = ~torch.isnan(label_NT)
    target_NT = torch.where(defined_NT, label_NT, torch.zeros_like(label_NT))
    entropy_NT = torch.nn.functional.binary_cross_entropy_with_logits(logit_NT, target_NT, reduction="none")
    mean_T = (entropy_NT * defined_NT).sum(dim=0) / defined_NT.sum(dim=0).clamp(min=1)
    return (mean_T * weight_T).sum()


def update(network: nn.Module, optimiser: AdamW, loss: Tensor, step: int) -> float:
    """One step down the gradient, its norm clipped; returns the loss.

    Raises `TrainingError` before an update with a non-finite loss.
    """
    if not torch.isfinite(loss):
        raise TrainingError(
            f"loss {loss.item()} at step {step}: stopped before the update; "
            "look for extreme feature values, or lower learning_rate."
        )
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
    optimiser.step()
    return loss.item()


@dataclass(kw_only=True)
class Progress:
    """What the epochs so far left."""

    epochs: list[Record] = field(default_factory=list)
    """Of each epoch `train_loss` and what validation measured."""
    best_epoch: int = 0
    """Counted from 1; 0 before the first."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The best epoch's weights."""


def run_epochs(
    network: nn.Module,
    optimiser: AdamW,
    *,
    train: Callable[[int], float],
    validate: Callable[[], Record],
    epochs: int,
    patience: int,
    checkpoint: Path | None,
    fingerprint: str,
    cost: str = "validation_loss",
) -> Progress:
    """Trains until `cost`, one of the numbers that `validate` gives, has not fallen for `patience` epochs.

    `train` takes the epoch from 0 and returns its mean loss. The network is left with the best epoch's weights, ready
    to predict. A run that finds its own `checkpoint` (the same fingerprint) goes on from its last whole epoch, to the
    same result as without a stop. Raises `TrainingError` when validation measures a non-finite number.
    """
    progress = Progress()
    if checkpoint is not None and checkpoint.exists():
        progress = _resumed(network, optimiser, checkpoint, fingerprint)
    while len(progress.epochs) < epochs and len(progress.epochs) - progress.best_epoch < patience:
        train_loss = train(len(progress.epochs))
        _add(progress, {"train_loss": train_loss, **validate()}, cost, network)
        told = ", ".join(f"{name.replace('_', ' ')} {value:.5f}" for name, value in progress.epochs[-1].items())
        log.info("epoch %d of at most %d: %s", len(progress.epochs), epochs, told)
        if checkpoint is not None:
            _save(progress, network, optimiser, checkpoint, fingerprint)
    network.load_state_dict(progress.best)
    network.eval()
    return progress


def _add(progress: Progress, record: Record, cost: str, network: nn.Module) -> None:
    wrong = {name: value for name, value in record.items() if not np.isfinite(value)}
    if wrong:
        raise TrainingError(f"{wrong} after epoch {len(progress.epochs) + 1}: stopped; lower learning_rate.")
    best = min((epoch[cost] for epoch in progress.epochs), default=float("inf"))
    progress.epochs.append(record)
    if record[cost] < best:
        progress.best_epoch = len(progress.epochs)
        progress.best = {name: value.detach().clone() for name, value in network.state_dict().items()}


def _save(progress: Progress, network: nn.Module, optimiser: AdamW, path: Path, fingerprint: str) -> None:
    kept = {
        "fingerprint": fingerprint,
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "epochs": progress.epochs,
        "best_epoch": progress.best_epoch,
        "best": progress.best,
        "random": torch.get_rng_state(),
    }
    draft = path.with_suffix(".draft")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(kept, draft)
    draft.replace(path)


def _resumed(network: nn.Module, optimiser: AdamW, path: Path, fingerprint: str) -> Progress:
    kept: dict[str, Any] = torch.load(path, weights_only=True)
    if kept["fingerprint"] != fingerprint:
        log.info("checkpoint %s is of another run; starting afresh", path)
        return Progress()
    network.load_state_dict(kept["network"])
    optimiser.load_state_dict(kept["optimiser"])
    torch.set_rng_state(kept["random"])
    log.info("resumed after epoch %d from %s", len(kept["epochs"]), path)
    return Progress(epochs=kept["epochs"], best_epoch=kept["best_epoch"], best=kept["best"])
