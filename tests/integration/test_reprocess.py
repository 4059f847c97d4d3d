"""`millrace reprocess` on a real stack (broker, stream jobs, writers): readers see one answer before, during and after.

The tests of a module share one stack and build on one another, since a stream job takes half a minute to start.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import confluent_kafka as kafka
import pytest
from confluent_kafka.admin import AdminClient  # type: ignore[attr-defined]

from features import specs
from features.backends import Backend, open_backend
from features.events import Event, EventType
from features.names import MS_PER_DAY, Topics
from features.specs import Entity, features_of
from features.tile_rows import TileRow
from features.tiles import DAY_TILE_MS, FAMILIES, TileFamily
from infra import stack as stack_module
from infra.accounts import read_accounts
from infra.kafka import derived_topics
from infra.programs import topics
from infra.settings import ROOT, Settings, load_settings
from infra.stack import Stack
from infra.streams import saved_streams
from streaming.producer import Producer
from streaming.records import record_of
from tests.conftest import TEST_STACK, wait_for

pytestmark = pytest.mark.timeout(600)
HASH = specs.version()
PROGRAMS = ["flink", "writer"]
USERS, ITEMS, EVENTS = 6, 8, 600
OLD_USERS, OLD_EACH = 8, 3
DAY_ROW_AGE_MS = 10 * MS_PER_DAY
"""Before what the store keeps of streamed tiles: only a day tile speaks of that day."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _event(event_id: str, time_ms: int, user_id: str, item: int, kind: EventType = EventType.CLICK) -> Event:
    return Event(
        event_id=event_id,
        event_type=kind,
        event_time_ms=time_ms,
        user_id=user_id,
        item_id=f"i{item}",
        category=f"c{item % 3}",
        creator_id=f"k{item % 2}",
    )


def _history(now_ms: int) -> list[Event]:
    rng = random.Random(3)
    kinds = (EventType.CLICK, EventType.LIKE, EventType.SHARE, EventType.HIDE, EventType.FOLLOW)
    return [
        _event(
            f"e{number}",
            now_ms - rng.randrange(2 * MS_PER_DAY),
            f"u{rng.randrange(USERS)}",
            rng.randrange(ITEMS),
            rng.choice(kinds),
        )
        for number in range(EVENTS)
    ]


def _old_events(now_ms: int) -> list[Event]:
    """Of users, items and a category of their own, and older than any tile that the stream's are read for."""
    time_ms = now_ms - DAY_ROW_AGE_MS
    return [
        replace(_event(f"old{number}", time_ms + number, f"o{number % OLD_USERS}", number), category="cold")
        for number in range(OLD_USERS * OLD_EACH)
    ]


def _send(settings: Settings, events: list[Event]) -> None:
    with Producer(settings.bootstrap_servers, topics().events, linger_ms=0) as producer:
        producer.send(record_of(event, event.event_time_ms) for event in events)
        producer.flush()


def _send_day_tiles(settings: Settings, version: str, now_ms: int) -> None:
    """A day's rows on the tile topics, as batch sends them."""
    producer = kafka.Producer({"bootstrap.servers": settings.bootstrap_servers})
    start_ms = (now_ms - DAY_ROW_AGE_MS) // DAY_TILE_MS * DAY_TILE_MS
    keys = {"user_category": [(f"u{u}", "c1") for u in range(USERS)], "item": [(f"i{i}", "c1", "k1") for i in range(3)]}
    for family in FAMILIES:
        for number, values in enumerate(keys[family.name], start=5):
            key = dict(zip(family.key_fields, values, strict=True)) | {
                "tile_ms": DAY_TILE_MS,
                "tile_start_ms": start_ms,
            }
            counts = {column.name: number if column.name == "clicks" else 0 for column in family.columns}
            row = key | {"n": number, "max_event_time_ms": start_ms + number} | counts
            text = {name: json.dumps(part, separators=(",", ":")) for name, part in (("key", key), ("value", row))}
            producer.produce(Topics(version=version).tiles(family.name), key=text["key"], value=text["value"])
    assert producer.flush(30) == 0


def _rows(store: Backend, family: TileFamily) -> set[TileRow]:
    tiles = store.read_tile_rows(family.name, 0)
    rows = tiles.rows
    numbers = zip(rows.tile_ms_T, rows.tile_start_T, rows.n_T, tiles.max_event_time_T, strict=True)
    return {
        TileRow(tiles.keys[k], *map(int, row), tuple(values))
        for k, row, values in zip(rows.key_T, numbers, rows.values_TK.tolist(), strict=True)
    }


def _values(store: Backend, instant_ms: int) -> list[object]:
    """Everything that readers can ask about the history, at one instant."""
    answer: list[object] = []
    for user in range(USERS):
        state = store.read_user(f"u{user}", instant_ms)
        by_category = dict(zip(state.categories, state.category_features_KF.tolist(), strict=True))
        sets = (state.history, state.seen, state.hidden, state.followed, state.newest_event_ms)
        answer.append((state.features_F.tolist(), by_category, *sets))
    for entity, keys in (
        (Entity.ITEM, [(f"i{item}",) for item in range(ITEMS)]),
        (Entity.CATEGORY, [("c0",), ("c1",), ("c2",)]),
        (Entity.CREATOR, [("k0",), ("k1",)]),
    ):
        read = store.read_entity(entity, keys, instant_ms)
        answer.append((read.values_GF.tolist(), read.newest_event_ms_G.tolist()))
    return answer


def _clicks(store: Backend, user_id: str, window: str = "24h") -> int:
    place = [feature.name for feature in features_of(Entity.USER)].index(f"user_clicks_{window}")
    return int(store.read_user(user_id, _now_ms()).features_F[place])


class Watcher(threading.Thread):
    """A reader that was there before the switch and stays: asks all the time, keeps what it was told."""

    def __init__(self, settings: Settings, ask: Callable[[Backend], object]) -> None:
        super().__init__(daemon=True)
        self.answers: list[object] = []
        self.versions: list[str] = []
        self._settings = settings
        self._ask = ask
        self._done = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with open_backend(self._settings.online_store_url) as store:
                while not self._done.wait(0.1):
                    answer = self._ask(store)
                    if not self.answers or answer != self.answers[-1]:
                        self.answers.append(answer)
                    if not self.versions or store.version != self.versions[-1]:
                        self.versions.append(store.version)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> "Watcher":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join(30)


@contextmanager
def _reprocessing(settings: Settings, log: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "reprocess", *flags],
            cwd=ROOT,
            env={**os.environ, **settings.environment(), "PYTHONUNBUFFERED": "1"},
            stdout=out,
            stderr=out,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(30)


def _reprocess(settings: Settings, log: Path, *flags: str, ends_with: int = 0) -> str:
    with _reprocessing(settings, log, *flags) as process:
        code = process.wait(400)
    said = log.read_text()
    assert code == ends_with, said
    return said


def _programs(stack: Stack) -> dict[str, str]:
    """Every stream job and writer that the stack has, with its state."""
    mine = ("flink", "writer")
    return {program.name: program.state for program in stack.status() if program.name.startswith(mine)}


def _seed(stack: Stack, version: str) -> int:
    """Sends the history and waits until the version has all of it; returns the instant to read at."""
    settings, now_ms = stack.settings, _now_ms()
    _send_day_tiles(settings, version, now_ms)
    _send(settings, _old_events(now_ms))
    _send(settings, _history(now_ms))
    day_rows = {"user_category": USERS, "item": 3}

    def stored() -> bool:
        with open_backend(settings.online_store_url, version) as store:
            seen = sum(len(store.read_user(f"u{user}", now_ms).history) for user in range(USERS))
            rows = {family.name: _rows(store, family) for family in FAMILIES}
        counted = {name: sum(row.n for row in of if row.tile_ms != DAY_TILE_MS) for name, of in rows.items()}
        days = {name: sum(row.tile_ms == DAY_TILE_MS for row in of) for name, of in rows.items()}
        return counted == dict.fromkeys(counted, EVENTS) and days == day_rows and seen > USERS

    wait_for(stored, "the history in the store", timeout_s=120, every_s=0.5)
    return now_ms


@pytest.fixture(scope="module")
def stack(free_port_base: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = load_settings(
        var_dir=tmp_path_factory.mktemp("reprocess") / "var",
        port_base=free_port_base,
        kafka_heap_mb=256,
        **TEST_STACK,
    )
    with Stack(settings) as running:
        running.start(lambda _: None, PROGRAMS)
        yield running


@pytest.fixture(scope="module")
def instant_ms(stack: Stack) -> int:
    return _seed(stack, HASH)


@pytest.fixture
def before(stack: Stack, instant_ms: int) -> list[object]:
    with open_backend(stack.settings.online_store_url) as store:
        return _values(store, instant_ms)


class Traffic(threading.Thread):
    """Sends clicks of a user, items and a category of their own, all the time; `sent` counts them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._settings = settings
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.2):
            _send(self._settings, [_live_event(f"live{self.sent + k}") for k in range(5)])
            self.sent += 5

    def __enter__(self) -> "Traffic":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join(30)


def _live_event(event_id: str) -> Event:
    return replace(_event(event_id, _now_ms(), "live", 0), item_id="live", category="live", creator_id="live")


def test_killed_half_way_and_run_again_under_load(
    stack: Stack, instant_ms: int, before: list[object], tmp_path: Path
) -> None:
    settings, rebuilt, log = stack.settings, f"{HASH}r2", tmp_path / "log"
    ready = f"flink-{rebuilt}: ready"
    with (
        Watcher(settings, lambda store: _values(store, instant_ms)) as history,
        Watcher(settings, lambda store: _clicks(store, "live")) as live,
    ):
        with Traffic(settings) as traffic:
            with _reprocessing(settings, log) as process:
                wait_for(lambda: process.poll() is not None or ready in log.read_text(), "the new job", timeout_s=200)
                assert process.poll() is None, log.read_text()
                process.kill()
            with open_backend(settings.online_store_url) as store:
                assert store.version == HASH
            assert _programs(stack)["flink"] == _programs(stack)["writer"] == "RUNNING"

            said = _reprocess(settings, log, "--keep-old")
            assert f"flink-{rebuilt}: already there" in said
            assert "9 day tiles copied" in said
        wait_for(lambda: live.answers[-1] == traffic.sent, "the last live event", timeout_s=30)
    assert history.error is live.error is None
    assert history.answers == [before], "a reader was told something else on the way"
    assert history.versions == live.versions == [HASH, rebuilt]
    counts = [int(str(answer)) for answer in live.answers]
    assert counts == sorted(counts), "a reader saw events vanish at the switch"
    assert _programs(stack) == {f"flink-{rebuilt}": "RUNNING", f"writer-{rebuilt}": "RUNNING"}
    with (
        open_backend(settings.online_store_url, HASH) as old,
        open_backend(settings.online_store_url, rebuilt) as new,
    ):
        for family in FAMILIES:
            assert _rows_of_history(new, family) == _rows_of_history(old, family) != set()
        assert _values(new, instant_ms) == _values(old, instant_ms) == before
        assert all(account.balances for account in read_accounts(new, settings.bootstrap_servers, topics().events))
    assert (settings.flink_checkpoints_dir / HASH).is_dir(), "--keep-old"


def _rows_of_history(store: Backend, family: TileFamily) -> set[TileRow]:
    return {row for row in _rows(store, family) if "live" not in row.key}


@pytest.mark.soak
def test_the_stack_comes_up_again_with_the_version_in_use(stack: Stack) -> None:
    rebuilt = f"{HASH}r2"
    with open_backend(stack.settings.online_store_url) as store:
        clicks = _clicks(store, "live")
    stack.stop()
    stack.start(lambda _: None, PROGRAMS)
    assert _programs(stack).keys() >= {"flink", "writer"}
    assert [stream.version for stream in saved_streams(stack.settings)] == [rebuilt]
    _send(stack.settings, [_live_event("after")])
    with open_backend(stack.settings.online_store_url) as store:
        wait_for(lambda: _clicks(store, "live") == clicks + 1, "an event after the restart", timeout_s=60)


def _ingest(settings: Settings, submit: list[str]) -> None:
    """Events into the lake, as the DAG does it."""
    places = ["--lake", str(settings.lake_dir), "--checkpoints", str(settings.spark_checkpoints_dir)]
    job = [*submit, str(ROOT / "batch" / "lake_ingest.py"), "--bootstrap-servers", settings.bootstrap_servers, *places]
    done = subprocess.run(job, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout


def _delete_before(settings: Settings, first: int) -> None:
    """What retention does: every partition of the events topic begins at this offset from now on."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    partitions = admin.list_topics(topics().events).topics[topics().events].partitions
    places = [kafka.TopicPartition(topics().events, partition, first) for partition in partitions]
    for done in admin.delete_records(places).values():
        assert done.result(timeout=30).low_watermark == first


def test_a_refused_checkpoint_is_rebuilt_from_the_lake_while_the_stack_is_down(
    stack: Stack, before: list[object], instant_ms: int, submit: list[str], tmp_path: Path
) -> None:
    settings, rebuilt, log = stack.settings, f"{HASH}r3", tmp_path / "log"
    old_users = [f"o{user}" for user in range(OLD_USERS)]
    with open_backend(settings.online_store_url) as store:
        clicks = _clicks(store, "live")
        histories = [store.read_user(user, instant_ms).history for user in old_users]
        assert [_clicks(store, user, "30d") for user in old_users] == [0] * OLD_USERS, "batch has not run yet"
    assert [len(history) for history in histories] == [OLD_EACH] * OLD_USERS
    assert "run the lake_ingest DAG first" in _reprocess(settings, log, "--source", "lake", ends_with=1)
    _ingest(settings, submit)
    _delete_before(settings, 3)
    assert "take --source lake" in _reprocess(settings, log, ends_with=1)

    stack.stop()
    (settings.flink_checkpoints_dir / f"{HASH}r2" / "plan").write_text("another plan\n")
    said = _reprocess(settings, log, "--source", "lake")
    assert f"building {rebuilt} beside {HASH}r2" in said
    with open_backend(settings.online_store_url) as store:
        assert (store.version, _clicks(store, "live")) == (rebuilt, clicks)
        assert [store.read_user(user, instant_ms).history for user in old_users] == histories
        assert [_clicks(store, user, "30d") for user in old_users] == [OLD_EACH] * OLD_USERS, "from the lake"
        assert _values(store, instant_ms) == before
    _assert_gone(settings, HASH, f"{HASH}r2")

    _delete_before(settings, 50)
    assert "give the topic a longer retention.ms" in _reprocess(settings, log, "--source", "lake", ends_with=1)


def _assert_gone(settings: Settings, *versions: str) -> None:
    left = AdminClient({"bootstrap.servers": settings.bootstrap_servers}).list_topics(timeout=10).topics
    for version in versions:
        assert not set(derived_topics(Topics(version=version))) & left.keys()
        assert not (settings.flink_checkpoints_dir / version).exists()
        with open_backend(settings.online_store_url, version) as store:
            assert all(not _rows(store, family) for family in FAMILIES)
            assert store.offsets(Topics(version=version).interactions) == {}


@pytest.mark.soak
def test_a_changed_definition_is_built_under_its_own_hash(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs has another hash than this code, as after an upgrade."""
    stack.stop()
    settings = load_settings(
        var_dir=tmp_path / "var",
        port_base=stack.settings.port_base,
        kafka_heap_mb=256,
        **TEST_STACK,
    )
    with Stack(settings) as other:
        monkeypatch.setattr(stack_module, "version_to_run", lambda _: "0ddba11")
        other.start(lambda _: None, PROGRAMS)
        seeded_ms = _seed(other, "0ddba11")
        said = _reprocess(settings, tmp_path / "log")
        assert f"day tiles of {HASH} are written by the next run of the offline_features DAG" in said
        assert "rows, checkpoints and topics of 0ddba11 are deleted" in said
        assert _programs(other) == {f"flink-{HASH}": "RUNNING", f"writer-{HASH}": "RUNNING"}
        with open_backend(settings.online_store_url) as store:
            assert store.version == HASH
            counted = sum(row.n for row in _rows(store, FAMILIES[1]))
            assert counted == EVENTS
            assert len(store.read_user("u0", seeded_ms).history) > 1
            assert store.version_for("0ddba11") == "0ddba11r2", "its name is used up"
