"""The ordinary batch views as data: what the daily Spark job writes and Feast materialises. No windows, no tiles.

A view's offline table is parquet at `<offline root>/<view name>/` with the entity's key columns, the features below,
`event_timestamp` (the end of the day described, UTC) and `created` (when the row was computed).
"""

from dataclasses import dataclass
from enum import StrEnum

from features.specs import Entity

EVENT_TIMESTAMP = "event_timestamp"
"""Column of every offline table: the instant as of which the row holds (timestamp, UTC)."""
CREATED = "created"
"""Column of every offline table: when the row was computed; the later of two rows with one event timestamp holds."""

ACTIVITY_VIEWS: dict[Entity, str] = {entity: f"{entity}_activity" for entity in Entity}
"""The Feast view of each entity's windowed features (`features.specs.features_of`)."""


class DailyType(StrEnum):
    """Type of a daily feature, in names that Spark, Arrow and Feast all have."""

    INT64 = "int64"
    FLOAT64 = "float64"
    STRING = "string"


@dataclass(frozen=True, kw_only=True)
class DailyFeature:
    """One feature of a daily view. `meaning` is its documentation."""

    name: str
    dtype: DailyType
    meaning: str


@dataclass(frozen=True, kw_only=True)
class DailyView:
    """One ordinary view. Its key columns are `features.specs.KEY_FIELDS[entity]`."""

    name: str
    entity: Entity
    features: tuple[DailyFeature, ...]


def _feature(name: str, dtype: DailyType, meaning: str) -> DailyFeature:
    return DailyFeature(name=name, dtype=dtype, meaning=meaning)


USER_DAILY = DailyView(
    name="user_daily",
    entity=Entity.USER,
    features=(
        _feature("user_lifetime_events", DailyType.INT64, "valid events of the user so far"),
        _feature("user_lifetime_impressions", DailyType.INT64, "impressions so far"),
        _feature("user_lifetime_ctr", DailyType.FLOAT64, "clicks over impressions so far; 0 without impressions"),
        _feature("user_tenure_days", DailyType.FLOAT64, "days from the user's first event to event_timestamp"),
        _feature("user_favourite_category", DailyType.STRING, "category with most clicks; ties by name; '' without"),
    ),
)
ITEM_DAILY = DailyView(
    name="item_daily",
    entity=Entity.ITEM,
    features=(
        _feature("item_lifetime_impressions", DailyType.INT64, "impressions so far"),
        _feature("item_lifetime_ctr", DailyType.FLOAT64, "clicks over impressions so far; 0 without impressions"),
        _feature("item_smoothed_ctr", DailyType.FLOAT64, "(clicks + 20 × mean ctr of all items) / (impressions + 20)"),
        _feature("item_age_days", DailyType.FLOAT64, "days from publication to event_timestamp, never below 0"),
    ),
)
DAILY_VIEWS: tuple[DailyView, ...] = (USER_DAILY, ITEM_DAILY)
