"""`millrace why` and `millrace replay-request` on a log that the service's own parts wrote."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.commands import CommandError
from models.bundle import Bundle
from models.refusal import RefusalError
from serving.answer import Answer
from serving.request_log import LoggedRequest, RequestLogWriter
from tests.past_requests import NOW_MS, answered, live_view, query, record_of
from tests.serving_bundle import write_tiny_bundle


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PORT_BASE", "BUNDLES_DIR", "STACK"):
        monkeypatch.delenv(f"MILLRACE_{name}", raising=False)
    monkeypatch.setenv("MILLRACE_VAR_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def answer(stack: Path) -> Answer:
    """Of a request that is in the stack's log, with the features of the returned items."""
    view = live_view(Bundle.load(write_tiny_bundle(stack / "bundles")))
    made = answered(view, query("r1", count=20))
    _log(stack, made)
    return made


def _log(stack: Path, *answers: Answer, full: bool = False) -> None:
    records = [record_of(answer, full_features=full) for answer in answers]
    writer = RequestLogWriter(stack / "request-log", lambda: NOW_MS)
    writer.write([LoggedRequest(record=record, value=record.to_json()) for record in records])
    writer.close()


def _said(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def _refused(*arguments: str) -> str:
    with pytest.raises((CommandError, RefusalError)) as refused:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    return str(refused.value)


def test_a_replay_says_of_each_part_how_it_came_out(stack: Path, answer: Answer) -> None:
    said = _said("replay-request", "r1")
    assert "request r1: Recommend for u at 2025-10-09" in said and answer.view.bundle.bundle_id in said
    for part in ("features", "probabilities", "scores", "slate", "propensities"):
        assert part in said
    assert "only the returned items' features were logged" in said
    _log(stack, answered(answer.view, query("r2")), full=True)
    said = _said("replay-request", "r2")
    assert "only the returned" not in said and "bit for bit" in said and "close" not in said


def test_a_replay_that_comes_out_otherwise_fails(stack: Path, answer: Answer) -> None:
    turned = replace(answer.rows, row_S=answer.rows.row_S[::-1].copy())
    _log(stack, replace(answer, query=replace(answer.query, request_id="r3"), rows=turned), full=True)
    said = _refused("replay-request", "r3")
    assert said.startswith("request r3 comes out otherwise in slate") and "compare library versions" in said


def test_why_shows_sources_heads_and_features_of_an_item_that_was_shown(stack: Path, answer: Answer) -> None:
    row = int(answer.rows.row_S[0])
    said = _said("why", "u", answer.item_id(row))
    assert f"{answer.item_id(row)} was shown at position 1 with the score" in said
    for name, rank in answer.source_ranks(row).items():
        assert f"{name} (rank {rank})" in said
    for head, p in answer.probabilities(row).items():
        weight = answer.arm.value_weights[head]
        assert f"{p:.6f}" in said and f"{p * weight:+.6f}" in said
    for name, value in answer.features(row).items():
        assert name in said and f"{value:.6g}" in said


def test_why_names_the_stage_that_dropped_an_item(stack: Path, answer: Answer) -> None:
    assert "art02 was not shown: dropped by filter: the user has seen it" in _said(
        "why", "u", "art02", "--request", "r1"
    )
    assert "was not shown: dropped by retrieve" in _said("why", "u", "nowhere")
    left_out = next(answer.item_id(row) for row in range(60) if row not in answer.rows.row_S)
    said = _said("why", "u", left_out)
    assert "dropped by rerank" in said and "would have shown it" in said


def test_why_takes_the_newest_request_that_showed_the_item_or_the_newest(stack: Path, answer: Answer) -> None:
    narrow = answered(answer.view, query("r2", count=1))
    _log(stack, replace(narrow, served_at_ms=NOW_MS + 1))
    both, first = narrow.item_id(int(narrow.rows.row_S[0])), answer.item_id(int(answer.rows.row_S[5]))
    assert "request r2" in _said("why", "u", both) and "request r1" in _said("why", "u", first)
    assert "request r2" in _said("why", "u", "nowhere")


def test_what_is_not_there_is_said_in_one_sentence(stack: Path, answer: Answer) -> None:
    assert "has no request 'none'; give the request_id of a slate" in _refused("replay-request", "none")
    assert "has no request of 'stranger'; ask for a slate first" in _refused("why", "stranger", "art00")
    assert "was of another user than v" in _refused("why", "v", "art00", "--request", "r1")
    answer.view.bundle.path.rename(stack / "elsewhere")
    assert "is gone from" in _refused("replay-request", "r1")
