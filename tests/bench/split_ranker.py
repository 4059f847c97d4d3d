"""The ranker's first layer split three ways, as two graphs: the measured alternative to the one that serves.

`item_part` runs when the item snapshot changes, over the catalogue; `request_part` takes its rows and adds what needs
the user: the user part, the user × category windows, the age at the instant, the history. infra/adr/0008 has the
figures by which the service keeps the whole graph. I items, C candidates, the rest as in `models.ranker.network`.
"""

import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from features.specs import Entity, features_of
from models.ranker.export import OPSET
from models.ranker.network import RankerNetwork, Standardiser
from models.ranker_inputs import CANDIDATE_FEATURES, RankerInputs

ITEM_NAMES = ("candidate_CF", "static_CS", "item_C", "category_C", "creator_C", "language_C")
ITEM_OUTPUTS = ("hidden_CH", "content_CA", "query_CA")
OWN_FEATURES = len(features_of(Entity.USER_CATEGORY))
"""The first columns of `CANDIDATE_FEATURES`: the user × category windows, which differ by request."""
AGE = len(CANDIDATE_FEATURES) + 1
"""The age's column among what the candidate's part reads."""


class ItemPart(nn.Module):
    """What a candidate's item alone adds to the first layer, with its embeddings and query."""

    def __init__(self, network: RankerNetwork) -> None:
        super().__init__()
        self.network = network
        weight_HX = network.from_candidate.weight.detach().clone()
        weight_HX[:, :OWN_FEATURES] = 0
        weight_HX[:, AGE] = 0
        self.register_buffer("weight_XH", weight_HX.T.contiguous())

    def forward(self, *arrays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, network = dict(zip(ITEM_NAMES, arrays, strict=True)), self.network
        content_CA = network.content(inputs)
        windows_CF = network.standard_candidate(inputs["candidate_CF"])
        static_CS = network.standard_static(inputs["static_CS"])
        read_CX = torch.cat([windows_CF, static_CS, content_CA, network.language(inputs["language_C"])], dim=1)
        return read_CX @ self.weight_XH, content_CA, network.query(content_CA)


class RequestPart(nn.Module):
    """The rest of the network, from `RankerInputs` and the item part's rows of the candidates."""

    def __init__(self, network: RankerNetwork) -> None:
        super().__init__()
        self.network = network
        weight_HX = network.from_candidate.weight.detach()
        self.register_buffer("weight_XH", torch.cat([weight_HX[:, :OWN_FEATURES], weight_HX[:, AGE, None]], dim=1).T)
        self.own = _part_of(network.standard_candidate, CANDIDATE_FEATURES[:OWN_FEATURES], slice(OWN_FEATURES))
        self.age = _part_of(network.standard_static, ("age_ms",), slice(1, 2))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        network, history_ULA = self.network, self.network.history(inputs)
        read_CX = torch.cat([self.own(inputs["candidate_CF"]), self.age(inputs["static_CS"])], dim=1)
        hidden_CH = (
            network.user_part(inputs, history_ULA)
            + inputs["hidden_CH"]
            + read_CX @ self.weight_XH
            + network.cross_part(inputs, inputs["content_CA"], inputs["query_CA"], history_ULA)
        )
        return network.head_logits(hidden_CH, inputs["position_C"])


class SplitRanker:
    """Both graphs in ONNX Runtime, on one thread."""

    def __init__(self, network: RankerNetwork, folder: Path, sample: RankerInputs) -> None:
        network.eval()
        item_feed = _item_feed(sample)
        item = _exported(ItemPart(network), folder / "item_part.onnx", item_feed, ITEM_OUTPUTS)
        self.item_session = item
        feed = {**request_feed(sample), **self.item_rows(sample)}
        named = _Named(RequestPart(network), tuple(feed))
        self.request_session = _exported(named, folder / "request_part.onnx", feed, ("logit_CT",))
        self.names = {taken.name for taken in self.request_session.get_inputs()}

    def item_rows(self, inputs: RankerInputs) -> dict[str, np.ndarray]:
        """What a snapshot would keep, for these items."""
        return dict(zip(ITEM_OUTPUTS, self.item_session.run(None, _item_feed(inputs)), strict=True))

    def logits(self, request: dict[str, np.ndarray], item_rows: dict[str, np.ndarray]) -> np.ndarray:
        """`[C, T]`, from `request_feed` and the candidates' rows of the snapshot."""
        feed = {**request, **item_rows}
        return self.request_session.run(None, {name: feed[name] for name in self.names})[0]


class _Named(nn.Module):
    def __init__(self, part: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.part, self.names = part, names

    def forward(self, *arrays: Tensor) -> Tensor:
        return self.part(dict(zip(self.names, arrays, strict=True)))


def _part_of(standardiser: Standardiser, names: tuple[str, ...], columns: slice) -> Standardiser:
    part = Standardiser(names)
    part.mean_F, part.scale_F = standardiser.mean_F[columns], standardiser.scale_F[columns]
    return part


def _item_feed(inputs: RankerInputs) -> dict[str, np.ndarray]:
    return {name: getattr(inputs, name) for name in ITEM_NAMES}


def request_feed(inputs: RankerInputs) -> dict[str, np.ndarray]:
    """Everything, but of windows and statics only what differs by request."""
    feed = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    own_CF, age_CS = inputs.candidate_CF[:, :OWN_FEATURES], inputs.static_CS[:, 1:]
    return {**feed, "candidate_CF": np.ascontiguousarray(own_CF), "static_CS": np.ascontiguousarray(age_CS)}


def _exported(
    part: nn.Module, path: Path, feed: dict[str, np.ndarray], outputs: tuple[str, ...]
) -> ort.InferenceSession:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            part.eval(),
            tuple(torch.from_numpy(array) for array in feed.values()),
            path,
            input_names=list(feed),
            output_names=list(outputs),
            dynamic_axes={
                **{name: {0: "U" if "_U" in name else "C"} for name in feed},
                **{n: {0: "C"} for n in outputs},
            },
            opset_version=OPSET,
            dynamo=False,
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


assert CANDIDATE_FEATURES[:OWN_FEATURES] == tuple(feature.name for feature in features_of(Entity.USER_CATEGORY))
