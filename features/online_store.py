"""Feast's online store for Millrace: windows finalised from tiles when they are read, ordinary views as documents.

Named in `feature_store.yaml` as `features.online_store.MillraceOnlineStore`. The online writer and the ranking
service use the backend below it (`features.backends`) directly.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from feast import Entity as FeastEntity
from feast import FeatureView, RepoConfig, ValueType
from feast import utils as feast_utils
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.metrics import track_feature_statuses
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Map
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.repo_config import FeastConfigBaseModel

from features.backends import Asked, Backend, Document, EntityValues, open_backend
from features.clock import wall_clock_ms
from features.daily import ACTIVITY_VIEWS
from features.feast_results import encode_results
from features.names import MS_PER_SECOND
from features.specs import KEY_FIELDS, Entity, WindowedFeature, features_of

Row = tuple[EntityKeyProto, dict[str, ValueProto], datetime, datetime | None]
ReadRow = tuple[datetime | None, dict[str, ValueProto] | None]

_ENTITIES = {view: entity for entity, view in ACTIVITY_VIEWS.items()}


_clock_ms: Callable[[], int] = wall_clock_ms


@contextmanager
def clock(clock_ms: Callable[[], int]) -> Iterator[None]:
    """Reads of every store of this process happen at this clock's instant: for tests and replays.

    A store whose configuration has `instant_ms` keeps to that.
    """
    global _clock_ms  # Feast builds the stores itself: there is nobody to hand the clock to
    before, _clock_ms = _clock_ms, clock_ms
    try:
        yield
    finally:
        _clock_ms = before


class TileViewError(ValueError):
    """An attempt to write a view that only the tile path writes."""


class MillraceOnlineStoreConfig(FeastConfigBaseModel):
    """The `online_store` section of `feature_store.yaml`."""

    type: Literal["features.online_store.MillraceOnlineStore"] = "features.online_store.MillraceOnlineStore"
    location: str = "online.db"
    """A redis:// URL, or the path of an SQLite file, relative to the feature repo."""
    instant_ms: int | None = None
    """The instant at which windows are read; the clock's when absent."""


def resolve_location(location: str, repo_path: Path | None) -> str:
    """The location as `open_backend` wants it: paths are relative to the feature repo."""
    if "://" in location or repo_path is None:
        return location
    return str(repo_path / location)


class MillraceOnlineStore(OnlineStore):
    """Several tile rows an entity, finalised at an instant; a row of an ordinary view is one document."""

    def __init__(self) -> None:
        super().__init__()
        self._backend: Backend | None = None

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads only."""
        return SupportedAsyncMethods(read=True)

    def backend(self, config: RepoConfig) -> Backend:
        """The backend of the configuration, opened once."""
        if self._backend is None:
            self._backend = open_backend(resolve_location(config.online_store.location, config.repo_path))
        return self._backend

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: Sequence[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Stores rows of an ordinary view. Raises `TileViewError` for the views of windowed features."""
        if table.name in _ENTITIES:
            raise TileViewError(
                f"The windows of {table.name} are written by the tile path (the stream job and the online writer), "
                "not by materialize or push: leave the view out, or run the stream to fill it."
            )
        documents = [
            Document(
                _document_key(config, key),
                Map(val=values).SerializeToString(deterministic=True),
                _to_ms(event_time),
                _to_ms(created) if created is not None else 0,
            )
            for key, values, event_time, created in data
        ]
        self.backend(config).write_documents(_document_view(config, table), documents)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """One row a key, in their order.

        An activity view always has a row: an entity without events has the values of empty windows, as
        `Backend.read_user` says, with no timestamp. The timestamp is the newest event's.
        """
        entity = _ENTITIES.get(table.name)
        if entity is None:
            return self._read_documents(config, table, entity_keys, requested_features)
        features = [f for f in features_of(entity) if not requested_features or f.name in requested_features]
        keys = [_key_values(key, KEY_FIELDS[entity]) for key in entity_keys]
        read = next(self._read_entities(config, [Asked(entity, keys, tuple(feature.name for feature in features))]))
        return [
            (
                _from_ms(int(newest_ms)) if newest_ms else None,
                {
                    feature.name: _windowed_value(feature, value)
                    for feature, value in zip(features, values_F, strict=True)
                },
            )
            for values_F, newest_ms in zip(read.values_GF, read.newest_event_ms_G, strict=True)
        ]

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: dict[str, list[ValueProto]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """Feast's step between keys and response. Activity views are answered in whole columns, not value by value."""
        keys_of = [_asked_keys(table, join_key_values, entity_name_to_join_key_map) for table, _ in grouped_refs]
        if include_feature_view_version_metadata:
            keys_of = [None] * len(grouped_refs)
        reads = self._read_entities(
            config,
            [
                Asked(_ENTITIES[table.name], keys, tuple(requested))
                for (table, requested), keys in zip(grouped_refs, keys_of, strict=True)
                if keys is not None
            ],
        )
        for (table, requested), keys in zip(grouped_refs, keys_of, strict=True):
            if keys is None:
                super()._read_features_per_fv(
                    config,
                    [(table, requested)],
                    join_key_values,
                    entity_name_to_join_key_map,
                    online_features_response,
                    full_feature_names,
                    include_feature_view_version_metadata,
                )
                continue
            view = table.projection.name_to_use()  # type: ignore[no-untyped-call]
            prefix = f"{view}__" if full_feature_names else ""
            online_features_response.metadata.feature_names.val.extend([f"{prefix}{name}" for name in requested])
            is_integer_F, read = _is_integer(_ENTITIES[table.name], tuple(requested)), next(reads)
            results = encode_results(read.values_GF, is_integer_F, read.newest_event_ms_G)
            online_features_response.MergeFromString(results)
            track_feature_statuses(table.name, len(requested) * len(keys), 0)

    async def _read_features_per_fv_async(self, *arguments: Any) -> None:
        """The same in a thread."""
        await asyncio.to_thread(self._read_features_per_fv, *arguments)

    @staticmethod
    def _build_feature_types(grouped_refs: list[Any]) -> dict[str, ValueType]:
        """Feast's table of types, which for an activity view is the same for ever."""
        types: dict[str, ValueType] = {}
        for table, requested in grouped_refs:
            if table.name in _ENTITIES:
                view = table.projection.name_to_use()
                types |= _types_of(_ENTITIES[table.name], view, tuple(requested))
            else:
                types |= OnlineStore._build_feature_types([(table, requested)])
        return types

    def _read_entities(self, config: RepoConfig, asked: Sequence[Asked]) -> Iterator[EntityValues]:
        instant_ms = config.online_store.instant_ms
        return iter(self.backend(config).read_entities(asked, _clock_ms() if instant_ms is None else instant_ms))

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """`online_read` in a thread."""
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

    def _read_documents(
        self, config: RepoConfig, table: FeatureView, entity_keys: list[EntityKeyProto], requested: list[str] | None
    ) -> list[ReadRow]:
        keys = [_document_key(config, key) for key in entity_keys]
        rows: list[ReadRow] = []
        for document in self.backend(config).read_documents(_document_view(config, table), keys):
            if document is None:
                rows.append((None, None))
                continue
            stored = Map.FromString(document.payload).val
            values = {name: stored[name] for name in stored if not requested or name in requested}
            rows.append((_from_ms(document.event_time_ms), values))
        return rows

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],  # noqa: ARG002  Feast's interface
        entities_to_delete: Sequence[FeastEntity],  # noqa: ARG002
        entities_to_keep: Sequence[FeastEntity],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        """Creates what is missing and forgets the ordinary views that were deleted. Tiles stay: they expire."""
        backend = self.backend(config)
        for table in tables_to_delete:
            if table.name not in _ENTITIES:
                backend.drop_documents(_document_view(config, table))

    def teardown(
        self,
        config: RepoConfig,
        tables: Sequence[FeatureView],
        entities: Sequence[FeastEntity],  # noqa: ARG002  Feast's interface
    ) -> None:
        """Forgets the views: documents of the ordinary ones and, with an activity view, all tiles and keyed sets."""
        backend = self.backend(config)
        for table in tables:
            if table.name not in _ENTITIES:
                backend.drop_documents(_document_view(config, table))
        if any(table.name in _ENTITIES for table in tables):
            backend.drop_tiles()
        backend.close()
        self._backend = None


def _windowed_value(feature: WindowedFeature, value: float) -> ValueProto:
    return ValueProto(int64_val=int(value)) if feature.is_integer else ValueProto(double_val=float(value))


def _asked_keys(
    table: FeatureView, join_key_values: dict[str, list[ValueProto]], join_key_map: dict[str, str]
) -> list[tuple[str, ...]] | None:
    """The keys of an activity view in the order asked; None for another view, or when a key field is missing."""
    if table.name not in _ENTITIES:
        return None
    given = feast_utils._get_table_entity_values(table, join_key_map, join_key_values)
    fields = KEY_FIELDS[_ENTITIES[table.name]]
    if not all(given.get(field) for field in fields):
        return None
    return list(zip(*([value.string_val for value in given[field]] for field in fields), strict=True))


@lru_cache(maxsize=256)
def _types_of(entity: Entity, view: str, names: tuple[str, ...]) -> dict[str, ValueType]:
    """Under each name, and under the view's and the name."""
    of = {feature.name: ValueType.INT64 if feature.is_integer else ValueType.DOUBLE for feature in features_of(entity)}
    return {named: of[name] for name in names if name in of for named in (name, f"{view}__{name}")}


@lru_cache(maxsize=256)
def _is_integer(entity: Entity, names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    of = {feature.name: feature.is_integer for feature in features_of(entity)}
    return np.array([of[name] for name in names])


def _key_values(key: EntityKeyProto, fields: tuple[str, ...]) -> tuple[str, ...]:
    values = dict(zip(key.join_keys, key.entity_values, strict=True))
    return tuple(values[field].string_val for field in fields)


def _document_key(config: RepoConfig, key: EntityKeyProto) -> bytes:
    return serialize_entity_key(key, entity_key_serialization_version=config.entity_key_serialization_version)


def _document_view(config: RepoConfig, table: FeatureView) -> str:
    return f"{config.project}:{table.name}"


def _to_ms(instant: datetime) -> int:
    aware = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant
    return round(aware.timestamp() * MS_PER_SECOND)


def _from_ms(instant_ms: int) -> datetime:
    return datetime.fromtimestamp(instant_ms / MS_PER_SECOND, tz=UTC)
