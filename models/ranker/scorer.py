"""Scoring with the exported ranker: ONNX Runtime, then calibration. Shapes: C candidates, T heads."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.ranker.calibration import Calibration
from models.ranker_inputs import RankerInputs, RankerLayout

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Ranker:
    """A loaded model. Safe to call from several threads."""

    session: ort.InferenceSession
    layout: RankerLayout
    calibration: Calibration

    @cached_property
    def _input_names(self) -> tuple[str, ...]:
        """What the graph reads: one of before an input was added reads the others."""
        return tuple(node.name for node in self.session.get_inputs())

    @staticmethod
    def load(path: Path, layout: RankerLayout, calibration: Calibration, threads: int = 1) -> "Ranker":
        """Reads the ONNX file. Raises ONNX Runtime's errors when it is not one."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return Ranker(session=session, layout=layout, calibration=calibration)

    def logits(self, inputs: RankerInputs) -> Float32s:
        """The heads' logits `[C, T]`, before calibration. No candidates give no rows."""
        if not len(inputs):
            return np.empty((0, len(self.layout.heads)), np.float32)
        feed = inputs.feed()
        (logit_CT,) = self.session.run(["logit_CT"], {name: feed[name] for name in self._input_names})
        return np.asarray(logit_CT, np.float32)

    def score(self, inputs: RankerInputs) -> dict[str, Float32s]:
        """Calibrated probability `[C]` by head; a non-finite logit gives NaN."""
        probability_CT = self.calibration(self.logits(inputs))
        return {head: probability_CT[:, t] for t, head in enumerate(self.layout.heads)}
