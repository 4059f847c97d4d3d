"""The interface of the online store's backends: storage is theirs, finalising is shared.

Shapes: G entities, F features of an entity in the order of `features.specs.features_of`, T tile rows, P parts of them,
A keys asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np

from features import specs
from features.algebra import Finaliser, Float64s, Int64s, TileRows
from features.erasure import digest_of, user_of_document
from features.keyed_sets import Decision, DecisionKind, StoredHistory, latest, newest_seen, standing
from features.ledger import LedgerRow
from features.specs import KEY_FIELDS, Entity, features_of
from features.tile_rows import KeyedTiles, PackedTiles, TileBatch, TileRow, family_named, keyed_tiles, unpacked
from features.tiles import FAMILIES, STREAMED_RETENTION_MS, USER_CATEGORY_TILES, TileFamily, family_of
from features.user_state import Interaction, UserState

Offsets = Mapping[tuple[str, int], int]
"""The next offset to read of each (topic, partition)."""


class BackendError(ValueError):
    """A request that the store cannot serve as it was put."""


class StoreUnavailableError(RuntimeError):
    """The store does not answer now; nothing of the request was written, or all of it was. Try again later."""


class Document(NamedTuple):
    """One row of an ordinary Feast view. Of two, the one with the greater (event, created) times holds."""

    key: bytes
    payload: bytes
    event_time_ms: int
    created_ms: int


@dataclass(frozen=True, kw_only=True)
class UserRows:
    """Everything stored of one user; of the sets only the history is in order."""

    tiles: Sequence[PackedTiles]
    history: str
    """The newest entries of `features.keyed_sets.encode_interaction`, newest first, joined by commas."""
    seen: Mapping[str, int]
    decisions: Sequence[Decision]


@dataclass(frozen=True, kw_only=True)
class EntityValues:
    """Finalised windows of several entities. An entity without tiles has the values of empty windows."""

    values_GF: Float64s
    newest_event_ms_G: Int64s
    """The newest event in any of its tiles; 0 without tiles."""


class Asked(NamedTuple):
    """Windows of entities of one kind."""

    entity: Entity
    keys: Sequence[tuple[str, ...]]
    """In the order of `features.specs.KEY_FIELDS`; may repeat."""
    names: tuple[str, ...] | None = None
    """The features that are wanted, in their order; all of the entity's by default."""


class Backend(ABC):
    """Rows of one version of the feature specs, with the Kafka offsets they came from.

    Writes are idempotent and commute: rows may come again, in any order, from several writers at once. A row of an
    erased user is never written, whoever sends it. Every method raises `StoreUnavailableError` when the store is away.
    """

    def __init__(self, version: str | None = None) -> None:
        """Serves the rows of `version`; by default of the specs of this code."""
        self.version = specs.version() if version is None else version
        if not self.version.isalnum():
            raise BackendError(f"version of the specs: got {self.version!r}; allowed: letters and digits.")
        user = (*features_of(Entity.USER), *features_of(Entity.USER_CATEGORY))
        self._user = Finaliser(user, USER_CATEGORY_TILES.columns)
        """Both entities in one pass: the user's windows are the categories' merged."""
        self._user_features = len(features_of(Entity.USER))
        self._empty_category_F = self._user.empty()[self._user_features :]
        self._erased: Mapping[str, int] = {}
        """The erasures as they were last read. Only new ones are ever added, so their number says whether they are
        those of the store."""

    # Written by the tile path.

    def write_tiles(self, family_name: str, rows: Sequence[TileRow], offsets: Offsets) -> None:
        """`write_batch` of single rows. Raises `TileError` for an unknown family or a wrong number of values."""
        self.write_batch(TileBatch.of(family_named(family_name), rows), offsets)

    def write_batch(self, batch: TileBatch, offsets: Offsets) -> int:
        """Writes tile rows and offsets in one transaction. Of two rows of a tile the one with the larger n is kept.

        Returns how many rows were refused, since they are an erased user's.
        """
        refused = 0

        def write(erased: Mapping[str, int]) -> bool:
            nonlocal refused
            kept = batch
            if erased and batch.family.key_fields[0] == "user_id":
                kept = batch.where([digest_of(key[0]) not in erased for key in batch.keys])
            refused = len(batch.keys) - len(kept.keys)
            return self._write_batch(kept, offsets, len(erased))

        self._knowing_the_erased(write)
        return refused

    def write_interactions(self, rows: Sequence[Interaction], offsets: Offsets) -> int:
        """Merges interactions into their users' keyed sets (`features.keyed_sets`), with the offsets.

        Returns how many were refused, as `write_batch` does.
        """
        refused = 0

        def write(erased: Mapping[str, int]) -> bool:
            nonlocal refused
            kept = [row for row in rows if digest_of(row.user_id) not in erased] if erased else rows
            refused = len(rows) - len(kept)
            return self._write_interactions(kept, offsets, len(erased))

        self._knowing_the_erased(write)
        return refused

    @abstractmethod
    def _write_batch(self, batch: TileBatch, offsets: Offsets, erasures: int) -> bool:
        """`write_batch` unless the store knows another number of erasures: then nothing is written, and it is false."""

    @abstractmethod
    def _write_interactions(self, rows: Sequence[Interaction], offsets: Offsets, erasures: int) -> bool:
        """`write_interactions` likewise."""

    def _knowing_the_erased(self, write: Callable[[Mapping[str, int]], bool]) -> None:
        """Writes with the store's own list: reads it again as long as somebody is erased at the same time."""
        while not write(self._erased):
            self._erased = self.erasures()

    @abstractmethod
    def offsets(self, topic: str) -> dict[int, int]:
        """The next offset to read of each partition of the topic, as of the rows stored. They only grow."""

    @abstractmethod
    def write_ledger(self, rows: Sequence[LedgerRow], offsets: Offsets) -> None:
        """Adds accounts (`features.ledger`) to those that are held, by bitwise or, with the offsets."""

    @abstractmethod
    def ledger(self) -> list[LedgerRow]:
        """All accounts of this version, in any order."""

    @abstractmethod
    def expire(self, now_ms: int) -> int:
        """Removes the tiles that have outlived their retention (`features.tiles`); says how many. Safe at any time."""

    # Read.

    def read_user(self, user_id: str, instant_ms: int) -> UserState:
        """The user's windows and keyed sets at the instant. An unknown user has defaults and empty sets."""
        stored = self._user_rows(user_id)
        tiles = _keyed(USER_CATEGORY_TILES, stored.tiles)
        merged_WGK = self._user.merge(tiles.rows, tiles.rows.key_T, len(tiles.keys), instant_ms)
        with_total_WGK = np.concatenate([merged_WGK, self._user.regroup(merged_WGK)], axis=1)
        features_GF = self._user.finalise(with_total_WGK, instant_ms)
        history = StoredHistory(user_id, stored.history)
        seen = newest_seen(stored.seen)
        newest_ms = _reflected_by_both(int(tiles.max_event_time_T.max(initial=0)), latest(seen), instant_ms)
        return UserState(
            user_id=user_id,
            instant_ms=instant_ms,
            features_F=features_GF[-1, : self._user_features],
            categories=tuple(category for _, category in tiles.keys),
            category_features_KF=features_GF[:-1, self._user_features :],
            empty_category_features_F=self._empty_category_F,
            history=history,
            seen=seen,
            hidden=standing(stored.decisions, DecisionKind.HIDDEN),
            followed=standing(stored.decisions, DecisionKind.FOLLOWED),
            newest_event_ms=newest_ms or None,
        )

    def read_entity(
        self, entity: Entity, keys: Sequence[tuple[str, ...]], instant_ms: int, names: tuple[str, ...] | None = None
    ) -> EntityValues:
        """The windows of G entities at the instant: `read_entities` of one kind."""
        return self.read_entities([Asked(entity, keys, names)], instant_ms)[0]

    def read_entities(self, asked: Sequence[Asked], instant_ms: int) -> list[EntityValues]:
        """The windows of several kinds of entities at the instant. Tiles that several of them need are read once."""
        values: dict[int, EntityValues] = {}
        for family in FAMILIES:
            places = [place for place, one in enumerate(asked) if family_of(one.entity) is family]
            keys_of: dict[Entity, list[tuple[str, ...]]] = {}
            for place in places:
                keys_of.setdefault(asked[place].entity, []).extend(asked[place].keys)
            if places:
                distinct = {entity: list(dict.fromkeys(keys)) for entity, keys in keys_of.items()}
                tiles = _Unpacked.of(family, self._entity_tiles(family, distinct))
                values |= {place: tiles.values(asked[place], instant_ms) for place in places}
        return [values[place] for place in range(len(asked))]

    def read_tile_rows(self, family_name: str, since_ms: int) -> KeyedTiles:
        """All rows of the family that start at `since_ms` or later, for a snapshot.

        Read `offsets` before it: rows that arrive in between are then read twice, never missed.
        """
        family = family_named(family_name)
        stored = self._family_tiles(family, since_ms)
        return _keyed(family, stored)

    @abstractmethod
    def _user_rows(self, user_id: str) -> UserRows:
        """Everything stored of the user."""

    @abstractmethod
    def _entity_tiles(
        self, family: TileFamily, keys_of: Mapping[Entity, Sequence[tuple[str, ...]]]
    ) -> list[PackedTiles]:
        """The family's tiles of these entities, and perhaps of others, in any order, each once."""

    @abstractmethod
    def _family_tiles(self, family: TileFamily, since_ms: int) -> list[PackedTiles]:
        """The family's tiles that start at `since_ms` or later, in any order."""

    # Ordinary Feast views.

    def write_documents(self, view: str, documents: Sequence[Document]) -> None:
        """Stores rows of an ordinary view. An equal time replaces, so that a correction is not lost."""

        def write(erased: Mapping[str, int]) -> bool:
            kept = [row for row in documents if not _is_of(row, erased)] if erased else documents
            return self._write_documents(view, kept, len(erased))

        self._knowing_the_erased(write)

    @abstractmethod
    def _write_documents(self, view: str, documents: Sequence[Document], erasures: int) -> bool:
        """`write_documents` as `_write_batch` is `write_batch`."""

    @abstractmethod
    def read_documents(self, view: str, keys: Sequence[bytes]) -> list[Document | None]:
        """The rows with these keys, in their order; None where there is none."""

    @abstractmethod
    def drop_documents(self, view: str) -> None:
        """Forgets an ordinary view."""

    @abstractmethod
    def drop_tiles(self) -> None:
        """Forgets everything of this version: tiles, keyed sets, accounts and offsets."""

    # Erasure, of which all versions are one.

    def erase_digest(self, digest: str, at_ms: int) -> int:
        """`erase_user` of whoever has this digest, looked for among all users, then `compact`."""
        self.refuse_user(digest, at_ms)
        removed = sum(self.erase_user(user_id, at_ms) for user_id in self.user_ids() if digest_of(user_id) == digest)
        self.compact()
        return removed

    @abstractmethod
    def erase_user(self, user_id: str, at_ms: int) -> int:
        """Removes every row of the user, of all versions, and refuses further ones; says how many were removed.

        Once it returns no write brings a row back, not even one that had begun before. Aggregates of items stay.
        """

    @abstractmethod
    def refuse_user(self, digest: str, at_ms: int) -> None:
        """Adds the digest (`features.erasure.digest_of`) to the erasures; the first instant is kept."""

    @abstractmethod
    def erasures(self) -> dict[str, int]:
        """Since when each erased user, by digest, is refused. `drop_tiles` leaves them."""

    @abstractmethod
    def user_ids(self) -> Iterator[str]:
        """Everybody with a row of any version, in any order, each once."""

    @abstractmethod
    def compact(self) -> None:
        """Overwrites what removed rows have left in the store's files, as far as they are the store's own."""

    # Which version is read.

    @abstractmethod
    def version_for(self, spec_hash: str) -> str:
        """The version that readers of these definitions (`features.specs.version`) use; by default the hash itself."""

    @abstractmethod
    def switch(self, spec_hash: str, version: str) -> None:
        """Makes readers of these definitions use the version, in one step. `drop_tiles` leaves it as it is."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the store. The backend is of no use afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class _Unpacked:
    """Tile rows of a family in P parts, one a key."""

    family: TileFamily
    key_P: Sequence[tuple[str, ...]]
    rows: TileRows
    newest_T: Int64s
    row_P: Int64s
    """How many rows each part has."""

    @classmethod
    def of(cls, family: TileFamily, parts: Sequence[PackedTiles]) -> Self:
        key_P = [part.key for part in parts]
        rows, newest_T, row_P = unpacked(family, key_P, [part.packed for part in parts])
        return cls(family=family, key_P=key_P, rows=rows, newest_T=newest_T, row_P=row_P)

    def values(self, asked: Asked, instant_ms: int) -> EntityValues:
        """The windows of the entities that are asked for, from their own rows among these."""
        places = [self.family.key_fields.index(field) for field in KEY_FIELDS[asked.entity]]
        group_of = {key: group for group, key in enumerate(dict.fromkeys(asked.keys))}
        group_P = [group_of.get(tuple([key[place] for place in places]), -1) for key in self.key_P]
        group_T = np.repeat(np.array(group_P, dtype=np.int64), self.row_P)
        rows, newest_T = self.rows, self.newest_T
        if -1 in group_P:
            own_T = np.flatnonzero(group_T >= 0)
            rows, newest_T, group_T = rows.reordered(own_T), newest_T[own_T], group_T[own_T]
        finaliser = _finaliser(asked.entity, asked.names)
        merged_WGK = finaliser.merge(rows, group_T, len(group_of), instant_ms)
        newest_G = np.zeros(len(group_of), dtype=np.int64)
        np.maximum.at(newest_G, group_T, newest_T)
        group_A = np.array([group_of[key] for key in asked.keys], dtype=np.intp)
        return EntityValues(
            values_GF=finaliser.finalise(merged_WGK, instant_ms)[group_A], newest_event_ms_G=newest_G[group_A]
        )


@lru_cache(maxsize=256)  # callers choose the names: their choices must not fill the memory
def _finaliser(entity: Entity, names: tuple[str, ...] | None) -> Finaliser:
    """Of these features of the entity; of all for None. A window that none of them needs is not merged."""
    features = {feature.name: feature for feature in features_of(entity)}
    wanted = features if names is None else names
    return Finaliser([features[name] for name in wanted], family_of(entity).columns)


def _is_of(document: Document, erased: Mapping[str, int]) -> bool:
    user_id = user_of_document(document.key)
    return user_id is not None and digest_of(user_id) in erased


def _keyed(family: TileFamily, stored: Sequence[PackedTiles]) -> KeyedTiles:
    return keyed_tiles(family, [part.key for part in stored], [part.packed for part in stored])


def _reflected_by_both(tiles_ms: int, sets_ms: int, instant_ms: int) -> int:
    """The earlier of two newest events, since tiles and sets arrive by topics of their own; 0 stands for none. Where
    one side has nothing, that of the other counts once it is so old that it may have been kept alone.
    """
    earlier_ms, later_ms = sorted((tiles_ms, sets_ms))
    return earlier_ms or (later_ms if later_ms < instant_ms - STREAMED_RETENTION_MS else 0)
