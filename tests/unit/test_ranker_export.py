"""The exported graph against torch, for both mixtures, on random and edge inputs; and the benchmark's split one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from features.slates import parse_slate
from models.bundle import Bundle
from models.ranker.calibration import identity
from models.ranker.config import RankerConfig
from models.ranker.experts import Mixture
from models.ranker.export import difference, export
from models.ranker.network import RankerNetwork, Standardiser
from models.ranker.scorer import Ranker
from models.ranker_inputs import HEADS, OOV, RankerInputs, RankerLayout
from serving.past_request import past_request
from serving.replay import Verdict, replay
from tests.bench.split_ranker import SplitRanker, request_feed
from tests.past_requests import answered, live_view, query, record_of
from tests.ranker_examples import random_inputs
from tests.serving_bundle import write_tiny_bundle

LAYOUT = RankerLayout(devices=("phone", "tv"), items=200, categories=12, creators=30, languages=4)
TOLERANCE = 1e-5
"""Of a logit, relative above 1."""


RAW = ("user_UF", "candidate_CF", "static_CS")


def network_of(mixture: Mixture, layout: RankerLayout = LAYOUT) -> RankerNetwork:
    """Untrained, with embeddings and constants of the size that training leaves."""
    torch.manual_seed(3)
    network = RankerNetwork(layout, RankerConfig(mixture=mixture)).eval()
    fitted = random_inputs(layout, 500, 500, np.random.default_rng(9))
    standards: tuple[tuple[Standardiser, np.ndarray], ...] = (
        (network.standard_user, fitted.user_UF),
        (network.standard_candidate, fitted.candidate_CF),
        (network.standard_static, fitted.static_CS),
    )
    for standard, values in standards:
        standard.fit(torch.from_numpy(values))
    with torch.no_grad():
        for embedding in (network.item, network.category, network.creator, network.language, network.position):
            embedding.weight.normal_(0, 0.5)
    return network


def edges(users: int) -> dict[str, RankerInputs]:
    """Named inputs of 30 candidates, by what is at the edge."""
    some = random_inputs(LAYOUT, 30, users, np.random.default_rng(4))
    feed = some.feed()
    codes = [name for name, array in feed.items() if array.dtype == np.int32 and name not in ("hour_U", "position_C")]
    largest = {name: np.full_like(array, 3e38) for name, array in feed.items() if name in RAW}
    return {
        "random": some,
        "no history": replace(some, history_weight_UL=np.zeros_like(some.history_weight_UL)),
        "unknown ids": replace(some, **{name: np.full_like(getattr(some, name), OOV) for name in codes}),
        "all zeros": RankerInputs(**{name: np.zeros_like(array) for name, array in some.feed().items()}),
        "largest floats": replace(some, **largest),
        "negative floats": replace(some, **{name: -array for name, array in largest.items()}),
        "old, heavy history": replace(
            some,
            history_weight_UL=np.full_like(some.history_weight_UL, 1e6),
            history_age_ms_UL=np.full_like(some.history_age_ms_UL, 1e13),
        ),
        "far position": replace(some, position_C=np.full_like(some.position_C, 2**31 - 1)),
    }


@pytest.fixture(scope="module", params=["mmoe", "ple"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RankerNetwork, Path]:
    network, path = network_of(request.param), tmp_path_factory.mktemp("export") / "ranker.onnx"
    export(network, path, [random_inputs(LAYOUT, 8, users, np.random.default_rng(1)) for users in (1, 8)])
    return network, path


def test_a_request_that_it_scored_replays(tmp_path: Path) -> None:
    tiny = Bundle.load(write_tiny_bundle(tmp_path))
    layout, path = tiny.ranker.layout, tmp_path / "ranker.onnx"
    export(network_of("mmoe", layout), path, [random_inputs(layout, 8, 1, np.random.default_rng(1))])
    bundle = replace(tiny, ranker=Ranker.load(path, layout, identity(len(HEADS))))
    answer = answered(live_view(bundle), query(count=20), max_candidates=100, min_candidates=100)
    for full, allowed in ((True, {Verdict.EQUAL}), (False, {Verdict.EQUAL, Verdict.CLOSE})):
        record = parse_slate(record_of(answer, full_features=full).to_json())
        checks = {check.part: check.verdict for check in replay(past_request(record, bundle))}
        assert set(checks.values()) <= allowed, (full, checks)
        assert checks["features"] is checks["slate"] is checks["propensities"] is Verdict.EQUAL


@pytest.mark.parametrize("users", [1, 30])
@pytest.mark.parametrize("name", list(edges(1)))
def test_the_graph_equals_torch(exported: tuple[RankerNetwork, Path], users: int, name: str) -> None:
    assert difference(*exported, edges(users)[name]) <= TOLERANCE


def test_a_candidate_scores_the_same_alone_in_company_and_with_its_own_user_row(
    exported: tuple[RankerNetwork, Path],
) -> None:
    ranker = Ranker.load(exported[1], LAYOUT, identity(len(HEADS)))
    many = random_inputs(LAYOUT, 500, 1, np.random.default_rng(5))
    user_side = [name for name in many.feed() if "_U" in name]
    apart = replace(many, **{name: np.repeat(getattr(many, name), 500, axis=0) for name in user_side})
    logit_CT = ranker.logits(many)
    np.testing.assert_allclose(ranker.logits(apart), logit_CT, rtol=TOLERANCE, atol=TOLERANCE)
    for row in (0, 250, 499):
        alone = ranker.logits(apart.take(np.array([row])))
        np.testing.assert_allclose(alone[0], logit_CT[row], rtol=TOLERANCE, atol=TOLERANCE)
    assert ranker.logits(apart.take(np.empty(0, np.int64))).shape == (0, len(HEADS))


@pytest.mark.parametrize("mixture", ["mmoe", "ple"])
def test_the_split_graphs_give_what_the_whole_one_does(mixture: Mixture, tmp_path: Path) -> None:
    network = network_of(mixture)
    split = SplitRanker(network, tmp_path, random_inputs(LAYOUT, 8, 1, np.random.default_rng(1)))
    for name, inputs in edges(1).items():
        with torch.inference_mode():
            whole_CT = network({key: torch.from_numpy(array) for key, array in inputs.feed().items()}).numpy()
        got_CT = split.logits(request_feed(inputs), split.item_rows(inputs))
        np.testing.assert_allclose(got_CT, whole_CT, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
