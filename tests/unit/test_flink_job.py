"""The job's edges that need no engine: its flags, and which checkpoint it starts from."""

import os
import socket
from pathlib import Path

import pytest

from features.names import MS_PER_HOUR
from streaming import job
from streaming.flink_checkpoints import (
    TOLERATED_OUTAGE_MS,
    Checkpoint,
    CheckpointError,
    checkpoint_to_restore,
    forget_other_runs,
    newest_checkpoint,
    record_plan,
)

NOW_MS = 1_760_000_000_000


def complete(directory: Path, run: str, number: int, completed_ms: int) -> Path:
    path = directory / run / f"chk-{number}"
    path.mkdir(parents=True)
    (directory / run / "shared").mkdir(exist_ok=True)
    metadata = path / "_metadata"
    metadata.write_bytes(b"x")
    os.utime(metadata, ns=(completed_ms * 1_000_000, completed_ms * 1_000_000))
    return path


def test_the_newest_complete_checkpoint_of_any_run_is_restored(tmp_path: Path) -> None:
    complete(tmp_path, "a" * 32, 9, NOW_MS - 3_000)
    newest = complete(tmp_path, "b" * 32, 2, NOW_MS - 1_000)
    (tmp_path / ("b" * 32) / "chk-3").mkdir()
    record_plan(tmp_path, "plan")
    assert checkpoint_to_restore(tmp_path, "plan", NOW_MS) == Checkpoint(path=newest, completed_ms=NOW_MS - 1_000)


def test_a_first_start_restores_nothing(tmp_path: Path) -> None:
    assert checkpoint_to_restore(tmp_path / "absent", "plan", NOW_MS) is None
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(("age_ms", "refused"), [(TOLERATED_OUTAGE_MS, False), (TOLERATED_OUTAGE_MS + 1, True)])
def test_a_checkpoint_older_than_the_tolerated_outage_is_refused(tmp_path: Path, age_ms: int, refused: bool) -> None:
    complete(tmp_path, "a" * 32, 1, NOW_MS - age_ms)
    record_plan(tmp_path, "plan")
    if not refused:
        assert checkpoint_to_restore(tmp_path, "plan", NOW_MS) is not None
        return
    with pytest.raises(CheckpointError, match=r"72.*run reprocess"):
        checkpoint_to_restore(tmp_path, "plan", NOW_MS)


@pytest.mark.parametrize("written", ["another", None])
def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path, written: str | None) -> None:
    complete(tmp_path, "a" * 32, 1, NOW_MS - MS_PER_HOUR)
    if written:
        record_plan(tmp_path, written)
    with pytest.raises(CheckpointError, match=r"another version of the job's SQL.*run reprocess"):
        checkpoint_to_restore(tmp_path, "plan", NOW_MS)


def test_only_the_restored_run_is_kept(tmp_path: Path) -> None:
    complete(tmp_path, "a" * 32, 1, NOW_MS - 3_000)
    complete(tmp_path, "b" * 32, 2, NOW_MS - 1_000)
    record_plan(tmp_path, "plan")
    forget_other_runs(tmp_path, newest_checkpoint(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"b" * 32, "plan"}
    forget_other_runs(tmp_path, None)
    assert {path.name for path in tmp_path.iterdir()} == {"plan"}


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars" / "connector.jar").touch()
    return {
        "--bootstrap-servers": "127.0.0.1:1",
        "--checkpoint-dir": str(tmp_path / "checkpoints"),
        "--jars-dir": str(tmp_path / "jars"),
    }


def status_and_sentence(flags: dict[str, str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    try:
        status = job.main([part for pair in flags.items() for part in pair])
    except SystemExit as error:
        status = int(str(error.code))
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--parallelism": "0"}, "got '0', allowed is a whole number from 1"),
        ({"--rest-port": "70000"}, "allowed is a port from 1 to 65535"),
        ({"--bootstrap-servers": "broker"}, "allowed is host:port"),
        ({"--jars-dir": "nowhere"}, "run `make setup`"),
        ({"--colour": "red"}, "unrecognized arguments"),
    ],
)
def test_a_bad_flag_ends_in_one_sentence(
    changes: dict[str, str], said: str, flags: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, sentence = status_and_sentence({**flags, **changes}, capsys)
    assert status == 2
    assert said in sentence
    assert sentence.count("\n") == 1


def test_a_busy_rest_port_and_an_absent_broker_are_said(
    flags: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "BROKER_WAIT_S", 0.0)
    monkeypatch.setattr(job, "PORT_WAIT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert status_and_sentence({**flags, "--rest-port": port}, capsys)[1].endswith(
            f"--rest-port {port} is taken: end what uses it or give another.\n"
        )
    status, sentence = status_and_sentence({**flags, "--rest-port": port}, capsys)
    assert status == 2
    assert "no broker answers on 127.0.0.1:1" in sentence


def test_a_refused_checkpoint_ends_in_one_sentence(flags: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    version = Path(flags["--checkpoint-dir"]) / "v0"
    complete(version, "a" * 32, 1, NOW_MS)
    status, sentence = status_and_sentence({**flags, "--topics-version": "v0"}, capsys)
    assert status == 2
    assert sentence.endswith("or give another --checkpoint-dir.\n")
    assert "run reprocess" in sentence


def test_the_sql_is_shown_without_an_engine(flags: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([part for pair in {**flags, "--show": "sql"}.items() for part in pair]) == 0
    assert "CREATE VIEW judged" in capsys.readouterr().out


def test_the_root_cause_is_what_is_said_of_a_java_trace() -> None:
    trace = "a.B: outer\n\tat x\nCaused by: c.D: middle\n\tat y\nCaused by: e.F: no such topic\n\tat z\n"
    assert job.last_cause(trace) == "e.F: no such topic"
    assert job.last_cause("plain\nmore") == "plain"
    assert job.last_cause("") == "no reason was given"
