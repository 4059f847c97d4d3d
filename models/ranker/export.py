"""The trained network as an ONNX file, checked against torch before it is kept."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from models.ranker.network import INPUT_NAMES, RankerNetwork
from models.ranker_inputs import RankerInputs
from models.refusal import RefusalError

TOLERANCE = 1e-4
"""Largest difference of a logit, relative above 1; tests hold it to 1e-5 on fixed inputs."""
OPSET = 17


class _ByPosition(nn.Module):
    def __init__(self, network: RankerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, *arrays: Tensor) -> Tensor:
        logit_CT: Tensor = self.network(dict(zip(INPUT_NAMES, arrays, strict=True)))
        return logit_CT


def export(network: RankerNetwork, path: Path, samples: Sequence[RankerInputs]) -> None:
    """Writes the graph, with U and C free (U is C or 1), and compares it with torch on the samples.

    Raises `RefusalError` when they differ by more than `TOLERANCE`.
    """
    network.eval()
    axes = {name: {0: "U" if "_U" in name else "C"} for name in INPUT_NAMES}
    arrays = tuple(torch.from_numpy(array) for array in samples[0].feed().values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter announces its successor, which cannot leave U free
        torch.onnx.export(
            _ByPosition(network).eval(),  # else the exporter puts the network back into training mode
            arrays,
            path,
            input_names=list(INPUT_NAMES),
            output_names=["logit_CT"],
            dynamic_axes={**axes, "logit_CT": {0: "C"}},
            opset_version=OPSET,
            dynamo=False,
        )
    worst = max(difference(network, path, sample) for sample in samples)
    if not worst <= TOLERANCE:
        raise RefusalError(f"the exported ranker differs from torch by {worst:.2e}; allowed: {TOLERANCE:.0e}.")


def difference(network: RankerNetwork, path: Path, inputs: RankerInputs) -> float:
    """The largest difference of the exported graph's logits from torch's, relative where they exceed 1."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (onnx_CT,) = session.run(None, inputs.feed())
    with torch.inference_mode():
        torch_CT = network({name: torch.from_numpy(array) for name, array in inputs.feed().items()}).numpy()
    return float(np.max(np.abs(onnx_CT - torch_CT) / np.maximum(np.abs(torch_CT), 1.0), initial=0.0))
