"""A trained model of a table as one directory: configuration, constants, weights, calibration, where it comes from.

Shapes: N rows, T tasks.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from models.metrics import log_loss
from models.ranker.calibration import Calibration, fit_platt
from models.refusal import RefusalError
from models.tabular.config import TabularConfig, parse_config
from models.tabular.encoding import Encoder
from models.tabular.network import Network, build_network
from models.tabular.training import predict
from models.workspace import atomic_directory, atomic_json

Float32s = npt.NDArray[np.float32]

CONFIG, ENCODER, CALIBRATION, ORIGIN, WEIGHTS, REPORT = (
    "config.json",
    "encoder.json",
    "calibration.json",
    "origin.json",
    "weights.pt",
    "report.json",
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The rows that the model was trained on, so that later ones are not mistaken for them."""

    labels: str
    """Fingerprint of the whole table's labels, in order."""
    test_apart: bool
    """Whether the test rows were in another table."""


@dataclass(frozen=True, kw_only=True)
class TabularModel:
    """All that scoring a table needs."""

    config: TabularConfig
    encoder: Encoder
    network: Network
    calibration: Calibration
    origin: Origin

    def logits(self, table: pa.Table) -> Float32s:
        """Logits `[N, T]` of the rows, before calibration. Raises `RefusalError` for values of another type."""
        return predict(self.network, self.encoder(table))

    def save(self, path: Path, report: Mapping[str, Any]) -> None:
        """Writes the directory in one step. Raises `WorkspaceError` when it exists."""
        with atomic_directory(path) as draft:
            atomic_json(draft / CONFIG, self.config.model_dump())
            atomic_json(draft / ENCODER, self.encoder.to_json())
            atomic_json(draft / CALIBRATION, self.calibration.to_json())
            atomic_json(draft / ORIGIN, asdict(self.origin))
            atomic_json(draft / REPORT, dict(report))
            torch.save(self.network.state_dict(), draft / WEIGHTS)

    @staticmethod
    def load(path: Path) -> "TabularModel":
        """Reads what `save` wrote. Raises `RefusalError` when it is something else."""
        try:
            records = {name: json.loads((path / name).read_text()) for name in (CONFIG, ENCODER, CALIBRATION, ORIGIN)}
            config = parse_config(records[CONFIG], str(path / CONFIG))
            encoder = Encoder.from_json(records[ENCODER])
            network = build_network(encoder.sizes, encoder.edges, len(config.tasks), config.network)
            network.load_state_dict(torch.load(path / WEIGHTS, weights_only=True))
            calibration, origin = Calibration.from_json(records[CALIBRATION]), Origin(**records[ORIGIN])
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            if isinstance(error, RefusalError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise RefusalError(
                f"model {path} cannot be loaded: {reason}; give a directory that millrace train ranker wrote."
            ) from error
        return TabularModel(config=config, encoder=encoder, network=network, calibration=calibration, origin=origin)


def calibrate(logit_NT: Float32s, label_NT: Float32s) -> Calibration:
    """Platt scaling of each task on the rows where its label is defined; left out where it does not help other rows.

    It helps when, fitted on every second row, it lowers the log loss of the rows between, and the other way round.
    """
    fitted = []
    for logit_N, label_N in zip(logit_NT.T, label_NT.T, strict=True):
        defined_N = ~np.isnan(label_N)
        logit_N, label_N = logit_N[defined_N], label_N[defined_N]
        fitted.append(fit_platt(logit_N, label_N) if _helps(logit_N, label_N) else (1.0, 0.0))
    slope_T, intercept_T = np.array(fitted).T
    return Calibration(slope_T=slope_T, intercept_T=intercept_T)


def _helps(logit_N: Float32s, label_N: Float32s) -> bool:
    for fold in (0, 1):
        other_N, own_N = (np.arange(len(logit_N)) % 2 == side for side in (1 - fold, fold))
        slope, intercept = fit_platt(logit_N[other_N], label_N[other_N])
        before_N = logit_N[own_N].astype(np.float64)
        before, after = (
            log_loss(label_N[own_N], 1 / (1 + np.exp(-np.clip(scaled_N, -30, 30))))
            for scaled_N in (before_N, before_N * slope + intercept)
        )
        if not after < before:
            return False
    return True
