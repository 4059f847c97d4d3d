"""Great Expectations suites derived from the event contract and the feature list. Whoever has a table runs them.

`events_suite` judges the lake's silver events, `examples_suite` the training examples; what they look at is in
`EVENT_COLUMNS` and `example_columns`, plus the derived `DELAY_MS`.
"""

from dataclasses import dataclass

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

from features.events import (
    ALL_TYPES,
    FIELDS,
    FUTURE_SKEW_MS,
    HORIZON_MS,
    ID_PATTERN,
    MAX_WATCH_MS,
    EventField,
    FieldKind,
)
from features.names import MS_PER_DAY
from features.specs import WINDOWED_FEATURES, Aggregate, WindowedFeature

DELAY_MS = "delay_ms"
"""Derived column of events: `arrival_ms - event_time_ms`."""
EVENT_COLUMNS = (*(field.name for field in FIELDS), "arrival_ms", "event_date")
_EXAMPLE_IDS = ("event_id", "request_id", "user_id", "item_id", "category", "creator_id", "language", "device")
_EXAMPLE_NUMBERS = ("t_ms", "position", "duration_ms", "published_at_ms")
_BINARY_LABELS = ("label_click", "label_like", "label_share", "label_hide")
_MASKED_LABELS = ("label_completion", "label_watch_fraction")
"""Null where the impression was not watched."""
_UNUSUAL_RATE_MOSTLY = 0.95
"""Share of rates that must not exceed 1 where numerator and denominator are different events: a click may fall
into a window that its impression has left."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What is data about a deployment rather than about the contract."""

    min_rows: int = 1
    max_age_ms: int = 2 * MS_PER_DAY
    """Oldest that the newest arrival may be."""


def events_suite(now_ms: int, thresholds: Thresholds) -> ExpectationSuite:
    """Volume, freshness, uniqueness and every rule of the contract that a column can show."""
    expectations: list[Expectation] = [
        ExpectTableRowCountToBeBetween(min_value=thresholds.min_rows),
        ExpectCompoundColumnsToBeUnique(column_list=["user_id", "event_id"]),
        ExpectColumnMaxToBeBetween(column="arrival_ms", min_value=now_ms - thresholds.max_age_ms),
        ExpectColumnValuesToBeBetween(column=DELAY_MS, min_value=-FUTURE_SKEW_MS, max_value=HORIZON_MS),
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
            pattern = rf"\A{ID_PATTERN.removesuffix('+')}{{1,{field.max_bytes}}}\Z"
            return [ExpectColumnValuesToMatchRegex(column=field.name, regex=pattern)]
        case FieldKind.INTEGER:
            return [ExpectColumnValuesToBeBetween(column=field.name, min_value=field.minimum, max_value=field.maximum)]


def example_columns() -> tuple[str, ...]:
    """The columns of the training examples that the suite reads: all but the histories."""
    features = (feature.name for feature in WINDOWED_FEATURES)
    return (*_EXAMPLE_IDS, *_EXAMPLE_NUMBERS, "event_date", *_BINARY_LABELS, *_MASKED_LABELS, *features)


def examples_suite(thresholds: Thresholds) -> ExpectationSuite:
    """Volume, no nulls, labels that a model can learn from, and every feature within what its definition allows."""
    expectations: list[Expectation] = [
        ExpectTableRowCountToBeBetween(min_value=thresholds.min_rows),
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
