"""The last day's requests on the local disk, by id and by user: what `Explain`, `replay-request` and `why` read.

One SQLite file that every server process of the machine writes and reads. It is a cache of what Kafka has for ever:
whatever cannot be kept is counted and given up, and a file that is damaged is set aside for a new one.
"""

import fcntl
import logging
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

from features.names import MS_PER_DAY, MS_PER_MINUTE
from features.slates import SlateRecord, parse_slate
from models.refusal import RefusalError

_log = logging.getLogger(__name__)

FILE = "requests.db"
FORMAT = 1
KEEP_MS = MS_PER_DAY
MAX_BYTES = 1024**3
"""Size at which the oldest requests go before their day is over: some 45,000 requests of 50 items."""
BUSY_S = 2.0
"""How long another process may be writing."""
PRUNE_EVERY_MS = 10 * MS_PER_MINUTE
_PRUNE_SHARE = 20
"""Prunes whenever so small a part of `max_bytes` has been written."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
  request_id TEXT NOT NULL UNIQUE, user_id TEXT NOT NULL, served_at_ms INTEGER NOT NULL,
  shown BLOB NOT NULL, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_user ON requests (user_id, served_at_ms);
CREATE INDEX IF NOT EXISTS by_time ON requests (served_at_ms);
"""


class RequestLogError(RefusalError):
    """The log cannot be read or written; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class LoggedRequest:
    """A record on its way into the log: `value` is `record` as JSON."""

    record: SlateRecord
    value: bytes

    def row(self) -> tuple[str, str, int, bytes, bytes]:
        """The columns."""
        record = self.record
        shown = struct.pack(f"<{len(record.items)}I", *(zlib.crc32(item.item_id.encode()) for item in record.items))
        return record.request_id, record.user_id, record.served_at_ms, shown, isal_zlib.compress(self.value)


class RequestLogWriter:
    """Writes and prunes. Owned by one thread; several processes may write to one directory."""

    def __init__(
        self,
        directory: Path,
        clock_ms: Callable[[], int],
        *,
        keep_ms: int = KEEP_MS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._file = directory / FILE
        self._clock_ms = clock_ms
        self._keep_ms = keep_ms
        self._max_bytes = max_bytes
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._unpruned_bytes = 0
        self._pruned_ms = 0

    def write(self, requests: Sequence[LoggedRequest]) -> None:
        """Adds the requests, all or none; one that is there already stays. Raises `RequestLogError`."""
        rows = [request.row() for request in requests]
        try:
            self._insert(rows)
        except (sqlite3.OperationalError, OSError) as error:  # locked for too long, the disk is full, no permission
            raise RequestLogError(f"the request log {self._file} cannot be written: {error}.") from error
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
            raise RequestLogError(f"the request log {self._file} was damaged ({error}) and begins anew.") from error
        self._unpruned_bytes += sum(len(row[-1]) for row in rows)
        self.prune_when_due()

    def prune_when_due(self) -> None:
        """Prunes if much has been written since the last time, or long ago. Raises `RequestLogError`."""
        written = self._unpruned_bytes * _PRUNE_SHARE >= self._max_bytes
        if written or self._clock_ms() - self._pruned_ms >= PRUNE_EVERY_MS:
            self.prune()

    def prune(self) -> None:
        """Removes what is older than the time kept, and the oldest beyond the size. Raises `RequestLogError`."""
        try:
            with self._open() as connection:
                connection.execute("DELETE FROM requests WHERE served_at_ms < ?", (self._clock_ms() - self._keep_ms,))
            while (excess := self._bytes() - self._max_bytes) > 0 and self._remove_oldest(excess):
                continue
        except sqlite3.Error as error:
            raise RequestLogError(f"the request log {self._file} cannot be pruned: {error}.") from error
        self._unpruned_bytes, self._pruned_ms = 0, self._clock_ms()

    def close(self) -> None:
        """Lets go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _insert(self, rows: Sequence[tuple[str, str, int, bytes, bytes]]) -> None:
        with self._open() as connection:
            connection.executemany("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        """The connection; a new one when the file is another than before, which a process had to set aside."""
        inode = self._file.stat().st_ino if self._file.exists() else None
        if self._connection is not None and inode == self._inode:
            return self._connection
        self.close()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not self._file.exists():
                self._remove_beside()
            connection = sqlite3.connect(self._file, timeout=BUSY_S)
            self._inode = self._file.stat().st_ino
            try:
                _prepare(connection)
            except sqlite3.Error:
                connection.close()
                raise
        self._connection = connection
        return connection

    def _set_aside(self, why: Exception) -> None:
        """Renames the damaged file, unless another process has done so."""
        self.close()
        with self._alone():
            if self._file.exists() and self._file.stat().st_ino == self._inode:
                _log.error("request log %s is damaged (%s); it is kept as %s.broken", self._file, why, FILE)
                self._file.replace(self._file.with_name(f"{FILE}.broken"))
                self._remove_beside()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other processes from opening or setting aside the file meanwhile."""
        with self._file.with_name(f"{FILE}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove_beside(self) -> None:
        """Removes what SQLite keeps beside a file that is gone: the next one must not be read with it."""
        for suffix in ("-wal", "-shm"):
            self._file.with_name(FILE + suffix).unlink(missing_ok=True)

    def _bytes(self) -> int:
        """What the rows take; the file keeps free pages for those to come."""
        with self._open() as connection:
            pages, free, size = (
                int(connection.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * size

    def _remove_oldest(self, excess_bytes: int) -> int:
        """Removes the oldest tenth; returns how many rows went."""
        _log.info("the request log is %d bytes too large: the oldest requests go", excess_bytes)
        with self._open() as connection:
            rows = int(connection.execute("SELECT count(*) FROM requests").fetchone()[0])
            oldest = "SELECT rowid FROM requests ORDER BY served_at_ms LIMIT ?"
            return connection.execute(f"DELETE FROM requests WHERE rowid IN ({oldest})", (-(-rows // 10),)).rowcount


class RequestLogReader:
    """Looks requests up. Opens the file for each call, so it may be used from any thread and process."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE

    def find(self, request_id: str) -> SlateRecord | None:
        """The request's record; None where the log has none. Raises `RequestLogError` when the log cannot be read."""
        with self._rows("SELECT record FROM requests WHERE request_id = ?", request_id) as rows:
            return next((_record(blob) for (blob,) in rows), None)

    def has(self, request_id: str) -> bool:
        """Whether the log has the request. Raises `RequestLogError` when it cannot be read."""
        with self._rows("SELECT 1 FROM requests WHERE request_id = ?", request_id) as rows:
            return next(rows, None) is not None

    def newest(self, user_id: str) -> SlateRecord | None:
        """The user's newest request; None where the log has none. Raises `RequestLogError`."""
        newest = "SELECT record FROM requests WHERE user_id = ? ORDER BY served_at_ms DESC, rowid DESC LIMIT 1"
        with self._rows(newest, user_id) as rows:
            return next((_record(blob) for (blob,) in rows), None)

    def newest_showing(self, user_id: str, item_id: str) -> SlateRecord | None:
        """The user's newest request whose slate has the item; None where none has. Raises `RequestLogError`."""
        wanted = zlib.crc32(item_id.encode())
        asked = "SELECT shown, record FROM requests WHERE user_id = ? ORDER BY served_at_ms DESC, rowid DESC"
        with self._rows(asked, user_id) as rows:
            for shown, blob in rows:
                if wanted in struct.unpack(f"<{len(shown) // 4}I", shown):
                    record = _record(blob)
                    if any(item.item_id == item_id for item in record.items):
                        return record
        return None

    @contextmanager
    def _rows(self, query: str, *values: str) -> Iterator[Iterator[tuple[bytes, ...]]]:
        if not self._file.exists():
            yield iter(())
            return
        try:
            with closing(
                sqlite3.connect(f"{self._file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
            ) as found:
                yield iter(found.execute(query, values))
        except (sqlite3.Error, zlib.error, ValueError) as error:
            raise RequestLogError(f"the request log {self._file} cannot be read: {error}; ask again later.") from error


def _record(blob: bytes) -> SlateRecord:
    return parse_slate(zlib.decompress(blob))


def _prepare(connection: sqlite3.Connection) -> None:
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found not in (0, FORMAT):
        raise sqlite3.DatabaseError(f"got format {found}, this code writes {FORMAT}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {16 * 1024**2}")
    connection.executescript(_SCHEMA)
    connection.execute(f"PRAGMA user_version = {FORMAT}")
