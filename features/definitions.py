"""Every Feast object, built from the specs: entities, the activity views, the daily views and the feature service.

Activity views hold the windowed features. Their online side is the tile path (`features.online_store`), their offline
side the finalised tables that Spark writes. Daily views are ordinary: materialised or pushed.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from feast import Entity as FeastEntity
from feast import FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Float64, Int64, PrimitiveFeastType, String

from features.daily import ACTIVITY_VIEWS, CREATED, DAILY_VIEWS, EVENT_TIMESTAMP, DailyType, DailyView
from features.specs import KEY_FIELDS, Entity, WindowedFeature, features_of

PROJECT = "millrace"
RANKER_SERVICE = "ranker_features"
NO_TTL = timedelta(0)
"""Expiry is the store's own (`features.tiles`)."""

_DAILY_TYPES: dict[DailyType, PrimitiveFeastType] = {
    DailyType.INT64: Int64,
    DailyType.FLOAT64: Float64,
    DailyType.STRING: String,
}


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """What `feast apply` registers."""

    entities: tuple[FeastEntity, ...]
    views: tuple[FeatureView, ...]
    services: tuple[FeatureService, ...]

    def by_name(self) -> dict[str, FeastEntity | FeatureView | FeatureService]:
        """The objects under names of their own, for a feature repo's module: Feast finds them as its attributes."""
        return {
            **{f"{entity.name}_entity": entity for entity in self.entities},
            **{f"{view.name}_view": view for view in self.views},
            **{f"{service.name}_service": service for service in self.services},
        }


def build_definitions(offline_root: str | Path) -> Definitions:
    """The objects, with the offline tables at `offline_root/<view name>/` (parquet directories)."""
    root = Path(offline_root)
    fields = dict.fromkeys(field for key in KEY_FIELDS.values() for field in key)
    entities = {
        field: FeastEntity(name=field.removesuffix("_id"), join_keys=[field], value_type=ValueType.STRING)
        for field in fields
    }
    activity = [_activity_view(entity, entities, root) for entity in Entity]
    daily = [_daily_view(view, entities, root) for view in DAILY_VIEWS]
    ranker = FeatureService(name=RANKER_SERVICE, features=[*activity], description="What the ranker reads, by entity.")
    return Definitions(entities=tuple(entities.values()), views=(*activity, *daily), services=(ranker,))


def _activity_view(entity: Entity, entities: dict[str, FeastEntity], root: Path) -> FeatureView:
    name = ACTIVITY_VIEWS[entity]
    return FeatureView(
        name=name,
        entities=[entities[field] for field in KEY_FIELDS[entity]],
        ttl=NO_TTL,
        schema=[*_keys(entity), *(_windowed_field(feature) for feature in features_of(entity))],
        source=_offline(name, root),
        online=True,
        description=f"Windowed activity of a {entity.replace('_', ' × ')}, merged from tiles when it is read.",
        tags={"written_by": "tile path"},
    )


def _daily_view(view: DailyView, entities: dict[str, FeastEntity], root: Path) -> FeatureView:
    return FeatureView(
        name=view.name,
        entities=[entities[field] for field in KEY_FIELDS[view.entity]],
        ttl=NO_TTL,
        schema=[
            *_keys(view.entity),
            *(
                Field(name=feature.name, dtype=_DAILY_TYPES[feature.dtype], description=feature.meaning)
                for feature in view.features
            ),
        ],
        source=PushSource(name=f"{view.name}_push", batch_source=_offline(view.name, root)),
        online=True,
        description=f"Daily batch features of a {view.entity}.",
        tags={"written_by": "materialize or push"},
    )


def _keys(entity: Entity) -> list[Field]:
    return [Field(name=field, dtype=String) for field in KEY_FIELDS[entity]]


def _windowed_field(feature: WindowedFeature) -> Field:
    return Field(name=feature.name, dtype=Int64 if feature.is_integer else Float64, description=feature.meaning)


def _offline(view_name: str, root: Path) -> FileSource:
    return FileSource(
        name=f"{view_name}_offline",
        path=str(root / view_name),
        timestamp_field=EVENT_TIMESTAMP,
        created_timestamp_column=CREATED,
    )
