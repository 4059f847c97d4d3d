"""Explain: the slate as it was answered, its moves, traces, and what the log or the disk cannot say any more."""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import grpc
import pytest
from prometheus_client import CollectorRegistry

from models.bundle import Bundle
from serving import ranking_pb2 as pb
from serving.answer import Answer, to_proto
from serving.call_error import CallError
from serving.explain import Explainer
from serving.query import RequestError, check_explain
from serving.request_log import RequestLogReader, RequestLogWriter
from serving.rules import Rules
from serving.slate_draft import draft_of
from serving.slate_log import wants_all
from serving.slate_metrics import SlateMetrics
from serving.slate_writer import SlateWriter
from serving.view import LiveView
from tests.past_requests import NOW_MS, QUERIES, answered, live_view, query, rules
from tests.serving_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def view(bundles: Path) -> LiveView:
    return live_view(Bundle.load(write_tiny_bundle(bundles)))


@pytest.fixture(scope="module")
def some_rules(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    return rules(tmp_path_factory.mktemp("rules"))


@pytest.fixture
def explainer(view: LiveView, bundles: Path, tmp_path: Path) -> Iterator[Explainer]:
    made = Explainer(RequestLogReader(tmp_path), lambda: view, bundles)
    yield made
    made.close()


def _log(directory: Path, *answers: Answer, full_share: float = 0.0) -> SlateMetrics:
    metrics = SlateMetrics(CollectorRegistry())
    writer = SlateWriter(None, "none", metrics, RequestLogWriter(directory, lambda: NOW_MS))
    for answer in answers:
        writer.write(draft_of(answer, full_features=wants_all(answer, full_share)))
    writer.close()
    return metrics


def _explained(explainer: Explainer, request_id: str, *item_ids: str) -> pb.RequestExplanation:
    request = pb.ExplainRequest(request_id=request_id, item_ids=item_ids)
    return explainer.explain(request, perf_counter() + 5)


@pytest.mark.parametrize("kind", QUERIES)
def test_the_slate_is_the_one_that_was_answered(
    view: LiveView, some_rules: Rules, explainer: Explainer, tmp_path: Path, kind: str
) -> None:
    answer = answered(view, query("asked", **{**QUERIES[kind], "explain": True}), some_rules)
    _log(tmp_path, answer)
    found = _explained(explainer, "asked")
    assert found.slate == to_proto(answer)
    assert found.full_features == (answer.scored.inputs is not None and len(answer.item_index_C) > 0)


def test_moves_are_found_of_a_request_that_did_not_ask_for_them(
    view: LiveView, some_rules: Rules, explainer: Explainer, tmp_path: Path
) -> None:
    asked, plain = ({"count": 30, "explain": explain} for explain in (True, False))
    _log(tmp_path, answered(view, query("r", **plain), some_rules))
    found = _explained(explainer, "r")
    want = to_proto(answered(view, query("r", **asked), some_rules))
    assert [item.explanation for item in found.slate.items] == [item.explanation for item in want.items]
    assert any(move.step == "pin" for item in found.slate.items for move in item.explanation.moves)
    assert not found.full_features


def test_items_are_traced_in_the_order_asked_for(view: LiveView, explainer: Explainer, tmp_path: Path) -> None:
    answer = answered(view, query("r"))
    _log(tmp_path, answer)
    shown = to_proto(answer).items[0].item_id
    traces = _explained(explainer, "r", "nowhere", shown, "art02").traces
    assert [(trace.item_id, trace.shown, trace.dropped_by) for trace in traces] == [
        ("nowhere", False, "retrieve"),
        (shown, True, ""),
        ("art02", False, "filter"),
    ]
    assert traces[1].HasField("score") and not traces[0].HasField("score") and all(trace.reason for trace in traces)


def test_a_request_that_is_not_there_keeps_nobody_else_waiting(
    view: LiveView, explainer: Explainer, tmp_path: Path
) -> None:
    """Six calls for unknown requests, each looked for a while, and then one that is there: it is answered first."""
    _log(tmp_path, answered(view, query("there")))
    ended: list[str] = []

    async def ask(request_id: str) -> None:
        try:
            await explainer.answer(pb.ExplainRequest(request_id=request_id), 5.0)
        except CallError as error:
            assert error.code is grpc.StatusCode.NOT_FOUND
        ended.append(request_id)

    async def ask_all() -> None:
        await asyncio.gather(*(ask(f"unknown-{n}") for n in range(6)), ask("there"))

    asyncio.run(ask_all())
    assert ended[0] == "there" and len(ended) == 7


def test_scores_are_not_searched_for_past_the_deadline(view: LiveView, explainer: Explainer, tmp_path: Path) -> None:
    answer = answered(view, query("r"))
    _log(tmp_path, answer)
    left_out = next(answer.item_id(row) for row in range(60) if row not in answer.rows.row_S)
    request = pb.ExplainRequest(request_id="r", item_ids=[left_out])
    late, soon = explainer.explain(request, perf_counter() - 1), explainer.explain(request, perf_counter() + 9)
    assert late.traces[0].HasField("score") and not late.traces[0].HasField("needed_score")
    assert soon.traces[0].HasField("needed_score")


@pytest.mark.parametrize(
    ("request_id", "item_ids", "words"),
    [
        ("", [], "request_id: got ''; allowed: 1 to 128 characters"),
        ("a b", [], "request_id: got 'a b'"),
        ("r" * 129, [], "request_id: got"),
        ("r", ["a"] * 101, "item_ids: got '101 values'; allowed: at most 100"),
        ("r", ["a", ""], r"item_ids\[1\]: got ''"),
    ],
)
def test_bad_input_names_the_field(request_id: str, item_ids: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_explain(pb.ExplainRequest(request_id=request_id, item_ids=item_ids))


def test_what_is_not_known_any_more_is_not_found(view: LiveView, bundles: Path, tmp_path: Path) -> None:
    gone = live_view(Bundle.load(write_tiny_bundle(bundles, "gone")))
    _log(tmp_path, answered(gone, query("old")), answered(view, query("new")))
    explainer = Explainer(RequestLogReader(tmp_path), lambda: view, bundles)
    assert _explained(explainer, "old").slate.bundle_id == gone.bundle.bundle_id
    shutil.rmtree(gone.bundle.path)
    assert _explained(explainer, "old").slate.bundle_id == gone.bundle.bundle_id, "it is in memory still"
    explainer.close()
    again = Explainer(RequestLogReader(tmp_path), lambda: None, bundles)
    for request_id, words in (("old", "cannot be explained any more: the directory of"), ("never", "has no 'never'")):
        with pytest.raises(CallError, match=words) as refused:
            _explained(again, request_id)
        assert refused.value.code is grpc.StatusCode.NOT_FOUND
    again.close()


def test_too_many_at_once_are_refused(explainer: Explainer) -> None:
    async def ask() -> list[object]:
        calls = [explainer.answer(pb.ExplainRequest(request_id="none"), 0.1) for _ in range(20)]
        return await asyncio.gather(*calls, return_exceptions=True)

    codes = [error.code for error in asyncio.run(ask()) if isinstance(error, CallError)]
    assert len(codes) == 20 and set(codes) == {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_share_of_requests_and_every_explained_one_is_logged_in_full(view: LiveView, tmp_path: Path) -> None:
    answers = [answered(view, query(f"r{k}", explain=k == 0, count=5), min_candidates=10) for k in range(60)]
    metrics = _log(tmp_path, *answers, full_share=0.3)
    reader = RequestLogReader(tmp_path)
    found = [reader.find(f"r{k}") for k in range(60)]
    full = [record is not None and record.evidence is not None and record.evidence.full_features for record in found]
    assert full[0] and 8 <= sum(full) <= 30
    assert metrics.logged_requests.labels("kept")._value.get() == 60


def test_what_cannot_be_logged_is_counted_and_the_rest_goes_on(view: LiveView, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no directory")
    answer = answered(view, query("r"))
    metrics = _log(file, answer)
    assert metrics.logged_requests.labels("dropped")._value.get() == 1
    broken = replace(answer, served_at_ms=b"now")  # type: ignore[arg-type]  # no JSON value
    metrics = _log(tmp_path, broken, answer)
    assert RequestLogReader(tmp_path).find("r") is not None, "the request after the broken one"
    assert metrics.logged_requests.labels("dropped")._value.get() == 1
