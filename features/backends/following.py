"""A backend that follows the store's own word on which version of the features to use.

A long-lived reader so comes over to a version that was rebuilt beside the one it reads, with no restart. Each read
and each write is done by one pinned backend, so none mixes two versions.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from features import specs
from features.backends.base import Backend, Document, Offsets, UserRows
from features.ledger import LedgerRow
from features.specs import Entity
from features.tile_rows import PackedTiles, TileBatch
from features.tiles import TileFamily
from features.user_state import Interaction

RECHECK_S = 1.0
"""How long a reader may go on with the version that was current before: the most that a switch takes."""


class FollowingBackend(Backend):
    """Rows of whatever version the store names for this code's specs, looked up again at most once in `RECHECK_S`.

    `version` is the one that the latest call used. The backends of earlier versions stay open, since another thread
    may still be reading from one.
    """

    def __init__(
        self, open_pinned: Callable[[str], Backend], monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`open_pinned` opens the store at one version."""
        super().__init__(specs.version())
        self._spec_hash = self.version
        self._open_pinned = open_pinned
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._opened = {self.version: open_pinned(self.version)}
        self._current = self._opened[self.version]
        self._recheck_at_s = float("-inf")
        self._pinned()

    def _pinned(self) -> Backend:
        """The backend of the version in use now."""
        now_s = self._monotonic_s()
        if now_s >= self._recheck_at_s:
            with self._lock:
                if now_s >= self._recheck_at_s:
                    self._follow()
                    self._recheck_at_s = now_s + RECHECK_S
        return self._current

    def _follow(self) -> None:
        version = self._current.version_for(self._spec_hash)
        if version not in self._opened:
            self._opened[version] = self._open_pinned(version)
        self._current = self._opened[version]
        self.version = version

    # Written by the tile path.

    def _write_batch(self, batch: TileBatch, offsets: Offsets, erasures: int) -> bool:
        return self._pinned()._write_batch(batch, offsets, erasures)

    def _write_interactions(self, rows: Sequence[Interaction], offsets: Offsets, erasures: int) -> bool:
        return self._pinned()._write_interactions(rows, offsets, erasures)

    def offsets(self, topic: str) -> dict[int, int]:
        return self._pinned().offsets(topic)

    def write_ledger(self, rows: Sequence[LedgerRow], offsets: Offsets) -> None:
        self._pinned().write_ledger(rows, offsets)

    def ledger(self) -> list[LedgerRow]:
        return self._pinned().ledger()

    def expire(self, now_ms: int) -> int:
        return self._pinned().expire(now_ms)

    # Read: each public read of `Backend` asks for stored rows once.

    def _user_rows(self, user_id: str) -> UserRows:
        return self._pinned()._user_rows(user_id)

    def _entity_tiles(
        self, family: TileFamily, keys_of: Mapping[Entity, Sequence[tuple[str, ...]]]
    ) -> list[PackedTiles]:
        return self._pinned()._entity_tiles(family, keys_of)

    def _family_tiles(self, family: TileFamily, since_ms: int) -> list[PackedTiles]:
        return self._pinned()._family_tiles(family, since_ms)

    # Ordinary Feast views, which all versions share.

    def _write_documents(self, view: str, documents: Sequence[Document], erasures: int) -> bool:
        return self._current._write_documents(view, documents, erasures)

    def read_documents(self, view: str, keys: Sequence[bytes]) -> list[Document | None]:
        return self._current.read_documents(view, keys)

    def drop_documents(self, view: str) -> None:
        self._current.drop_documents(view)

    def drop_tiles(self) -> None:
        self._pinned().drop_tiles()

    # Erasure, of which all versions are one.

    def erase_user(self, user_id: str, at_ms: int) -> int:
        return self._current.erase_user(user_id, at_ms)

    def refuse_user(self, digest: str, at_ms: int) -> None:
        self._current.refuse_user(digest, at_ms)

    def erasures(self) -> dict[str, int]:
        return self._current.erasures()

    def user_ids(self) -> Iterator[str]:
        return self._current.user_ids()

    def compact(self) -> None:
        self._current.compact()

    # Which version is read.

    def version_for(self, spec_hash: str) -> str:
        return self._current.version_for(spec_hash)

    def switch(self, spec_hash: str, version: str) -> None:
        self._current.switch(spec_hash, version)

    def close(self) -> None:
        for backend in self._opened.values():
            backend.close()
