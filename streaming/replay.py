"""Replays a file of events into Kafka: JSON Lines or Parquet, at a rate or as fast as it goes.

A row has the contract's fields. It may also have `arrival_ms`, when it first arrived: that becomes the record's
timestamp and is not sent; without it an event arrived when it happened. The whole file is read and checked before
the first record is sent. Sending a file twice does no harm: the second copies are known by their ids.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.events import FIELDS, ContractError, parse_event
from streaming.producer import Producer, Progress, counted
from streaming.records import Record, RecordKind, to_json

_LOG = logging.getLogger(__name__)
_JSON_LINES = frozenset({".jsonl", ".ndjson", ".json"})
_PARQUET = frozenset({".parquet"})
_PARQUET_BATCH_ROWS = 10_000
_ARRIVAL = "arrival_ms"
_END_OF_TIME_MS = 10**17


class ReplayError(ValueError):
    """A file that cannot be replayed. Nothing of it has been sent."""


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What a replay sent."""

    events: int
    """Valid events."""
    invalid: int
    """Records that break the contract, sent as they are; 0 unless they were let through."""
    shift_ms: int
    """What was added to every time."""
    seconds: float
    """How long the sending took, after the file was checked."""

    @property
    def records(self) -> int:
        """Everything sent."""
        return self.events + self.invalid


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row of the file, at a number that a person can find (1 is the first)."""

    number: int
    value: bytes
    arrival_ms: int | None


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """What reading a whole file has shown."""

    invalid_rows: frozenset[int]
    """Numbers of the rows that break the contract."""
    last_ms: int
    """Event time of the newest event."""


def replay_file(
    path: Path,
    *,
    bootstrap_servers: str,
    topic: str,
    rate_per_s: float | None = None,
    shift_to_ms: int | None = None,
    now_ms: int | None = None,
    keep_invalid: bool = False,
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ReplayReport:
    """Sends every row of the file, in its order, to the topic.

    `rate_per_s` limits the speed; None is as fast as it goes. `shift_to_ms` moves all times by one constant, so that
    the newest event happens at that instant. With `now_ms` an event that is not shifted and has no arrival of its own
    must have happened by then, as far as the contract says: Kafka refuses a whole batch for one record of the future. A
    file with a row that breaks the contract is refused, unless `keep_invalid` sends such rows as they are (unshifted,
    for the dead-letter topic).

    Raises `ReplayError` for a file that cannot be read or is refused, with nothing sent; `ProduceError` when Kafka
    fails.
    """
    if rate_per_s is not None and not rate_per_s > 0:
        raise ReplayError(f"got a rate of {rate_per_s} events/s; allowed: more than 0. Leave it out for full speed.")
    checked = check_file(path, now_ms=now_ms if shift_to_ms is None else None, keep_invalid=keep_invalid)
    shift_ms = 0 if shift_to_ms is None else shift_to_ms - checked.last_ms
    start_s = clock()
    with Producer(bootstrap_servers, topic, linger_ms=20 if rate_per_s is None else 5) as producer:
        records = _records(path, checked, shift_ms)
        producer.send(counted(_paced(records, rate_per_s, clock, sleep), on_progress))
    sent = producer.delivered
    _LOG.info("%d records of %s delivered to %s", sent, path, topic)
    invalid = len(checked.invalid_rows)
    return ReplayReport(events=sent - invalid, invalid=invalid, shift_ms=shift_ms, seconds=clock() - start_s)


def check_file(path: Path, *, now_ms: int | None = None, keep_invalid: bool = False) -> FileCheck:
    """Reads the whole file under the contract, as of `now_ms` where a row does not say when it arrived.

    Raises `ReplayError` at the first row that breaks it, unless such rows are kept, and when no row is valid.
    """
    invalid_rows, last_ms = set(), None
    for row in _rows(path):
        try:
            # Without an arrival of its own an event arrives when it happens: by now, if that is given, or at any time.
            arrived_by_ms = _END_OF_TIME_MS if now_ms is None else now_ms
            event = parse_event(row.value, arrived_by_ms if row.arrival_ms is None else row.arrival_ms)
        except ContractError as error:
            if not keep_invalid:
                raise ReplayError(
                    f"{path}, row {row.number}: {error} Nothing was sent; --keep-invalid sends it as it is."
                ) from error
            invalid_rows.add(row.number)
        else:
            last_ms = max(event.event_time_ms, last_ms or 0)
    if last_ms is None:
        raise ReplayError(f"{path}: got no valid event; allowed: at least 1. Give a file with events.")
    return FileCheck(invalid_rows=frozenset(invalid_rows), last_ms=last_ms)


def _records(path: Path, checked: FileCheck, shift_ms: int) -> Iterator[Record]:
    """A checked file's records in order. One that has no event of its own arrives with the one before it."""
    arrival_ms = checked.last_ms + shift_ms
    for row in _rows(path):
        if row.number in checked.invalid_rows:
            yield Record(value=row.value, key=b"", arrival_ms=arrival_ms, kind=RecordKind.BROKEN)
            continue
        fields, value = json.loads(row.value), row.value
        time_ms = int(fields["event_time_ms"])
        arrival_ms = shift_ms + (time_ms if row.arrival_ms is None else row.arrival_ms)
        if shift_ms:
            value = to_json({**fields, "event_time_ms": time_ms + shift_ms})
        yield Record(value=value, key=str(fields["user_id"]).encode(), arrival_ms=arrival_ms)


def _paced(
    records: Iterator[Record], rate_per_s: float | None, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Iterator[Record]:
    """Holds each record back until it is due; a pace that was missed is caught up."""
    if rate_per_s is None:
        yield from records
        return
    start_s = clock()
    for number, record in enumerate(records):
        left_s = start_s + number / rate_per_s - clock()
        if left_s > 0:
            sleep(left_s)
        yield record


def _rows(path: Path) -> Iterator[_Row]:
    suffix = path.suffix.lower()
    if suffix in _JSON_LINES:
        return _json_rows(path)
    if suffix in _PARQUET:
        return _parquet_rows(path)
    allowed = ", ".join(sorted(_JSON_LINES | _PARQUET))
    raise ReplayError(f"{path}: got a file that ends in {suffix!r}; allowed: {allowed}. Rename or convert it.")


def _json_rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _json_row(number, line.strip())
    except OSError as error:
        raise ReplayError(f"cannot read {path}: {error.strerror}. Give a readable file of events.") from error


def _json_row(number: int, line: bytes) -> _Row:
    if _ARRIVAL.encode() not in line:
        return _Row(number=number, value=line, arrival_ms=None)
    try:
        record = json.loads(line)
    except ValueError:
        return _Row(number=number, value=line, arrival_ms=None)
    if not isinstance(record, dict) or type(record.get(_ARRIVAL)) is not int:
        return _Row(number=number, value=line, arrival_ms=None)
    arrival_ms = record.pop(_ARRIVAL)
    return _Row(number=number, value=to_json(record), arrival_ms=arrival_ms)


def _parquet_rows(path: Path) -> Iterator[_Row]:
    import pyarrow as pa  # only a Parquet file needs it
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            names = {field.name for field in FIELDS} | {_ARRIVAL}
            columns = [name for name in table.schema_arrow.names if name in names]
            number = 0
            for batch in table.iter_batches(_PARQUET_BATCH_ROWS, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield _parquet_row(number, record)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ReplayError(f"cannot read {path}: {reason}. Give a readable Parquet file of events.") from error


def _parquet_row(number: int, record: dict[str, Any]) -> _Row:
    arrival_ms = record.pop(_ARRIVAL, None)
    return _Row(number=number, value=to_json(record), arrival_ms=arrival_ms)
