"""The request log: found by id and by user, a day and a size long, shared by processes, never harmed for good."""

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from features.slates import SlateItem, SlateRecord
from serving.request_log import FILE, KEEP_MS, LoggedRequest, RequestLogError, RequestLogReader, RequestLogWriter
from tests.conftest import ROOT

NOW_MS = 1_760_000_000_000


def _record(
    request_id: str, user_id: str = "u", at_ms: int = NOW_MS, items: tuple[str, ...] = ("a", "b")
) -> SlateRecord:
    return SlateRecord(
        request_id=request_id,
        user_id=user_id,
        served_at_ms=at_ms,
        surface="home",
        bundle_id="bundle",
        arm="millrace",
        degraded=(),
        snapshot_instant_ms=at_ms,
        newest_event_ms=None,
        user_features={},
        items=tuple(
            SlateItem(item_id=item_id, position=k, score=0.0, propensity=1.0, sources=(), probabilities={})
            for k, item_id in enumerate(items)
        ),
        candidates=(),
    )


def _logged(*records: SlateRecord) -> list[LoggedRequest]:
    return [LoggedRequest(record=record, value=record.to_json()) for record in records]


def _writer(directory: Path, **options: int) -> RequestLogWriter:
    return RequestLogWriter(directory, lambda: NOW_MS, **options)


def test_requests_are_found_by_id_and_by_user(tmp_path: Path) -> None:
    reader = RequestLogReader(tmp_path)
    assert reader.find("r1") is None and reader.newest("u") is None and reader.newest_showing("u", "a") is None
    old, new = _record("r1", at_ms=NOW_MS - 2), _record("r2", at_ms=NOW_MS - 1, items=("b", "c"))
    _writer(tmp_path).write(_logged(new, old, _record("r3", user_id="", items=("a",))))
    assert reader.find("r1") == old and reader.find("r4") is None
    assert reader.newest("u") == new and reader.newest("nobody") is None
    assert reader.newest_showing("u", "b") == new and reader.newest_showing("u", "a") == old
    assert reader.newest_showing("u", "d") is None


def test_an_item_of_the_same_hash_is_no_hit(tmp_path: Path) -> None:
    # CRC-32 of both is 4DDB0C25.
    _writer(tmp_path).write(_logged(_record("r1", items=("plumless",))))
    assert RequestLogReader(tmp_path).newest_showing("u", "buckeroo") is None


def test_a_request_is_kept_once_and_a_day_long(tmp_path: Path) -> None:
    reader, writer = RequestLogReader(tmp_path), _writer(tmp_path)
    writer.write(_logged(_record("kept", at_ms=NOW_MS - KEEP_MS), _record("gone", at_ms=NOW_MS - KEEP_MS - 1)))
    writer.write(_logged(replace(_record("kept"), user_id="another")))
    writer.prune()
    found = reader.find("kept")
    assert found is not None and found.user_id == "u"
    assert reader.find("gone") is None


def test_it_stays_within_its_size_by_letting_the_oldest_go(tmp_path: Path) -> None:
    writer, reader, bound = _writer(tmp_path, max_bytes=200_000), RequestLogReader(tmp_path), 200_000
    for k in range(600):  # ids that do not compress
        ids = tuple(f"{(k * 7919 + j) * 2654435761 % 2**64:016x}" for j in range(20))
        writer.write(_logged(_record(f"r{k:04d}", at_ms=NOW_MS + k, items=ids)))
    writer.close()
    assert (tmp_path / FILE).stat().st_size <= 1.2 * bound
    assert reader.find("r0000") is None and reader.find("r0599") is not None


_WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from features.slates import parse_slate
from serving.request_log import LoggedRequest, RequestLogWriter
directory, name, value = sys.argv[1:]
writer = RequestLogWriter(Path(directory), lambda: 1_760_000_000_000)
for k in range(40):
    record = replace(parse_slate(value.encode()), request_id=f"{name}-{k}")
    writer.write([LoggedRequest(record=record, value=record.to_json())])
"""


def test_several_processes_write_to_one_file(tmp_path: Path) -> None:
    names, value = ("one", "two", "three"), _record("r").to_json().decode()
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    processes = [subprocess.Popen([*command, name, value], cwd=ROOT) for name in names]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    reader = RequestLogReader(tmp_path)
    for name in names:
        assert all(reader.find(f"{name}-{k}") is not None for k in range(40))


@pytest.mark.parametrize("damage", ["rubbish", "another format", "cut"])
def test_a_damaged_file_is_set_aside_and_the_log_begins_anew(tmp_path: Path, damage: str) -> None:
    file = tmp_path / FILE
    first = _writer(tmp_path)
    first.write(_logged(*(_record(f"old{k}") for k in range(200))))
    first.close()
    if damage == "rubbish":
        file.write_bytes(b"no database" * 1_000)
    elif damage == "cut":
        data = file.read_bytes()
        file.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
    writer, reader = _writer(tmp_path), RequestLogReader(tmp_path)
    with pytest.raises(RequestLogError, match=r"was damaged .* and begins anew"):
        writer.write(_logged(_record("lost")))
    writer.write(_logged(_record("new")))
    assert reader.find("new") is not None and reader.find("lost") is None
    assert (tmp_path / f"{FILE}.broken").exists()


def test_a_writer_follows_when_another_process_sets_the_file_aside(tmp_path: Path) -> None:
    one, other, reader = _writer(tmp_path), _writer(tmp_path), RequestLogReader(tmp_path)
    one.write(_logged(_record("r1")))
    (tmp_path / FILE).rename(tmp_path / "moved")
    for suffix in ("-wal", "-shm"):
        (tmp_path / (FILE + suffix)).unlink(missing_ok=True)
    other.write(_logged(_record("r2")))
    one.write(_logged(_record("r3")))
    assert reader.find("r2") is not None and reader.find("r3") is not None


def test_what_cannot_be_read_or_written_says_so(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    with pytest.raises(RequestLogError, match="request log"):
        _writer(blocked).write(_logged(_record("r")))
    (tmp_path / FILE).write_bytes(b"no database" * 1_000)
    with pytest.raises(RequestLogError, match=r"cannot be read: .*; ask again later"):
        RequestLogReader(tmp_path).find("r")
