import dataclasses

import pytest

from features import reference, specs, tiles
from features.names import MS_PER_DAY, MS_PER_MINUTE
from features.specs import WINDOWED_FEATURES, Aggregate, Entity, WindowedFeature

CTR_30D = next(f for f in WINDOWED_FEATURES if f.name == "user_ctr_30d")
CLICKS_10M = next(f for f in WINDOWED_FEATURES if f.name == "user_clicks_10m")


def test_names_are_unique_and_every_entity_has_features() -> None:
    names = [feature.name for feature in WINDOWED_FEATURES]
    assert len(set(names)) == len(names) >= 40
    assert all(specs.features_of(entity) for entity in Entity)


def test_the_version_follows_the_definitions_and_not_their_order() -> None:
    changed = (dataclasses.replace(WINDOWED_FEATURES[0], default=1.0), *WINDOWED_FEATURES[1:])
    assert specs.version() == specs.version(tuple(reversed(WINDOWED_FEATURES)))
    assert specs.version() != specs.version(changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregate": Aggregate.SUM},
        {"aggregate": Aggregate.RATE},
        {"value": specs.WATCH_MS},
        {"aggregate": Aggregate.LAST, "value": specs.WATCH_MS},
        {"aggregate": Aggregate.DISTINCT, "value": specs.WATCH_PERCENT},
        {"window_ms": 3 * MS_PER_DAY + 1},
    ],
)
def test_a_feature_that_contradicts_itself_is_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="user_clicks_10m"):
        dataclasses.replace(CLICKS_10M, **changes)


def test_a_new_feature_brings_its_column() -> None:
    unfollows = specs.Selection(name="unfollows", event_types=frozenset({specs.EventType.UNFOLLOW}))
    added = WindowedFeature(
        name="user_unfollows_1h",
        entity=Entity.USER,
        aggregate=Aggregate.COUNT,
        events=unfollows,
        window_ms=60 * MS_PER_MINUTE,
    )
    assert "unfollows" in [column.name for column in tiles.columns_of([*WINDOWED_FEATURES, added])]


#   minute:      :00   :01   :02            :12
#   10m window          [------ 10m ------] t = 12:30
#   counted            [:02 ............... :12]   the tail tile is whole
def test_a_fine_window_rounds_its_tail_to_the_tile() -> None:
    instant_ms = 12 * MS_PER_MINUTE + 30_000
    assert tiles.window_start(CLICKS_10M, instant_ms) == 2 * MS_PER_MINUTE


def test_a_long_window_rounds_its_tail_to_the_day() -> None:
    assert tiles.window_start(CTR_30D, 40 * MS_PER_DAY + 5) == 10 * MS_PER_DAY


def test_the_reference_page_is_what_the_list_says() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run python -m features.reference and review the change"
