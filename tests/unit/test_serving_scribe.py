"""Slates from the worker to its scribe: what arrives, what is counted as lost, and who waits for whom."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import cast

import pytest
from prometheus_client import CollectorRegistry, Counter

from models.bundle import Bundle
from serving.answer import Answer
from serving.scribe import Scribe
from serving.slate_draft import draft_of
from serving.slate_log import MAX_QUEUED, SlateLog
from serving.slate_metrics import SlateMetrics
from serving.slate_record import SlateDraft, to_json, to_record
from serving.slate_writer import SlateWriter
from tests.conftest import ROOT, wait_for
from tests.past_requests import answered, live_view, query
from tests.serving_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    view = live_view(Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles"))))
    return [answered(view, query(f"r{k}", count=5)) for k in range(10)]


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "scribe.sock"


class Writer:
    """Remembers the drafts; writes none of them while it is held, and fails at the one named."""

    def __init__(self) -> None:
        self.drafts = list[SlateDraft]()
        self.connected = True
        self.may_write = Event()
        self.may_write.set()
        self.fatal = ""
        self.kept = self.closed = 0

    def write(self, draft: SlateDraft) -> None:
        self.may_write.wait()
        if draft.record.request_id == self.fatal:
            raise SystemExit("killed")
        self.drafts.append(draft)

    def keep(self) -> None:
        self.kept = len(self.drafts)

    def poll(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


@contextmanager
def scribe(address: Path, writer: Writer) -> Iterator[Event]:
    """A scribe in a thread, until the end or until it is told to stop."""
    stop = Event()
    thread = Thread(target=Scribe(address, cast(SlateWriter, writer)).run, args=(stop,), daemon=True)
    thread.start()
    wait_for(lambda: _listens(address), "the scribe")
    yield stop
    stop.set()
    writer.may_write.set()
    thread.join(5)
    assert not thread.is_alive()


def _listens(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as line:
        return line.connect_ex(str(address)) == 0


def _metrics() -> SlateMetrics:
    return SlateMetrics(CollectorRegistry())


def _value(counter: Counter, fate: str) -> float:
    return counter.labels(fate)._value.get()  # type: ignore[no-any-return]


def _lost(metrics: SlateMetrics) -> tuple[float, float]:
    return _value(metrics.slates, "dropped"), _value(metrics.logged_requests, "dropped")


def _log(address: Path, metrics: SlateMetrics | None = None) -> SlateLog:
    return SlateLog(address, metrics or _metrics(), kafka=True, requests=True, full_share=0.0)


def test_every_slate_arrives_as_it_was_answered(address: Path, answers: list[Answer]) -> None:
    metrics, writer = _metrics(), Writer()
    log = _log(address, metrics)
    assert all(log.submit(answer) is None for answer in answers[:5])  # before there is a scribe
    with scribe(address, writer):
        assert all(log.submit(answer) is None for answer in answers[5:])
        log.close()
        assert [to_json(to_record(draft)) for draft in writer.drafts] == [
            to_json(to_record(draft_of(answer))) for answer in answers
        ]
        assert _lost(metrics) == (0, 0)
        wait_for(lambda: writer.kept == len(answers), "what the request log is to take")
    assert writer.closed == 1


def test_what_a_scribe_took_with_it_is_counted_and_the_next_goes_on(address: Path, answers: list[Answer]) -> None:
    metrics, first, second = _metrics(), Writer(), Writer()
    log = _log(address, metrics)
    first.fatal = "r2"
    dying = Thread(target=_run_until_killed, args=(Scribe(address, cast(SlateWriter, first)),), daemon=True)
    dying.start()
    for answer in answers[:3]:
        log.submit(answer)
        wait_for(lambda: not log._queue, "the slate to be sent")
    dying.join(5)
    wait_for(lambda: _lost(metrics)[0] >= 1, "the loss")
    with scribe(address, second):
        for answer in answers[3:]:
            log.submit(answer)
        wait_for(lambda: second.drafts, "a slate at the next scribe")
        log.close()
    ids = {draft.record.request_id for draft in first.drafts + second.drafts}
    assert len(ids) + 1 == len(answers) and "r2" not in ids
    assert 1 <= _lost(metrics)[0] <= 3 and _lost(metrics)[0] == _lost(metrics)[1]


def _run_until_killed(one: Scribe) -> None:
    try:
        one.run(Event())
    except SystemExit:
        return


def test_a_scribe_outlives_its_worker(address: Path, answers: list[Answer]) -> None:
    writer = Writer()
    with scribe(address, writer):
        for answer in answers:
            log = _log(address)
            log.submit(answer)
            log.close()
        assert len(writer.drafts) == len(answers)


def test_a_scribe_that_hangs_keeps_nobody_waiting(
    address: Path, answers: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.slate_log.CLOSE_S", 0.2)
    metrics, writer = _metrics(), Writer()
    writer.may_write.clear()
    with scribe(address, writer):
        log = _log(address, metrics)
        said = [log.submit(answers[0]) for _ in range(2 * MAX_QUEUED)]
        assert said[0] is None and said[-1] == "the slate was not logged: too many wait to be sent"
        refused = sum(why is not None for why in said)
        assert _lost(metrics) == (refused, refused) and refused >= MAX_QUEUED / 2
        log.close()
        assert _lost(metrics) == (len(said), len(said)), "none was written"


def test_without_a_scribe_the_end_does_not_wait(address: Path, answers: list[Answer]) -> None:
    metrics = _metrics()
    log = _log(address, metrics)
    for answer in answers:
        assert log.submit(answer) is None
    log.close()
    assert _lost(metrics) == (len(answers), len(answers))


def test_the_worker_hears_whether_kafka_answers(address: Path, answers: list[Answer]) -> None:
    writer = Writer()
    log = _log(address)
    with scribe(address, writer):
        assert log.submit(answers[0]) is None and log.connected
        writer.connected = False
        wait_for(lambda: not log.connected, "word of the outage")
        assert log.submit(answers[1]) == "the slate waits to be logged: Kafka does not answer"
        writer.connected = True
        wait_for(lambda: log.connected, "word of its end")
        log.close()


def test_a_scribe_that_is_told_to_end_writes_what_it_was_sent(
    address: Path, answers: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, sent = Writer(), list[Answer]()
    with scribe(address, writer) as stop:
        log = _log(address)
        send = log._send

        def counted(answer: Answer) -> None:
            send(answer)
            sent.append(answer)

        monkeypatch.setattr(log, "_send", counted)
        log.submit(answers[0])
        wait_for(lambda: len(writer.drafts) == 1, "the first slate")
        writer.may_write.clear()
        for answer in answers[1:4]:
            log.submit(answer)
        wait_for(lambda: len(sent) == 4, "the slates to be sent")
        stop.set()
        writer.may_write.set()
        wait_for(lambda: writer.closed == 1, "its end")
    assert [draft.record.request_id for draft in writer.drafts] == ["r0", "r1", "r2", "r3"]
    log.close()


def test_what_cannot_be_sent_is_counted_and_the_rest_goes_on(
    address: Path, answers: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, writer = _metrics(), Writer()

    def made(answer: Answer, *, full_features: bool) -> object:
        if answer.query.request_id == "r0":
            raise ValueError("broken")
        return (lambda: None) if answer.query.request_id == "r1" else draft_of(answer)

    monkeypatch.setattr("serving.slate_log.draft_of", made)
    with scribe(address, writer):
        log = _log(address, metrics)
        for answer in answers[:3]:
            log.submit(answer)
        log.close()
    assert [draft.record.request_id for draft in writer.drafts] == ["r2"] and _lost(metrics) == (2, 2)


def test_neither_scribe_nor_parent_loads_what_only_ranking_needs() -> None:
    """A hundred megabytes each, and most of a second."""
    heavy = ["numba", "onnxruntime", "models.sources", "features.algebra"]
    code = f"import sys, serving.scribe, serving.server; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout == b"[]\n"
