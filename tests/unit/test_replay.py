"""Replaying files: what is refused before anything is sent, and how rows become records. Kafka itself is elsewhere."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.events import Event, EventType
from streaming import replay
from streaming.producer import counted
from streaming.records import Record, record_of
from streaming.replay import ReplayError, check_file, replay_file

NOW_MS = 1_760_000_000_000


def click(number: int, **changed: object) -> dict[str, object]:
    """A valid click as a row of a file."""
    event = {
        "event_id": f"e{number}",
        "event_type": "click",
        "event_time_ms": 1_000 * number,
        "user_id": "u1",
        "item_id": "i1",
        "category": "music",
        "creator_id": "c1",
        "schema_version": 1,
    }
    return {**event, **changed}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Sent:
    """Stands in for the producer's network: keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[Record] = []


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    kept = Sent()

    class Producer:
        def __init__(self, *_: object, **__: object) -> None:
            self.delivered = 0

        def send(self, records: object) -> None:
            kept.records.extend(records)  # type: ignore[arg-type]
            self.delivered = len(kept.records)

        def __enter__(self) -> "Producer":
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(replay, "Producer", Producer)
    return kept


def play(path: Path, **options: object) -> replay.ReplayReport:
    return replay_file(path, bootstrap_servers="nowhere:1", topic="events", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_sends_rows_in_order_with_their_arrival(tmp_path: Path, sent: Sent, suffix: str) -> None:
    path = write(tmp_path / f"events{suffix}", [click(2, arrival_ms=2_500), click(1, arrival_ms=2_600)])
    report = play(path)
    assert (report.events, report.invalid, report.shift_ms) == (2, 0, 0)
    assert [(json.loads(r.value), r.key, r.arrival_ms) for r in sent.records] == [
        (click(2), b"u1", 2_500),
        (click(1), b"u1", 2_600),
    ]


def test_without_arrivals_events_arrive_when_they_happen_and_are_sent_verbatim(tmp_path: Path, sent: Sent) -> None:
    path = tmp_path / "events.jsonl"
    lines = [json.dumps(click(number)) for number in (1, 3)]
    path.write_text(f"{lines[0]}\n\n{lines[1]}")
    play(path)
    assert [(r.value.decode(), r.arrival_ms) for r in sent.records] == [(lines[0], 1_000), (lines[1], 3_000)]


def test_a_shift_moves_all_times_by_one_constant(tmp_path: Path, sent: Sent) -> None:
    path = write(tmp_path / "events.jsonl", [click(5, arrival_ms=5_040), click(1), click(3)])
    report = play(path, shift_to_ms=NOW_MS)
    assert report.shift_ms == NOW_MS - 5_000
    assert [json.loads(r.value)["event_time_ms"] for r in sent.records] == [NOW_MS, NOW_MS - 4_000, NOW_MS - 2_000]
    assert [r.arrival_ms for r in sent.records] == [NOW_MS + 40, NOW_MS - 4_000, NOW_MS - 2_000]


def test_the_rate_is_kept_and_made_up_for(tmp_path: Path, sent: Sent) -> None:
    path = write(tmp_path / "events.jsonl", [click(number) for number in range(1, 6)])
    now_s, slept = [100.0], []

    def sleep(seconds: float) -> None:
        # The first sleep lasts far too long: what was missed is caught up without a pause.
        now_s[0] += seconds if slept else 0.35
        slept.append(seconds)

    play(path, rate_per_s=10.0, clock=lambda: now_s[0], sleep=sleep)
    assert slept == pytest.approx([0.1, 0.05])
    assert len(sent.records) == 5


def test_one_bad_row_refuses_the_file_and_nothing_is_sent(tmp_path: Path, sent: Sent) -> None:
    path = write(tmp_path / "events.jsonl", [click(1), click(2, user_id="two words"), click(3)])
    with pytest.raises(ReplayError, match=r"events\.jsonl, row 2: invalid:user_id: got 'two words'.*Nothing was sent"):
        play(path)
    assert sent.records == []


def test_bad_rows_can_be_let_through_as_they_are(tmp_path: Path, sent: Sent) -> None:
    path = write(tmp_path / "events.jsonl", [click(1), click(2, event_type="teleport"), click(3)])
    path.write_text(path.read_text() + "no json\n")
    report = play(path, keep_invalid=True, shift_to_ms=NOW_MS)
    assert (report.events, report.invalid, report.records) == (2, 2, 4)
    assert [r.arrival_ms for r in sent.records] == [NOW_MS - 2_000, NOW_MS - 2_000, NOW_MS, NOW_MS]
    assert json.loads(sent.records[1].value) == click(2, event_type="teleport")
    assert sent.records[3].value == b"no json"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.jsonl", None, "No such file"),
        ("missing.parquet", None, "(?i)no such file"),
        ("events.csv", b"", r"ends in '\.csv'; allowed: .*\.jsonl.*\.parquet"),
        ("events.parquet", b"no parquet", "(?i)parquet"),
        ("empty.jsonl", b"\n", "got no valid event"),
    ],
)
def test_an_unreadable_file_is_one_clear_error(
    tmp_path: Path, sent: Sent, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReplayError, match=says) as raised:
        play(path)
    assert "\n" not in str(raised.value)
    assert sent.records == []


def test_an_event_of_the_future_breaks_the_contract_unless_all_are_shifted(tmp_path: Path, sent: Sent) -> None:
    """Kafka would refuse it, and every record of its batch."""
    rows = [click(1, event_time_ms=NOW_MS), click(2, event_time_ms=NOW_MS + 2 * 3_600_000)]
    path = write(tmp_path / "events.jsonl", rows)
    with pytest.raises(ReplayError, match="row 2: future_event_time"):
        play(path, now_ms=NOW_MS)
    assert sent.records == []
    report = play(path, now_ms=NOW_MS, keep_invalid=True)
    assert (report.events, report.invalid) == (1, 1)
    assert [record.arrival_ms for record in sent.records] == [NOW_MS, NOW_MS]
    sent.records.clear()
    assert play(path, now_ms=NOW_MS, shift_to_ms=NOW_MS).events == 2
    assert [record.arrival_ms for record in sent.records] == [NOW_MS - 2 * 3_600_000, NOW_MS]


def test_a_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.mkdir()
    with pytest.raises(ReplayError, match="Is a directory"):
        check_file(path)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_cannot_be_is_refused(tmp_path: Path, sent: Sent, rate: float) -> None:
    with pytest.raises(ReplayError, match="allowed: more than 0"):
        play(write(tmp_path / "events.jsonl", [click(1)]), rate_per_s=rate)


def test_records_are_written_as_the_contract_writes_them() -> None:
    event = Event(
        event_id="e1",
        event_type=EventType.LIKE,
        event_time_ms=5,
        user_id="u",
        item_id="i",
        category="c",
        creator_id="r",
    )
    assert record_of(event, 7).value == event.to_json()


def test_progress_is_told_now_and_then_and_at_the_end() -> None:
    told: list[int] = []
    record = Record(value=b"", key=b"", arrival_ms=0)
    assert sum(1 for _ in counted((record for _ in range(25_000)), told.append)) == 25_000
    assert told == [10_000, 20_000, 25_000]
