"""The backend for production: Redis 6.2 or later, one server or a primary with replicas (not a cluster).

A user's tiles are one hash, an item's another, so a read is one round trip. Every write is one script
(`features.backends.redis_scripts`). Keys carry the version of the specs:

    millrace:VERSION:tiles:FAMILY:FIRST-KEY   hash   "OTHER-KEYS TILE-MS START-MS" -> packed row
    millrace:VERSION:keys:FIELD:VALUE         set    the family's first keys under a coarser entity
    millrace:VERSION:history|seen:USER        sorted set by event time; "EVENT-ID ENTRY" or the item
    millrace:VERSION:hidden|followed:USER     hash   target -> "EVENT-TIME EVENT-ID STANDS"
    millrace:VERSION:ledger:OUTCOME:PARTITION:BLOCK   the mask
    millrace:VERSION:offsets                  hash   "TOPIC PARTITION" -> next offset
    millrace:documents:VIEW                   hash   key -> "EVENT-TIME CREATED PAYLOAD"
    millrace:erased                           hash   digest of an erased user -> since when
    millrace:versions                         hash   hash of the specs -> VERSION that its readers use

A space separates parts: no identifier holds one (`features.events.ID_PATTERN`), and it sorts below all that they hold.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.backends.base import Backend, BackendError, Document, Offsets, StoreUnavailableError, UserRows
from features.backends.redis_scripts import EXPIRE_HASH, WRITE_DOCUMENTS, WRITE_INTERACTIONS, WRITE_LEDGER, WRITE_TILES
from features.erasure import digest_of, user_document_key, user_of_document
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
from features.tiles import DAY_TILE_MS, FAMILIES, TileFamily
from features.user_state import HISTORY_MAX, SEEN_MAX, Interaction

CUT_SLACK = 64
"""A set of decisions is cut when it exceeds its bound by this much; reads cut exactly."""
BATCH_KEYS = 500
"""Keys asked for in one round trip by reads of many entities."""
SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0

_VERSIONS_KEY = "millrace:versions"
_ERASED_KEY = "millrace:erased"
_OF_USER = re.compile(r"millrace:[A-Za-z0-9]+:(?:tiles:user_category|history|seen|hidden|followed):(.*)").fullmatch
"""A key of any version that is one user's own."""
_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.OutOfMemoryError, OSError)


class RedisBackend(Backend):
    """Rows in one Redis database. Threads and processes may share it."""

    def __init__(self, url: str, version: str | None = None) -> None:
        """Connects to a `redis://HOST:PORT/DB`, `rediss://` or `unix://PATH?db=DB` URL."""
        super().__init__(version)
        try:
            self._redis = redis.Redis.from_url(
                url,
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError as error:
            raise BackendError(f"online store: got {url!r}; allowed: redis://HOST:PORT/DB ({error}).") from error
        self.url = url
        self._prefix = f"millrace:{self.version}:"
        self._offsets_key = f"{self._prefix}offsets"
        script = self._redis.register_script
        self._write_tiles, self._merge_interactions = script(WRITE_TILES), script(WRITE_INTERACTIONS)
        self._write_ledger = script(WRITE_LEDGER)
        self._expire_hash, self._merge_documents = script(EXPIRE_HASH), script(WRITE_DOCUMENTS)
        with self._store_errors():
            self._redis.ping()

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except _AWAY as error:
            raise StoreUnavailableError(
                f"the online store {self._redis.connection_pool!r} does not answer: {error}. Check that Redis runs "
                "there and accepts writes."
            ) from error

    def _tiles_key(self, family_name: str, first: str) -> str:
        return f"{self._prefix}tiles:{family_name}:{first}"

    def _user_key(self, name: str, user_id: str) -> str:
        return f"{self._prefix}{name}:{user_id}"

    # Written by the tile path.

    def _write_batch(self, batch: TileBatch, offsets: Offsets, erasures: int) -> bool:
        family, newest = batch.family, batch.latest()
        index = {
            (f"{self._prefix}keys:{field}:{key[place]}", key[0])
            for place, field in _coarse_fields(family)
            for key in newest.keys
        }
        header = json.dumps({"offsets": _offset_pairs(offsets), "index": sorted(index), "erasures": erasures})
        arguments: list[str | bytes] = [header]
        prefix = self._tiles_key(family.name, "")
        sizes, starts = newest.numbers_TN[:, :2].T.tolist()
        for key, tile_ms, start_ms, packed in zip(newest.keys, sizes, starts, newest.packed, strict=True):
            arguments += (prefix + key[0], f"{' '.join(key[1:])} {tile_ms} {start_ms}", packed)
        with self._store_errors():
            return bool(self._write_tiles([self._offsets_key, _ERASED_KEY], arguments))

    def _write_interactions(self, rows: Sequence[Interaction], offsets: Offsets, erasures: int) -> bool:
        header = {
            "erasures": erasures,
            "offsets": _offset_pairs(offsets),
            "seen": [
                (self._user_key("seen", user_id), time_ms, item_id)
                for (user_id, item_id), time_ms in latest_seen(rows).items()
            ],
            "history": [
                (
                    self._user_key("history", row.user_id),
                    row.event_time_ms,
                    f"{row.event_id} {encode_interaction(row)}",
                )
                for row in rows
                if in_history(row)
            ],
            "decisions": [
                (self._user_key(made.kind, row.user_id), *made[1:4], int(made.stands))
                for row in rows
                if (made := decision_of(row)) is not None
            ],
            "seen_max": SEEN_MAX,
            "history_max": HISTORY_MAX,
            "decisions_max": DECISIONS_MAX,
            "slack": CUT_SLACK,
        }
        with self._store_errors():
            return bool(self._merge_interactions([self._offsets_key, _ERASED_KEY], [json.dumps(header)]))

    def offsets(self, topic: str) -> dict[int, int]:
        with self._store_errors():
            stored: dict[bytes, bytes] = self._redis.hgetall(self._offsets_key)  # type: ignore[assignment]
        named = {tuple(field.decode().split(" ")): int(offset) for field, offset in stored.items()}
        return {int(partition): offset for (name, partition), offset in named.items() if name == topic}

    def write_ledger(self, rows: Sequence[LedgerRow], offsets: Offsets) -> None:
        arguments: list[str | bytes] = [json.dumps({"offsets": _offset_pairs(offsets)})]
        for row in rows:
            key = f"{self._prefix}ledger:{row.outcome}:{row.partition}:{row.block}"
            arguments += [key, row.mask.to_bytes(MASK_BYTES, "little")]
        with self._store_errors():
            self._write_ledger([self._offsets_key, f"{self._prefix}ledger-added"], arguments)

    def ledger(self) -> list[LedgerRow]:
        with self._store_errors():
            keys = list(self._redis.scan_iter(match=f"{self._prefix}ledger:*", count=BATCH_KEYS))
            masks: list[bytes] = self._redis.mget(keys) if keys else []  # type: ignore[assignment]
        rows = []
        for key, mask in zip(keys, masks, strict=True):
            outcome, partition, block = key.decode().removeprefix(f"{self._prefix}ledger:").split(":")
            rows.append(LedgerRow(Outcome(outcome), int(partition), int(block), int.from_bytes(mask, "little")))
        return rows

    def expire(self, now_ms: int) -> int:
        removed = 0
        for family in FAMILIES:
            kept_from = [retention_start_ms(tile_ms, now_ms) for tile_ms in (DAY_TILE_MS, family.tile_ms)]
            with self._store_errors():
                for key in self._redis.scan_iter(match=self._tiles_key(family.name, "*"), count=BATCH_KEYS):
                    removed += self._expire_hash([key], [DAY_TILE_MS, *kept_from])
        return removed

    # Read.

    def _user_rows(self, user_id: str) -> UserRows:
        asked = self._redis.pipeline(transaction=False)
        asked.hgetall(self._tiles_key("user_category", user_id))
        asked.zrevrange(self._user_key("history", user_id), 0, HISTORY_MAX - 1)
        asked.zrevrange(self._user_key("seen", user_id), 0, SEEN_MAX - 1, withscores=True, score_cast_func=int)
        for kind in DecisionKind:
            asked.hgetall(self._user_key(kind, user_id))
        with self._store_errors():
            tiles, history, seen, *decisions = asked.execute()
        return UserRows(
            tiles=_parts(user_id, tiles),
            history=b",".join([member.split(b" ", 1)[1] for member in history]).decode(),
            seen={item_id.decode(): time_ms for item_id, time_ms in seen},
            decisions=[
                _decision(kind, target.decode(), text.decode())
                for kind, of_kind in zip(DecisionKind, decisions, strict=True)
                for target, text in of_kind.items()
            ],
        )

    def _entity_tiles(
        self, family: TileFamily, keys_of: Mapping[Entity, Sequence[tuple[str, ...]]]
    ) -> list[PackedTiles]:
        firsts: dict[str, None] = {}
        with self._store_errors():
            for entity, keys in keys_of.items():
                field, values = KEY_FIELDS[entity][0], [key[0] for key in keys]
                if field != family.key_fields[0]:
                    found = self._redis.pipeline(transaction=False)
                    for value in values:
                        found.smembers(f"{self._prefix}keys:{field}:{value}")
                    values = sorted({member.decode() for members in found.execute() for member in members})
                firsts |= dict.fromkeys(values)
        return list(self._hashes(self._tiles_key(family.name, first) for first in firsts))

    def _family_tiles(self, family: TileFamily, since_ms: int) -> list[PackedTiles]:
        with self._store_errors():
            names = set(self._redis.scan_iter(match=self._tiles_key(family.name, "*"), count=BATCH_KEYS))
        start_8 = slice(8, 16)
        return [
            row
            for row in self._hashes(name.decode() for name in names)
            if int.from_bytes(row.packed[start_8], "little") >= since_ms
        ]

    def _hashes(self, names: Iterable[str]) -> Iterator[PackedTiles]:
        """All the rows of these hashes of tiles."""
        remaining = list(names)
        for first in range(0, len(remaining), BATCH_KEYS):
            batch = remaining[first : first + BATCH_KEYS]
            asked = self._redis.pipeline(transaction=False)
            for name in batch:
                asked.hgetall(name)
            with self._store_errors():
                found = asked.execute()
            for name, stored in zip(batch, found, strict=True):
                first_key = name.removeprefix(self._prefix).split(":", 2)[2]
                yield from _parts(first_key, stored)

    # Ordinary Feast views.

    def _write_documents(self, view: str, documents: Sequence[Document], erasures: int) -> bool:
        arguments: list[Any] = [json.dumps({"erasures": erasures})]
        for document in documents:
            arguments += [document.key, document.event_time_ms, document.created_ms, document.payload]
        with self._store_errors():
            return bool(self._merge_documents([_documents_key(view), _ERASED_KEY], arguments))

    def read_documents(self, view: str, keys: Sequence[bytes]) -> list[Document | None]:
        if not keys:
            return []
        with self._store_errors():
            found: list[bytes | None] = self._redis.hmget(_documents_key(view), list(keys))  # type: ignore[assignment]
        return [None if text is None else _document(key, text) for key, text in zip(keys, found, strict=True)]

    def drop_documents(self, view: str) -> None:
        with self._store_errors():
            self._redis.unlink(_documents_key(view))

    def drop_tiles(self) -> None:
        with self._store_errors():
            names = list(self._redis.scan_iter(match=f"{self._prefix}*", count=BATCH_KEYS))
            for first in range(0, len(names), BATCH_KEYS):
                self._redis.unlink(*names[first : first + BATCH_KEYS])

    # Erasure, of which all versions are one.

    def erase_user(self, user_id: str, at_ms: int) -> int:
        self.refuse_user(digest_of(user_id), at_ms)  # first: a write that does not know of it is refused from here on
        with self._store_errors():
            removed = 0
            for key in self._redis.scan_iter(match=f"millrace:*:{user_id}", count=BATCH_KEYS):
                found = _OF_USER(key.decode())
                if found is not None and found[1] == user_id:
                    removed += int(self._redis.unlink(key))  # type: ignore[arg-type]
            for view in self._redis.scan_iter(match=_documents_key("*"), count=BATCH_KEYS):
                removed += int(self._redis.hdel(view, user_document_key(user_id)))  # type: ignore[arg-type]
        return removed

    def refuse_user(self, digest: str, at_ms: int) -> None:
        with self._store_errors():
            self._redis.hsetnx(_ERASED_KEY, digest, str(at_ms))

    def erasures(self) -> dict[str, int]:
        with self._store_errors():
            found: dict[bytes, bytes] = self._redis.hgetall(_ERASED_KEY)  # type: ignore[assignment]
        return {digest.decode(): int(at_ms) for digest, at_ms in found.items()}

    def user_ids(self) -> Iterator[str]:
        found: set[str] = set()
        with self._store_errors():
            for key in self._redis.scan_iter(match="millrace:*", count=BATCH_KEYS):
                if (own := _OF_USER(key.decode())) is not None:
                    found.add(own[1])
            for view in self._redis.scan_iter(match=_documents_key("*"), count=BATCH_KEYS):
                for field, _ in self._redis.hscan_iter(view, count=BATCH_KEYS):
                    if (user_id := user_of_document(field)) is not None:
                        found.add(user_id)
        return iter(found)

    def compact(self) -> None:
        """Redis frees the memory itself; an append-only file is rewritten, and a snapshot replaced, as it is set up."""

    def version_for(self, spec_hash: str) -> str:
        with self._store_errors():
            found: bytes | None = self._redis.hget(_VERSIONS_KEY, spec_hash)  # type: ignore[assignment]
        return spec_hash if found is None else found.decode()

    def switch(self, spec_hash: str, version: str) -> None:
        with self._store_errors():
            self._redis.hset(_VERSIONS_KEY, spec_hash, version)

    def close(self) -> None:
        self._redis.close()


def _coarse_fields(family: TileFamily) -> list[tuple[int, str]]:
    """Place and name of the key fields of entities that are not found by the family's first key."""
    firsts = {KEY_FIELDS[entity][0] for entity in family.entities}
    return [(place, field) for place, field in enumerate(family.key_fields) if place and field in firsts]


def _parts(first_key: str, stored: Mapping[bytes, bytes]) -> list[PackedTiles]:
    """The tiles of one hash."""
    return [PackedTiles((first_key, *field.decode().split(" ")[:-2]), packed) for field, packed in stored.items()]


def _offset_pairs(offsets: Offsets) -> list[tuple[str, int]]:
    return [(f"{topic} {partition}", offset) for (topic, partition), offset in offsets.items()]


def _decision(kind: DecisionKind, target: str, text: str) -> Decision:
    time_ms, event_id, stands = text.split(" ")
    return Decision(kind, target, int(time_ms), event_id, stands == "1")


def _document(key: bytes, text: bytes) -> Document:
    event_time_ms, created_ms, payload = text.split(b" ", 2)
    return Document(key, payload, int(event_time_ms), int(created_ms))


def _documents_key(view: str) -> str:
    return f"millrace:documents:{view}"
