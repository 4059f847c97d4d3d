"""The embedded backend: one SQLite file in WAL mode, read while it is written.

Tiles are one row each, clustered by key, their integers packed into one value, since fetching one value a row costs
a third of fetching fifteen. Every write is one upsert whose WHERE clause says which row is newer, so writers need no
lock of their own beyond SQLite's.
"""

import json
import random
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from features.backends.base import Backend, Document, Offsets, StoreUnavailableError, UserRows
from features.erasure import digest_of, user_document_key, user_of_document
from features.id_hashes import TimesById
from features.keyed_sets import (
    DECISIONS_MAX,
    Decision,
    DecisionKind,
    decision_of,
    encode_interaction,
    in_history,
    latest_seen,
)
from features.ledger import MASK_BYTES, LedgerRow, Outcome
from features.specs import KEY_FIELDS, Entity
from features.tile_rows import PackedTiles, TileBatch, retention_start_ms
from features.tiles import DAY_TILE_MS, FAMILIES, USER_CATEGORY_TILES, TileFamily
from features.user_state import HISTORY_MAX, SEEN_MAX, Interaction

BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another to commit."""
CUT_EVERY = 64
"""A set is cut to its bound once in so many rows, on average and by chance, so that no write has to count a set and
no store to remember one; reads cut exactly."""
EXPIRE_BATCH = 2_000
"""Rows removed in one transaction, so that expiry never holds up a write for long."""
_JOINED = "CAST(group_concat(packed, '') AS BLOB)"
"""`group_concat` joins bytes as they are: one value a key costs a fraction of one a tile."""
_PRAGMAS = (
    "journal_mode = WAL",
    # A commit survives the end of the process; a power cut may take the last ones with their offsets.
    "synchronous = NORMAL",
    # What SQLite is built to map at most, 2 GiB: pages of the file beyond it are copied one by one to be read.
    "mmap_size = 2147418112",
    # 32 MiB of pages a connection, and 16 MiB of log before it is copied back: a batch touches a page a user, and
    # pages that several batches touch are then read, and copied back, once.
    "cache_size = -32768",
    "wal_autocheckpoint = 4000",
)
Key = TypeVar("Key")


class SqliteBackend(Backend):
    """Rows in an SQLite file; one connection a thread. Several processes may read and write at once."""

    def __init__(self, path: str | Path, version: str | None = None) -> None:
        """Opens the file, or creates it with its parent directory."""
        super().__init__(version)
        self.path = Path(path)
        self._chance = random.Random()
        self._threads = threading.local()
        self._opening = threading.Lock()
        self._connections: list[_Connection] = []
        self._closed = False
        v = self.version
        self._seen, self._history, self._decisions = f"seen_{v}", f"history_{v}", f"decisions_{v}"
        self._offsets, self._ledger = f"offsets_{v}", f"ledger_{v}"
        self._sql_tiles = self._tiles_of(USER_CATEGORY_TILES, KEY_FIELDS[Entity.USER])
        self._sql_history = (
            f"SELECT group_concat(entry, ',') FROM (SELECT entry FROM {self._history} WHERE user_id = ? "
            f"ORDER BY event_time_ms DESC, event_id DESC LIMIT {HISTORY_MAX})"
        )
        self._sql_seen = f"SELECT json_group_object(item_id, event_time_ms) FROM {self._seen} WHERE user_id = ?"
        self._sql_decisions = (
            f"SELECT kind, target, event_time_ms, event_id, stands FROM {self._decisions} WHERE user_id = ?"
        )
        with _store_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._create_tables()

    def _tiles(self, family_name: str) -> str:
        return f"tiles_{family_name}_{self.version}"

    def _keys(self, family_name: str) -> str:
        return f"keys_{family_name}_{self.version}"

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, held against `close`: closed in mid-statement it would crash the process."""
        with _store_errors(self.path):
            own: _Connection | None = getattr(self._threads, "own", None)
            if own is None:
                own = self._threads.own = self._connect()
            elif own.inode != self.path.stat().st_ino:
                raise StoreUnavailableError(
                    f"the online store {self.path} was removed or replaced since it was opened: open it again."
                )
            with own.in_use:
                yield own.connection

    def _connect(self) -> "_Connection":
        with self._opening:
            if self._closed:
                raise StoreUnavailableError(f"the online store {self.path} was closed by this process: open it again.")
            connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            self._connections.append(_Connection(connection, threading.Lock(), self.path.stat().st_ino))
            return self._connections[-1]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _create_tables(self) -> None:
        statements = [statement for family in FAMILIES for statement in self._family_tables(family)]
        statements += [
            f"{self._history} (user_id TEXT, event_time_ms INTEGER, event_id TEXT, entry TEXT NOT NULL, "
            "PRIMARY KEY (user_id, event_time_ms, event_id)) WITHOUT ROWID",
            f"{self._seen} (user_id TEXT, item_id TEXT, event_time_ms INTEGER NOT NULL, "
            "PRIMARY KEY (user_id, item_id)) WITHOUT ROWID",
            f"{self._decisions} (user_id TEXT, kind TEXT, target TEXT, event_time_ms INTEGER NOT NULL, "
            "event_id TEXT NOT NULL, stands INTEGER NOT NULL, PRIMARY KEY (user_id, kind, target)) WITHOUT ROWID",
            f"{self._ledger} (outcome TEXT, partition INTEGER, block INTEGER, mask BLOB NOT NULL, "
            "PRIMARY KEY (outcome, partition, block)) WITHOUT ROWID",
            f"{self._offsets} (topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL, "
            "PRIMARY KEY (topic, partition)) WITHOUT ROWID",
            "documents (view TEXT, key BLOB, payload BLOB NOT NULL, event_time_ms INTEGER NOT NULL, "
            "created_ms INTEGER NOT NULL, PRIMARY KEY (view, key)) WITHOUT ROWID",
            "versions (spec_hash TEXT PRIMARY KEY, version TEXT NOT NULL) WITHOUT ROWID",
            "erased (digest TEXT PRIMARY KEY, at_ms INTEGER NOT NULL) WITHOUT ROWID",
        ]
        known = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
        if all(self._all(known, text.split(" ", 1)[0])[0][0] for text in statements):
            return
        with self._transaction() as connection:
            for statement in statements:
                connection.execute(f"CREATE TABLE IF NOT EXISTS {statement}")
            for family in FAMILIES:
                for field in _coarse_fields(family):
                    name = f"{self._keys(family.name)}_{field}"
                    connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {self._keys(family.name)} ({field})")
                if _coarse_fields(family):
                    connection.execute(self._key_trigger(family))

    def _family_tables(self, family: TileFamily) -> list[str]:
        key = ", ".join(family.key_fields)
        typed = ", ".join(f"{field} TEXT" for field in family.key_fields)
        tiles = (
            f"{self._tiles(family.name)} ({typed}, tile_ms INTEGER, tile_start_ms INTEGER, n INTEGER NOT NULL, "
            f"packed BLOB NOT NULL, PRIMARY KEY ({key}, tile_ms, tile_start_ms)) WITHOUT ROWID"
        )
        keys = f"{self._keys(family.name)} ({typed}, PRIMARY KEY ({key})) WITHOUT ROWID"
        return [tiles, keys] if _coarse_fields(family) else [tiles]

    def _key_trigger(self, family: TileFamily) -> str:
        """Keeps the family's keys with its tiles: for new tiles only, so that later rows of a tile do not pay."""
        new = ", ".join(f"new.{field}" for field in family.key_fields)
        return (
            f"CREATE TRIGGER IF NOT EXISTS new_{self._tiles(family.name)} AFTER INSERT ON {self._tiles(family.name)} "
            f"BEGIN INSERT OR IGNORE INTO {self._keys(family.name)} VALUES ({new}); END"
        )

    # Written by the tile path.

    def _write_batch(self, batch: TileBatch, offsets: Offsets, erasures: int) -> bool:
        family, newest = batch.family, batch.latest()
        fields = [*zip(*newest.keys, strict=True), *newest.numbers_TN[:, :3].T.tolist(), newest.packed]
        places = ", ".join("?" * (len(family.key_fields) + 4))
        key = ", ".join(family.key_fields)
        upsert = (
            f"INSERT INTO {self._tiles(family.name)} VALUES ({places}) ON CONFLICT ({key}, tile_ms, tile_start_ms) "
            "DO UPDATE SET n = excluded.n, packed = excluded.packed WHERE excluded.n > n"
        )
        with self._transaction() as connection:
            if _erasures(connection) != erasures:
                return False
            connection.executemany(upsert, sorted(zip(*fields, strict=True)) if newest.keys else ())
            self._write_offsets(connection, offsets)
        return True

    def _write_interactions(self, rows: Sequence[Interaction], offsets: Offsets, erasures: int) -> bool:
        seen = [(user_id, item_id, time_ms) for (user_id, item_id), time_ms in latest_seen(rows).items()]
        history = [
            (row.user_id, row.event_time_ms, row.event_id, encode_interaction(row)) for row in rows if in_history(row)
        ]
        decisions = [(row.user_id, *made) for row in rows if (made := decision_of(row)) is not None]
        with self._transaction() as connection:
            if _erasures(connection) != erasures:
                return False
            connection.executemany(
                f"INSERT INTO {self._seen} VALUES (?, ?, ?) ON CONFLICT (user_id, item_id) DO UPDATE "
                "SET event_time_ms = excluded.event_time_ms WHERE excluded.event_time_ms > event_time_ms",
                sorted(seen),
            )
            connection.executemany(f"INSERT OR IGNORE INTO {self._history} VALUES (?, ?, ?, ?)", sorted(history))
            connection.executemany(
                f"INSERT INTO {self._decisions} VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (user_id, kind, target) "
                "DO UPDATE SET event_time_ms = excluded.event_time_ms, event_id = excluded.event_id, "
                "stands = excluded.stands "
                "WHERE (excluded.event_time_ms, excluded.event_id) > (event_time_ms, event_id)",
                decisions,
            )
            for user_id in self._due([row[0] for row in seen]):
                _cut(connection, self._seen, {"user_id": user_id}, "item_id", SEEN_MAX)
            for user_id in self._due([row[0] for row in history]):
                _cut(connection, self._history, {"user_id": user_id}, "event_id", HISTORY_MAX)
            for user_id, kind in self._due([row[:2] for row in decisions]):
                _cut(connection, self._decisions, {"user_id": user_id, "kind": kind}, "event_id", DECISIONS_MAX)
            self._write_offsets(connection, offsets)
        return True

    def _due(self, written: Sequence[Key]) -> set[Key]:
        """Which of the sets written to are looked at: each row calls for it with a chance of one in `CUT_EVERY`."""
        draw = self._chance.random
        return {key for key in written if draw() * CUT_EVERY < 1.0}

    def _write_offsets(self, connection: sqlite3.Connection, offsets: Offsets) -> None:
        connection.executemany(
            f"INSERT INTO {self._offsets} VALUES (?, ?, ?) ON CONFLICT (topic, partition) DO UPDATE "
            "SET next_offset = excluded.next_offset WHERE excluded.next_offset > next_offset",
            [(topic, partition, offset) for (topic, partition), offset in offsets.items()],
        )

    def offsets(self, topic: str) -> dict[int, int]:
        return dict(self._all(f"SELECT partition, next_offset FROM {self._offsets} WHERE topic = ?", topic))

    def write_ledger(self, rows: Sequence[LedgerRow], offsets: Offsets) -> None:
        held = f"SELECT mask FROM {self._ledger} WHERE outcome = ? AND partition = ? AND block = ?"
        with self._transaction() as connection:
            for row in rows:
                found = connection.execute(held, row[:3]).fetchone()
                mask = row.mask | (int.from_bytes(found[0], "little") if found else 0)
                connection.execute(
                    f"INSERT OR REPLACE INTO {self._ledger} VALUES (?, ?, ?, ?)",
                    (*row[:3], mask.to_bytes(MASK_BYTES, "little")),
                )
            self._write_offsets(connection, offsets)

    def ledger(self) -> list[LedgerRow]:
        held = self._all(f"SELECT outcome, partition, block, mask FROM {self._ledger}")
        return [
            LedgerRow(Outcome(outcome), partition, block, int.from_bytes(mask, "little"))
            for outcome, partition, block, mask in held
        ]

    def expire(self, now_ms: int) -> int:
        removed = 0
        for family in FAMILIES:
            key = (*family.key_fields, "tile_ms", "tile_start_ms")
            chosen = (
                f"SELECT {', '.join(key)} FROM {self._tiles(family.name)} "
                f"WHERE tile_start_ms < CASE tile_ms WHEN {DAY_TILE_MS} THEN ? ELSE ? END"
            )
            starts = retention_start_ms(DAY_TILE_MS, now_ms), retention_start_ms(family.tile_ms, now_ms)
            expired = self._all(chosen, *starts)
            same = " AND ".join(f"{field} = ?" for field in key)
            for first in range(0, len(expired), EXPIRE_BATCH):
                batch = expired[first : first + EXPIRE_BATCH]
                with self._transaction() as connection:
                    done = connection.executemany(f"DELETE FROM {self._tiles(family.name)} WHERE {same}", batch)
                    removed += done.rowcount
        return removed

    # Read.

    def _user_rows(self, user_id: str) -> UserRows:
        with self._connected() as connection:
            execute, key = connection.execute, (user_id,)
            return UserRows(
                tiles=[PackedTiles((*key, *row[:-1]), row[-1]) for row in execute(self._sql_tiles, key)],
                history=execute(self._sql_history, key).fetchone()[0] or "",
                seen=TimesById(execute(self._sql_seen, key).fetchone()[0]),
                decisions=[
                    Decision(DecisionKind(kind), target, time_ms, event_id, bool(stands))
                    for kind, target, time_ms, event_id, stands in execute(self._sql_decisions, key)
                ],
            )

    def _entity_tiles(
        self, family: TileFamily, keys_of: Mapping[Entity, Sequence[tuple[str, ...]]]
    ) -> list[PackedTiles]:
        with self._connected() as connection:
            execute = connection.execute
            if _coarse_fields(family):
                query = self._tiles_by_keys(family, [KEY_FIELDS[entity][0] for entity in keys_of])
                values = [json.dumps([value for (value,) in keys]) for keys in keys_of.values()]
                return [PackedTiles(row[:-1], row[-1]) for row in execute(query, values) if row[-1]]
            parts: dict[tuple[str, ...], PackedTiles] = {}
            for entity, keys in keys_of.items():
                query = self._tiles_of(family, KEY_FIELDS[entity])
                found = [PackedTiles((*key, *row[:-1]), row[-1]) for key in keys for row in execute(query, key)]
                parts |= {part.key: part for part in found}
            return list(parts.values())

    def _tiles_of(self, family: TileFamily, asked: Sequence[str]) -> str:
        """Selects the tiles of one entity whose key begins the family's: one row a key, what was not given of it, then
        its packed rows joined.
        """
        wanted, rest = " AND ".join(f"{field} = ?" for field in asked), family.key_fields[len(asked) :]
        # What is selected and what is grouped by costs something for every tile, so nothing that is known already; but
        # by something, so that an unknown key has no row.
        grouped_by = ", ".join(rest or family.key_fields[-1:])
        selected = ", ".join([*rest, _JOINED])
        return f"SELECT {selected} FROM {self._tiles(family.name)} WHERE {wanted} GROUP BY {grouped_by}"

    def _tiles_by_keys(self, family: TileFamily, asked: Sequence[str]) -> str:
        """The same of many entities, found by these fields of the family's key: a JSON list of values each."""
        fields = ", ".join(f"keys.{field}" for field in family.key_fields)
        own = " AND ".join(f"tiles.{field} = keys.{field}" for field in family.key_fields)
        joined = f"SELECT {_JOINED} FROM {self._tiles(family.name)} AS tiles WHERE {own}"
        known = self._keys(family.name)
        # The UNION leaves each key once.
        found = " UNION ".join(
            f"SELECT {fields} FROM json_each(?) AS asked CROSS JOIN {known} AS keys ON keys.{field} = asked.value"
            for field in asked
        )
        return f"SELECT {fields}, ({joined}) FROM ({found}) AS keys"

    def _family_tiles(self, family: TileFamily, since_ms: int) -> list[PackedTiles]:
        fields = ", ".join(family.key_fields)
        rows = self._all(
            f"SELECT {fields}, {_JOINED} FROM {self._tiles(family.name)} WHERE tile_start_ms >= ? GROUP BY {fields}",
            since_ms,
        )
        return [PackedTiles(row[:-1], row[-1]) for row in rows]

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._connected() as connection:
            return connection.execute(query, values).fetchall()

    # Ordinary Feast views.

    def _write_documents(self, view: str, documents: Sequence[Document], erasures: int) -> bool:
        with self._transaction() as connection:
            if _erasures(connection) != erasures:
                return False
            connection.executemany(
                "INSERT INTO documents VALUES (?, ?, ?, ?, ?) ON CONFLICT (view, key) DO UPDATE "
                "SET payload = excluded.payload, event_time_ms = excluded.event_time_ms, "
                "created_ms = excluded.created_ms "
                "WHERE (excluded.event_time_ms, excluded.created_ms) >= (event_time_ms, created_ms)",
                [(view, *document) for document in documents],
            )
        return True

    def read_documents(self, view: str, keys: Sequence[bytes]) -> list[Document | None]:
        one = "SELECT key, payload, event_time_ms, created_ms FROM documents WHERE view = ? AND key = ?"
        with self._connected() as connection:
            found = [connection.execute(one, (view, key)).fetchone() for key in keys]
        return [Document(*row) if row else None for row in found]

    def drop_documents(self, view: str) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM documents WHERE view = ?", (view,))

    def drop_tiles(self) -> None:
        tables = [self._seen, self._history, self._decisions, self._ledger, self._offsets]
        for family in FAMILIES:
            tables += [self._tiles(family.name), *([self._keys(family.name)] if _coarse_fields(family) else [])]
        with self._transaction() as connection:
            for table in tables:
                connection.execute(f"DELETE FROM {table}")

    # Erasure, of which all versions are one.

    def erase_user(self, user_id: str, at_ms: int) -> int:
        with self._transaction() as connection:
            _refuse(connection, digest_of(user_id), at_ms)
            removed = [
                connection.execute(f"DELETE FROM {table} WHERE user_id = ?", (user_id,)).rowcount
                for table in _tables_by_user(connection)
            ]
            documents = "DELETE FROM documents WHERE key = ?"
            removed.append(connection.execute(documents, (user_document_key(user_id),)).rowcount)
        return sum(removed)

    def refuse_user(self, digest: str, at_ms: int) -> None:
        with self._transaction() as connection:
            _refuse(connection, digest, at_ms)

    def erasures(self) -> dict[str, int]:
        return dict(self._all("SELECT digest, at_ms FROM erased"))

    def user_ids(self) -> Iterator[str]:
        with self._connected() as connection:
            tables = _tables_by_user(connection)
        found = {user_id for table in tables for (user_id,) in self._all(f"SELECT DISTINCT user_id FROM {table}")}
        keys = (key for (key,) in self._all("SELECT key FROM documents"))
        found |= {user_id for key in keys if (user_id := user_of_document(key)) is not None}
        return iter(found)

    def compact(self) -> None:
        with self._connected() as connection:
            connection.execute("VACUUM")
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreUnavailableError(f"the online store {self.path} is read all the time: try to compact it again.")

    def version_for(self, spec_hash: str) -> str:
        found = self._all("SELECT version FROM versions WHERE spec_hash = ?", spec_hash)
        return str(found[0][0]) if found else spec_hash

    def switch(self, spec_hash: str, version: str) -> None:
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO versions VALUES (?, ?)", (spec_hash, version))

    def close(self) -> None:
        with self._opening:
            self._closed = True
        for opened in self._connections:
            with opened.in_use:
                opened.connection.close()


def _erasures(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM erased").fetchone()[0])


def _refuse(connection: sqlite3.Connection, digest: str, at_ms: int) -> None:
    connection.execute("INSERT OR IGNORE INTO erased VALUES (?, ?)", (digest, at_ms))


def _tables_by_user(connection: sqlite3.Connection) -> list[str]:
    """The tables of all versions whose rows are one user's."""
    found = connection.execute(
        "SELECT tables.name FROM sqlite_master AS tables JOIN pragma_table_info(tables.name) AS columns "
        "WHERE tables.type = 'table' AND columns.name = 'user_id'"
    )
    return [name for (name,) in found]


class _Connection(NamedTuple):
    connection: sqlite3.Connection
    in_use: threading.Lock
    inode: int
    """The file that it was opened on: SQLite would go on with it after it has lost its name."""


def _coarse_fields(family: TileFamily) -> list[str]:
    """The first key fields of entities that the family's own order cannot find: they need an index."""
    firsts = {KEY_FIELDS[entity][0] for entity in family.entities}
    return sorted(firsts - {family.key_fields[0]})


def _cut(connection: sqlite3.Connection, table: str, key: dict[str, str], tie: str, bound: int) -> None:
    """Keeps the newest `bound` rows of one set, by (event_time_ms, tie), once it has outgrown the bound."""
    same = " AND ".join(f"{field} = ?" for field in key)
    values = tuple(key.values())
    (size,) = connection.execute(f"SELECT count(*) FROM {table} WHERE {same}", values).fetchone()
    if size <= bound:
        return
    connection.execute(
        f"DELETE FROM {table} WHERE {same} AND (event_time_ms, {tie}) < (SELECT event_time_ms, {tie} FROM {table} "
        f"WHERE {same} ORDER BY event_time_ms DESC, {tie} DESC LIMIT 1 OFFSET {bound - 1})",
        (*values, *values),
    )


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a mistake of ours, not an outage
    except (sqlite3.DatabaseError, OSError) as error:
        raise StoreUnavailableError(
            f"the online store {path} does not answer: {error}. Check that its directory is there, writable and not "
            "full, and that no other program holds it."
        ) from error
