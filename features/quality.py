"""Great Expectations suites derived from the contracts and the feature list. Whoever has a table runs them.

Suites of rows: `events_suite`, `items_suite`, `slates_suite` with `slate_items_suite`, `view_suite` of an offline
feature view, `examples_suite`. `days_suite` judges figures of whole days (`batch.day_profile`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields

from great_expectations import ExpectationSuite
from great_expectations.expectations.core.expect_column_max_to_be_between import ExpectColumnMaxToBeBetween
from great_expectations.expectations.core.expect_column_unique_value_count_to_be_between import (
    ExpectColumnUniqueValueCountToBeBetween,
)
from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
from great_expectations.expectations.core.expect_column_values_to_be_unique import ExpectColumnValuesToBeUnique
from great_expectations.expectations.core.expect_column_values_to_match_regex import ExpectColumnValuesToMatchRegex
from great_expectations.expectations.core.expect_column_values_to_not_be_null import ExpectColumnValuesToNotBeNull
from great_expectations.expectations.core.expect_compound_columns_to_be_unique import ExpectCompoundColumnsToBeUnique
from great_expectations.expectations.core.expect_table_row_count_to_be_between import ExpectTableRowCountToBeBetween
from great_expectations.expectations.expectation import Expectation

from features.daily import CREATED, EVENT_TIMESTAMP, DailyFeature, DailyType
from features.events import (
    ALL_TYPES,
    EVENT_TIME_BITS,
    FIELDS,
    FUTURE_SKEW_MS,
    HORIZON_MS,
    ID_PATTERN,
    MAX_ID_BYTES,
    MAX_POSITION,
    MAX_WATCH_MS,
    EventField,
    FieldKind,
)
from features.items import Item
from features.quality_limits import SuiteLimits
from features.specs import KEY_FIELDS, WINDOWED_FEATURES, Aggregate, Entity, WindowedFeature

DELAY_MS = "delay_ms"
"""Derived column of events: `arrival_ms - event_time_ms`."""
DISTANCE = "distance_"
"""Prefix of the figure that says how far a day's values of a column lie from other days'."""
EVENT_COLUMNS = (*(field.name for field in FIELDS), "arrival_ms", "event_date")
ITEM_COLUMNS = tuple(field.name for field in fields(Item))
SLATE_COLUMNS = ("request_id", "user_id", "served_at_ms", "bundle_id", "arm", "snapshot_instant_ms")
SLATE_ITEM_COLUMNS = ("request_id", "item_id", "position", "score", "propensity")
_EXAMPLE_IDS = ("event_id", "request_id", "user_id", "item_id", "category", "creator_id", "language", "device")
_EXAMPLE_NUMBERS = ("t_ms", "position", "duration_ms", "published_at_ms")
_BINARY_LABELS = ("label_click", "label_like", "label_share", "label_hide")
_MASKED_LABELS = ("label_completion", "label_watch_fraction")
"""Null where the impression was not watched."""
_UNUSUAL_RATE_MOSTLY = 0.95
"""Share of rates that must not exceed 1 where numerator and denominator are different events: a click may fall
into a window that its impression has left."""


def events_suite(now_ms: int, limits: SuiteLimits) -> ExpectationSuite:
    """Volume, freshness, uniqueness and every rule of the contract that a column can show."""
    expectations: list[Expectation] = [
        ExpectTableRowCountToBeBetween(min_value=limits.min_rows),
        ExpectCompoundColumnsToBeUnique(column_list=["user_id", "event_id"]),
        ExpectColumnMaxToBeBetween(column="arrival_ms", min_value=now_ms - limits.max_age_ms),
        ExpectColumnValuesToBeBetween(column=DELAY_MS, min_value=-FUTURE_SKEW_MS, max_value=HORIZON_MS),
        # The contract refuses what is ahead of its arrival; a producer's clock may be ahead with both.
        ExpectColumnValuesToBeBetween(column="arrival_ms", max_value=now_ms + FUTURE_SKEW_MS),
    ]
    for field in FIELDS:
        expectations += [*_presence(field), *_validity(field)]
    return ExpectationSuite(name="events", expectations=expectations)


def _presence(field: EventField) -> list[Expectation]:
    if field.required_for == ALL_TYPES:
        return [ExpectColumnValuesToNotBeNull(column=field.name)]
    return [
        ExpectColumnValuesToNotBeNull(
            column=field.name, row_condition=f'event_type == "{event_type}"', condition_parser="pandas"
        )
        for event_type in sorted(field.required_for)
    ]


def _validity(field: EventField) -> list[Expectation]:
    match field.kind:
        case FieldKind.EVENT_TYPE:
            types = sorted(str(event_type) for event_type in ALL_TYPES)
            return [ExpectColumnValuesToBeInSet(column=field.name, value_set=types)]
        case FieldKind.ID:
            return [_identifier(field.name, field.max_bytes)]
        case FieldKind.INTEGER:
            return [ExpectColumnValuesToBeBetween(column=field.name, min_value=field.minimum, max_value=field.maximum)]


def _identifier(column: str, max_bytes: int = MAX_ID_BYTES) -> Expectation:
    pattern = rf"\A{ID_PATTERN.removesuffix('+')}{{1,{max_bytes}}}\Z"
    return ExpectColumnValuesToMatchRegex(column=column, regex=pattern)


def items_suite(limits: SuiteLimits) -> ExpectationSuite:
    """The catalogue: one row an item, with ids that events may carry and lengths that a watch may have."""
    expectations: list[Expectation] = [
        ExpectTableRowCountToBeBetween(min_value=limits.min_rows),
        ExpectColumnValuesToBeUnique(column="item_id"),
        ExpectColumnValuesToBeBetween(column="duration_ms", min_value=1, max_value=MAX_WATCH_MS),
        ExpectColumnValuesToBeBetween(column="published_at_ms", min_value=0, max_value=2**EVENT_TIME_BITS - 1),
    ]
    expectations += [_identifier(name) for name in ("item_id", "category", "creator_id")]
    expectations += [ExpectColumnValuesToNotBeNull(column=name) for name in ITEM_COLUMNS]
    return ExpectationSuite(name="items", expectations=expectations)


def slates_suite(now_ms: int, limits: SuiteLimits) -> ExpectationSuite:
    """Served slates: one row a request, none from the future."""
    expectations: list[Expectation] = [
        ExpectTableRowCountToBeBetween(min_value=limits.min_rows),
        ExpectColumnValuesToBeUnique(column="request_id"),
        ExpectColumnValuesToBeBetween(column="served_at_ms", min_value=1, max_value=now_ms + FUTURE_SKEW_MS),
    ]
    expectations += [ExpectColumnValuesToNotBeNull(column=name) for name in SLATE_COLUMNS]
    return ExpectationSuite(name="slates", expectations=expectations)


def slate_items_suite() -> ExpectationSuite:
    """What the slates hold: each item and each position once a request, with a propensity that IPS can divide by."""
    expectations: list[Expectation] = [
        ExpectCompoundColumnsToBeUnique(column_list=["request_id", "item_id"]),
        ExpectCompoundColumnsToBeUnique(column_list=["request_id", "position"]),
        ExpectColumnValuesToBeBetween(column="position", min_value=0, max_value=MAX_POSITION),
        ExpectColumnValuesToBeBetween(column="propensity", min_value=0, max_value=1, strict_min=True),
        _identifier("item_id"),
    ]
    expectations += [ExpectColumnValuesToNotBeNull(column=name) for name in SLATE_ITEM_COLUMNS]
    return ExpectationSuite(name="slate_items", expectations=expectations)


def view_suite(
    view: str,
    entity: Entity,
    features: Iterable[WindowedFeature | DailyFeature],
    now_ms: int,
    limits: SuiteLimits,
) -> ExpectationSuite:
    """One offline view of a run date: one row a key, fresh, every feature within what its definition allows."""
    keys = KEY_FIELDS[entity]
    unique = (
        ExpectColumnValuesToBeUnique(column=keys[0])
        if len(keys) == 1
        else ExpectCompoundColumnsToBeUnique(column_list=list(keys))
    )
    expectations: list[Expectation] = [
        ExpectTableRowCountToBeBetween(min_value=limits.min_rows),
        unique,
        ExpectColumnMaxToBeBetween(column=CREATED, min_value=now_ms - limits.max_age_ms, max_value=now_ms),
        ExpectColumnMaxToBeBetween(column=EVENT_TIMESTAMP, max_value=now_ms),
    ]
    expectations += [_identifier(key) for key in keys]
    expectations += [ExpectColumnValuesToNotBeNull(column=key) for key in keys]
    for feature in features:
        bounds = _feature_range(feature) if isinstance(feature, WindowedFeature) else _daily_range(feature)
        expectations += [ExpectColumnValuesToNotBeNull(column=feature.name), *bounds]
    return ExpectationSuite(name=view, expectations=expectations)


def _daily_range(feature: DailyFeature) -> list[Expectation]:
    """A daily feature counts or measures, so it is never negative; `*_ctr` is a share of clicks by impressions."""
    if feature.dtype is DailyType.STRING:
        return []
    between = ExpectColumnValuesToBeBetween
    if feature.name.endswith("_ctr"):
        usual = between(column=feature.name, min_value=0, max_value=1, mostly=_UNUSUAL_RATE_MOSTLY)
        return [between(column=feature.name, min_value=0), usual]
    return [between(column=feature.name, min_value=0)]


def days_suite(table: str, limits: SuiteLimits, figures: Sequence[str]) -> ExpectationSuite:
    """Whole days beside those before them. `figures` are those of `batch.day_profile` that the table has."""
    bounds: dict[str, tuple[float | None, float | None]] = {
        "volume_ratio": (limits.min_volume_ratio, limits.max_volume_ratio),
        "class_ratio": (limits.min_class_ratio, None),
        "class_distance": (None, limits.max_distance),
        "unknown_share": (None, limits.max_unknown_share),
        "dead_share": (None, limits.max_dead_share),
        "unlike_slate_share": (None, limits.max_unlike_slate_share),
        "completeness": (limits.min_completeness, None),
    }
    names = {feature.name for feature in WINDOWED_FEATURES}
    for figure in figures:
        if figure.startswith(DISTANCE):
            of_feature = figure.removeprefix(DISTANCE) in names
            bounds[figure] = (None, limits.max_feature_distance if of_feature else limits.max_distance)
    judged = {figure: bounds[figure] for figure in figures}
    return ExpectationSuite(
        name=f"days_of_{table}",
        expectations=[
            ExpectColumnValuesToBeBetween(column=figure, min_value=least, max_value=most)
            for figure, (least, most) in judged.items()
        ],
    )


def example_columns() -> tuple[str, ...]:
    """The columns of the training examples that the suite reads: all but the histories."""
    features = (feature.name for feature in WINDOWED_FEATURES)
    return (*_EXAMPLE_IDS, *_EXAMPLE_NUMBERS, "event_date", *_BINARY_LABELS, *_MASKED_LABELS, *features)


def examples_suite(limits: SuiteLimits) -> ExpectationSuite:
    """Volume, no nulls, labels that a model can learn from, and every feature within what its definition allows."""
    expectations: list[Expectation] = [
        ExpectTableRowCountToBeBetween(min_value=limits.min_rows),
        ExpectColumnValuesToBeUnique(column="event_id"),
        ExpectColumnUniqueValueCountToBeBetween(column="label_click", min_value=2),
        ExpectColumnValuesToBeInSet(column="label_completion", value_set=[0, 1]),
        ExpectColumnValuesToBeBetween(column="label_watch_fraction", min_value=0, max_value=1),
    ]
    expectations += [
        ExpectColumnValuesToNotBeNull(column=name) for name in (*_EXAMPLE_IDS, *_EXAMPLE_NUMBERS, *_BINARY_LABELS)
    ]
    expectations += [ExpectColumnValuesToBeInSet(column=name, value_set=[0, 1]) for name in _BINARY_LABELS]
    for feature in WINDOWED_FEATURES:
        expectations += [ExpectColumnValuesToNotBeNull(column=feature.name), *_feature_range(feature)]
    return ExpectationSuite(name="examples", expectations=expectations)


def _feature_range(feature: WindowedFeature) -> list[Expectation]:
    """The bounds that follow from the definition; a rate's default lies within them too."""
    between = ExpectColumnValuesToBeBetween
    match feature.aggregate:
        case Aggregate.COUNT | Aggregate.SUM:
            return [between(column=feature.name, min_value=0)]
        case Aggregate.MEAN:
            return [between(column=feature.name, min_value=0, max_value=max(MAX_WATCH_MS, feature.default))]
        case Aggregate.MAX | Aggregate.LAST | Aggregate.DISTINCT:
            assert feature.value is not None  # WindowedFeature refuses these without it
            return [between(column=feature.name, min_value=min(0, feature.default), max_value=feature.value.size)]
        case Aggregate.SINCE_LAST:
            return [between(column=feature.name, min_value=0, max_value=max(feature.window_ms * 2, feature.default))]
        case Aggregate.RATE:
            assert feature.per is not None  # WindowedFeature refuses a rate without it
            if feature.events.event_types <= feature.per.event_types:
                return [between(column=feature.name, min_value=0, max_value=1)]
            usual = between(column=feature.name, min_value=0, max_value=1, mostly=_UNUSUAL_RATE_MOSTLY)
            return [between(column=feature.name, min_value=0), usual]
