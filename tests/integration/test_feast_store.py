"""The store through Feast's own doors: apply, online and historical reads, materialize, push, teardown."""

import asyncio
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from features.backends import Backend, open_backend
from features.daily import ACTIVITY_VIEWS
from features.names import MS_PER_DAY, MS_PER_MINUTE
from features.specs import KEY_FIELDS, Entity, features_of
from features.tile_rows import TileRow, family_named
from tests.conftest import ROOT

if TYPE_CHECKING:
    from feast import FeatureStore

NOW_MS = 1_800_000_034_567
NOW = datetime.fromtimestamp(NOW_MS / 1000, tz=UTC)
SERVE = str(ROOT / ".venv/serve/bin/python")


def write_offline(root: Path) -> None:
    """Offline tables as Spark writes them: directories of parquet files, two rows a user in time order."""
    for entity in (Entity.USER, Entity.ITEM):
        rows = []
        for step, hours in enumerate((48, 24)):
            row: dict[str, object] = dict.fromkeys(KEY_FIELDS[entity], "ada")
            for place, feature in enumerate(features_of(entity)):
                row[feature.name] = step * 100 + place if feature.is_integer else step * 100 + place / 4
            row |= {"event_timestamp": NOW - timedelta(hours=hours), "created": NOW}
            rows.append(row)
        table = root / ACTIVITY_VIEWS[entity]
        table.mkdir(parents=True)
        for number, row in enumerate(rows):
            pd.DataFrame([row]).to_parquet(table / f"part-{number}.parquet")
    daily = root / "user_daily"
    daily.mkdir()
    users = pd.DataFrame(
        {
            "user_id": ["ada", "bob", "ada"],
            "user_lifetime_events": [10, 3, 12],
            "user_lifetime_impressions": [8, 2, 9],
            "user_lifetime_ctr": [0.25, 0.5, 0.3],
            "user_tenure_days": [3.0, 1.0, 4.0],
            "user_favourite_category": ["music", "cars", "music"],
            "event_timestamp": [NOW - timedelta(days=2), NOW - timedelta(days=1), NOW - timedelta(days=1)],
            "created": [NOW] * 3,
        }
    )
    users.to_parquet(daily / "part-0.parquet")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature repo applied by Feast's own command in the serve environment."""
    base = tmp_path_factory.mktemp("feast")
    write_offline(base / "offline")
    flags = ["--dir", str(base / "repo"), "--store", str(base / "online.db"), "--offline-root", str(base / "offline")]
    done = subprocess.run(
        [SERVE, "-m", "features.repo", *flags], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return base / "repo"


@pytest.fixture(scope="module")
def backend(repo: Path) -> Iterator[Backend]:
    """The store as the online writer sees it, with tiles of a few users and items."""
    rng = np.random.default_rng(5)
    with open_backend(str(repo.parent / "online.db")) as store:
        for name, keys in (
            ("user_category", [("ada", "music"), ("ada", "cars"), ("bob", "cars")]),
            ("item", [("i1", "music", "kim"), ("i2", "cars", "kim"), ("i3", "music", "lee")]),
        ):
            family = family_named(name)
            rows = []
            for key in keys:
                for _ in range(30):
                    tile_ms = int(rng.choice([family.tile_ms, MS_PER_DAY]))
                    start_ms = NOW_MS - int(rng.integers(5 * MS_PER_DAY if tile_ms == MS_PER_DAY else MS_PER_DAY))
                    start_ms -= start_ms % tile_ms
                    n = int(rng.integers(1, 50))
                    values = [n if not c.name.endswith("_ms") else start_ms for c in family.columns]
                    rows.append(TileRow(key, tile_ms, start_ms, n, start_ms + 1, tuple(values)))
            store.write_tiles(name, rows, {})
        yield store


@pytest.fixture(scope="module")
def feast_store(repo: Path, backend: Backend) -> "FeatureStore":
    from feast import FeatureStore

    return FeatureStore(repo_path=str(repo))


@pytest.fixture(autouse=True)
def _at_now() -> Iterator[None]:
    from features.online_store import clock

    with clock(lambda: NOW_MS):
        yield


def refs(entity: Entity) -> list[str]:
    return [f"{ACTIVITY_VIEWS[entity]}:{feature.name}" for feature in features_of(entity)]


def test_apply_registered_the_specs(feast_store: "FeatureStore") -> None:
    views = {view.name: view for view in feast_store.list_feature_views()}
    assert set(views) == {*ACTIVITY_VIEWS.values(), "user_daily", "item_daily"}
    for entity, name in ACTIVITY_VIEWS.items():
        assert [field.name for field in views[name].features] == [feature.name for feature in features_of(entity)]
        assert views[name].ttl == timedelta(0)


def test_online_features_are_those_of_read_user(feast_store: "FeatureStore", backend: Backend) -> None:
    users = ["ada", "bob", "nobody", "ada"]
    answer = feast_store.get_online_features(refs(Entity.USER), [{"user_id": user_id} for user_id in users]).to_dict()
    for place, user_id in enumerate(users):
        state = backend.read_user(user_id, NOW_MS)
        got = [answer[feature.name][place] for feature in features_of(Entity.USER)]
        assert got == state.features_F.tolist()
    assert type(answer["user_clicks_1h"][0]) is int
    pairs = [("ada", "cars"), ("ada", "none"), ("bob", "cars")]
    rows = [{"user_id": user_id, "category": category} for user_id, category in pairs]
    answer = feast_store.get_online_features(refs(Entity.USER_CATEGORY), rows).to_dict()
    for place, (user_id, category) in enumerate(pairs):
        state = backend.read_user(user_id, NOW_MS)
        expected = state.empty_category_features_F
        if category in state.categories:
            expected = state.category_features_KF[state.categories.index(category)]
        assert [answer[feature.name][place] for feature in features_of(Entity.USER_CATEGORY)] == expected.tolist()


@pytest.mark.parametrize("entity", [Entity.ITEM, Entity.CREATOR, Entity.CATEGORY])
def test_item_side_is_that_of_read_entity(feast_store: "FeatureStore", backend: Backend, entity: Entity) -> None:
    keys = {Entity.ITEM: ["i1", "i3", "none"], Entity.CREATOR: ["kim", "lee"], Entity.CATEGORY: ["music", "cars"]}[
        entity
    ]
    field = KEY_FIELDS[entity][0]
    answer = feast_store.get_online_features(refs(entity), [{field: key} for key in keys]).to_dict()
    expected = backend.read_entity(entity, [(key,) for key in keys], NOW_MS).values_GF
    for place, feature in enumerate(features_of(entity)):
        assert answer[feature.name] == expected[:, place].tolist()


def test_feature_service_answers_all_entities_at_once(feast_store: "FeatureStore") -> None:
    row = {"user_id": "ada", "category": "music", "item_id": "i1", "creator_id": "kim"}
    answer = feast_store.get_online_features(feast_store.get_feature_service("ranker_features"), [row]).to_dict()
    expected = {feature.name for entity in Entity for feature in features_of(entity)}
    assert set(answer) == expected | set(row)


def test_only_the_requested_features_are_read(feast_store: "FeatureStore") -> None:
    answer = feast_store.get_online_features(["user_activity:user_clicks_1h"], [{"user_id": "ada"}]).to_dict()
    assert set(answer) == {"user_id", "user_clicks_1h"}


def test_windows_follow_the_clock(feast_store: "FeatureStore", backend: Backend) -> None:
    from features.online_store import clock

    later_ms = NOW_MS + 3 * MS_PER_DAY + MS_PER_MINUTE
    with clock(lambda: later_ms):
        answer = feast_store.get_online_features(refs(Entity.USER), [{"user_id": "ada"}]).to_dict()
    expected = backend.read_user("ada", later_ms).features_F.tolist()
    assert [answer[feature.name][0] for feature in features_of(Entity.USER)] == expected
    assert answer["user_impressions_24h"] == [0]


def test_async_reads_are_the_same(feast_store: "FeatureStore") -> None:
    rows = [{"user_id": "ada"}, {"user_id": "nobody"}]
    read = asyncio.run(feast_store.get_online_features_async(refs(Entity.USER), rows)).to_dict()
    assert read == feast_store.get_online_features(refs(Entity.USER), rows).to_dict()


def test_historical_features_are_the_latest_before_each_row(feast_store: "FeatureStore") -> None:
    hours = (60, 30, 1)
    asked = pd.DataFrame({"user_id": ["ada"] * 3, "event_timestamp": [NOW - timedelta(hours=back) for back in hours]})
    got = feast_store.get_historical_features(asked, refs(Entity.USER)).to_df().sort_values("event_timestamp")
    first, *_, last = features_of(Entity.USER)
    # Feast's file store leaves out a row that precedes all of its entity's: no later value may stand in for it.
    known = got[got["event_timestamp"] > NOW - timedelta(hours=48)]
    assert got[got["event_timestamp"] <= NOW - timedelta(hours=48)][first.name].isna().all()
    assert known[first.name].tolist() == [0, 100]
    assert known[last.name].iloc[1] == 100 + len(features_of(Entity.USER)) - 1


def test_materialize_fills_ordinary_views(feast_store: "FeatureStore") -> None:
    feast_store.materialize(NOW - timedelta(days=5), NOW, feature_views=["user_daily"])
    asked = ["user_daily:user_lifetime_events", "user_daily:user_favourite_category"]
    rows = [{"user_id": "ada"}, {"user_id": "bob"}, {"user_id": "nobody"}]
    answer = feast_store.get_online_features(asked, rows).to_dict()
    assert answer["user_lifetime_events"] == [12, 3, None]
    assert answer["user_favourite_category"] == ["music", "cars", None]


def test_materialize_of_tile_views_says_who_writes_them(feast_store: "FeatureStore") -> None:
    with pytest.raises(Exception, match=r"user_activity are written by the tile path .* not by materialize or push"):
        feast_store.materialize(NOW - timedelta(days=5), NOW, feature_views=["user_activity"])


def test_pushed_rows_are_read_and_corrected(feast_store: "FeatureStore") -> None:
    row = {
        "item_id": "i9",
        "item_lifetime_impressions": 7,
        "item_lifetime_ctr": 0.5,
        "item_smoothed_ctr": 0.25,
        "item_age_days": 1.5,
        "event_timestamp": NOW,
        "created": NOW,
    }
    asked = ["item_daily:item_lifetime_impressions", "item_daily:item_lifetime_ctr"]
    for impressions in (7, 8):
        feast_store.push("item_daily_push", pd.DataFrame([{**row, "item_lifetime_impressions": impressions}]))
        answer = feast_store.get_online_features(asked, [{"item_id": "i9"}]).to_dict()
        assert answer["item_lifetime_impressions"] == [impressions]
    assert answer["item_lifetime_ctr"] == [0.5]
    older = {**row, "item_lifetime_impressions": 1, "event_timestamp": NOW - timedelta(days=1)}
    feast_store.push("item_daily_push", pd.DataFrame([older]))
    assert feast_store.get_online_features(asked, [{"item_id": "i9"}]).to_dict()["item_lifetime_impressions"] == [8]


def test_teardown_forgets_everything(feast_store: "FeatureStore", backend: Backend) -> None:
    """Last, since the module shares one store."""
    feast_store.teardown()
    assert backend.read_user("ada", NOW_MS).categories == ()
    assert backend.read_documents("millrace:user_daily", [b"any"]) == [None]


def test_directory_that_is_no_repo_is_refused(tmp_path: Path) -> None:
    from features.repo import FeatureRepoError, store_location

    with pytest.raises(FeatureRepoError, match=r"needed: feature_store\.yaml with an online_store"):
        store_location(tmp_path)
    (tmp_path / "feature_store.yaml").write_text("online_store: {type: sqlite, location: x}")
    with pytest.raises(FeatureRepoError, match="got online_store type 'sqlite'"):
        store_location(tmp_path)
