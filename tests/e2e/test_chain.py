"""The whole chain on one running stack: events in, exact features out, a trained bundle, a changed slate.

The tests share a small world that was seeded and trained once; they only read, or act for users of their own.
"""

import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from deltalake import DeltaTable

from features.backends import open_backend
from features.events import Event, EventType, parse_event
from features.items import Item
from features.names import LakeTables
from features.specs import Entity, features_of
from infra.airflow import DAG_IDS, WATCH_DAG_IDS
from infra.airflow_client import now
from infra.demo.accounts import count_records
from infra.demo.probes import Prober
from infra.demo.world_scenario import WorldScenario
from infra.programs import PROGRAM_NAMES, topics
from infra.settings import ROOT
from serving.client import RankingClient
from streaming.producer import Producer
from streaming.records import COUNTED_KINDS, Record, record_of
from tests.conftest import wait_for
from tests.ranking_service import whole_slate

pytestmark = pytest.mark.timeout(1_500)  # the first test waits for the whole chain
MINUTE_MS, DAY_MS = 60_000, 86_400_000


@pytest.fixture(scope="module")
def client(scenario: tuple[WorldScenario, list[Record]]) -> Iterator[RankingClient]:
    with scenario[0].chain.client() as client:
        yield client


def test_every_dag_ran_and_succeeded(scenario: tuple[WorldScenario, list[Record]]) -> None:
    states = {run["dag_id"]: run["state"] for run in scenario[0].chain.dag_runs()}
    assert states == dict.fromkeys(DAG_IDS, "success")


def test_batch_work_gives_way_to_the_job_and_that_to_the_rest(scenario: tuple[WorldScenario, list[Record]]) -> None:
    settings, own = scenario[0].chain.settings, psutil.Process().nice()
    programs = {status.name: psutil.Process(status.pid) for status in scenario[0].chain.stack.status()}
    above = {name: program.nice() - own for name, program in programs.items()}
    asked = {"flink": settings.flink_niceness, "airflow-scheduler": settings.airflow_niceness}
    assert above == dict.fromkeys(programs, 0) | asked
    jvm = next(child for child in programs["flink"].children(recursive=True) if child.name() == "java")
    assert jvm.nice() - own == settings.flink_niceness


def test_the_accounts_balance(scenario: tuple[WorldScenario, list[Record]]) -> None:
    world, records = scenario
    found = world.chain.settle(world.world.ledger)
    assert found["events_lost"] == found["events_unknown"] == 0
    assert found["events_in_lake"] == found["events_produced"]
    assert found["duplicates_removed"] == found["duplicates_sent"] > 0
    assert found["dead_letters"] == found["dead_letters_in_lake"] == found["malformed_sent"] > 0
    assert found["too_late"] == found["too_late_sent"] > 0
    parts = found["events_in_lake"] + found["duplicates_removed"] + found["dead_letters_in_lake"]
    assert parts == found["records_sent"] == len(records)


def brute_force(events: list[Event], instant_ms: int) -> dict[str, float]:
    """Some user features by going through the events, by no code of the project's."""
    minute = instant_ms // MINUTE_MS * MINUTE_MS
    day = instant_ms // DAY_MS * DAY_MS

    def since(start_ms: int, *kinds: str) -> list[Event]:
        return [event for event in events if event.event_time_ms >= start_ms and event.event_type in kinds]

    clicks_30d, shown_30d = since(day - 30 * DAY_MS, "click"), since(day - 30 * DAY_MS, "impression")
    watches_7d = since(day - 7 * DAY_MS, "watch")
    return {
        "user_clicks_24h": len(since(minute - DAY_MS, "click")),
        "user_clicks_7d": len(since(day - 7 * DAY_MS, "click")),
        "user_clicks_30d": len(clicks_30d),
        "user_impressions_7d": len(since(day - 7 * DAY_MS, "impression")),
        "user_ctr_30d": len(clicks_30d) / len(shown_30d) if shown_30d else 0.0,
        "user_watch_ms_7d": sum(event.watch_ms or 0 for event in watches_7d),
        "user_likes_30d": len(since(day - 30 * DAY_MS, "like")),
    }


def test_online_features_equal_a_brute_force_over_the_events(scenario: tuple[WorldScenario, list[Record]]) -> None:
    world, records = scenario
    by_user: dict[str, list[Event]] = {}
    for record in records:
        if record.kind in COUNTED_KINDS:
            event = parse_event(record.value, record.arrival_ms)
            by_user.setdefault(event.user_id, []).append(event)
    names = [feature.name for feature in features_of(Entity.USER)]
    instant_ms = world.chain.phases.now_ms()
    users = random.Random(5).sample(sorted(by_user), 60)
    with open_backend(world.chain.settings.online_store_url) as backend:
        for user_id in users:
            state = backend.read_user(user_id, instant_ms)
            served = dict(zip(names, state.features_F.tolist(), strict=True))
            expected = brute_force(by_user[user_id], instant_ms)
            assert {name: served[name] for name in expected} == pytest.approx(expected, abs=1e-9), user_id
            newest = max(event.event_time_ms for event in by_user[user_id])
            assert state.newest_event_ms == newest


def test_the_bundle_that_serves_is_the_one_promoted(
    scenario: tuple[WorldScenario, list[Record]], client: RankingClient
) -> None:
    bundle_id, metrics = scenario[0].chain.champion()
    slate = whole_slate(client, scenario[0].world.live_users(10)[0].user_id)
    assert slate.bundle_id == bundle_id
    assert len({item.item_id for item in slate.items}) == 10
    assert metrics


def test_a_slate_follows_five_events_in_a_new_category(
    scenario: tuple[WorldScenario, list[Record]], client: RankingClient
) -> None:
    world = scenario[0]
    servers, phases = world.chain.settings.bootstrap_servers, world.chain.phases
    known = [profile.user_id for profile in world.world.live_users(40) if not profile.is_new]
    with Producer(servers, topics().events, linger_ms=0) as producer:
        prober = Prober(client=client, producer=producer, ledger=world.world.ledger, now_ms=phases.now_ms)
        changes: list[dict[str, Any]] = [prober.taste_change(world.world, user_id) for user_id in known[:3]]
    before = sum(change["before_share"] for change in changes)
    after = sum(change["after_share"] for change in changes)
    assert after >= before + 0.3, changes


def test_seen_items_do_not_come_back(scenario: tuple[WorldScenario, list[Record]], client: RankingClient) -> None:
    world = scenario[0]
    clone = world.world.clone_user(world.world.live_users(10)[0].user_id, "seen")
    with open_backend(world.chain.settings.online_store_url) as backend:
        seen = backend.read_user(clone.profile.user_id, world.chain.phases.now_ms()).seen
    slate = client.recommend(clone.profile.user_id, count=50)
    assert not seen.keys() & {item.item_id for item in slate.items}


def millrace(scenario: tuple[WorldScenario, list[Record]], *arguments: str) -> str:
    """What the command prints, run as a user of this stack would."""
    command = [str(ROOT / ".venv" / "app" / "bin" / "millrace"), *arguments]
    environment = {**os.environ, **scenario[0].chain.settings.environment(), "COLUMNS": "160"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_shows_the_running_stack(scenario: tuple[WorldScenario, list[Record]]) -> None:
    shown = millrace(scenario, "status")
    assert shown.count("RUNNING") == len(PROGRAM_NAMES), shown
    assert "answers from now on" in millrace(scenario, "logs", "serving", "--lines", "200")
    assert "already there" in millrace(scenario, "up")


def test_the_command_shows_features_and_a_slate(scenario: tuple[WorldScenario, list[Record]]) -> None:
    world = scenario[0].world
    user_id = next(profile.user_id for profile in world.live_users(20) if not profile.is_new)
    assert "user_clicks_30d" in millrace(scenario, "features", "user", user_id)
    assert "item_ctr_30d" in millrace(scenario, "features", "item", world.items()[0].item_id)
    slate = millrace(scenario, "recommend", user_id, "--count", "5")
    assert sum(item.item_id in slate for item in world.items()) == 5, slate


def test_replayed_events_reach_the_store(scenario: tuple[WorldScenario, list[Record]], tmp_path: Path) -> None:
    world = scenario[0]
    item = world.world.items()[0]
    now_ms = world.chain.phases.now_ms()
    events = [
        Event(
            event_id=f"replayed-{number}",
            event_type=EventType.CLICK,
            event_time_ms=now_ms + number,
            user_id="replayed-user",
            item_id=item.item_id,
            category=item.category,
            creator_id=item.creator_id,
        )
        for number in range(3)
    ]
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"\n".join(event.to_json() for event in events) + b"\n")
    assert "sent 3 events" in millrace(scenario, "replay", str(file))
    world.world.ledger.note(record_of(event, now_ms) for event in events)

    def stored() -> bool:
        with open_backend(world.chain.settings.online_store_url) as backend:
            return len(backend.read_user("replayed-user", world.chain.phases.now_ms()).history) == 3

    wait_for(stored, "the replayed events in the online store", timeout_s=30)


def test_the_ledger_accounts_for_every_record(scenario: tuple[WorldScenario, list[Record]]) -> None:
    """Also for what the world sends broken, twice and too late."""
    shown = millrace(scenario, "ledger").splitlines()
    names, figures = shown[0].split(), [int(text.replace(",", "")) for text in shown[-1].split()[1:]]
    total = dict(zip(names[1:], figures, strict=True))
    outcomes = [total[name] for name in ("counted", "duplicate", "too_late", "dead")]
    assert min(outcomes) > 0
    assert sum(outcomes) == total["produced"]
    assert (total["missing"], total["twice"]) == (0, 0)


@pytest.mark.soak
def test_what_was_served_is_what_training_computes_and_the_monitor_has_seen_it(
    scenario: tuple[WorldScenario, list[Record]], client: RankingClient
) -> None:
    """`feature_parity` and `monitor` in Airflow, on slates of the service: every settled value is equal."""
    chain, world = scenario[0].chain, scenario[0].world
    servers = chain.settings.bootstrap_servers
    users = [profile.user_id for profile in world.live_users(60) if not profile.is_new]
    sent = count_records(servers, topics().slates)
    for user_id in users:  # a busy machine may cut one short, and then it is not judged
        whole_slate(client, user_id)
    wait_for(lambda: count_records(servers, topics().slates) >= sent + len(users), "the slates in Kafka")
    # The lake must reach beyond the slates, and hold them.
    after = Event(
        event_id="after-the-slates",
        event_type=EventType.CLICK,
        event_time_ms=chain.phases.now_ms(),
        user_id="after-the-slates",
        **dict(zip(("item_id", "category", "creator_id"), _ids(world.items()[0]), strict=True)),
    )
    with Producer(servers, topics().events, linger_ms=0) as producer:
        producer.send([record_of(after, chain.phases.now_ms())])
    since = now()
    chain.airflow.set_paused(DAG_IDS[1:], paused=True)
    chain.airflow.set_paused(WATCH_DAG_IDS, paused=False)
    chain.airflow.trigger(DAG_IDS[0])
    chain.airflow.wait_for_chain([DAG_IDS[0], "feature_parity"], since, chain.phases.say, 600)
    parity = json.loads(chain.settings.parity_report.read_text())
    assert parity["slates"]["read"] >= len(users), parity["slates"]
    for entity in Entity:
        assert parity["rows"][entity]["settled"] >= 10, parity["rows"]
    wrong = [feature for feature in parity["features"] if feature["mismatches"]]
    assert not wrong, wrong

    def ended() -> list[str]:
        runs = [run for run in chain.airflow.runs(since) if run.dag_id == "monitor"]
        return [run.state for run in runs if run.state in ("success", "failed")]

    (state,) = wait_for(ended, "the monitor's run", 300)
    report = json.loads(chain.settings.monitor_report.read_text())
    assert report["bundle_id"] == chain.champion()[0]
    assert state == ("failed" if report["alerts"] else "success"), "an alert fails the run, and nothing else does"
    assert report["checks"]["freshness"]["rows"] >= 20, "answers to users with events"
    assert report["rollback"]["went_to"] is None


@pytest.mark.soak
def test_examples_of_served_slates_have_what_the_ranker_read(
    scenario: tuple[WorldScenario, list[Record]], client: RankingClient
) -> None:
    """`training_examples` in Airflow, on slates of the service whose items were seen."""
    chain, world = scenario[0].chain, scenario[0].world
    users = [profile.user_id for profile in world.live_users(40) if not profile.is_new]
    slates = [client.recommend(user_id) for user_id in users]
    shown = [
        Event(
            event_id=f"shown-{slate.request_id}-{item.position}",
            event_type=EventType.IMPRESSION,
            event_time_ms=chain.phases.now_ms(),
            user_id=user_id,
            request_id=slate.request_id,
            position=item.position,
            item_id=item.item_id,
            category=item.category,
            creator_id=item.creator_id,
        )
        for user_id, slate in zip(users, slates, strict=True)
        for item in slate.items
    ]
    with Producer(chain.settings.bootstrap_servers, topics().events, linger_ms=0) as producer:
        producer.send([record_of(event, chain.phases.now_ms()) for event in shown])
    chain.airflow.set_paused([*DAG_IDS[1:], *WATCH_DAG_IDS], paused=True)
    chain.airflow.set_paused(["training_examples"], paused=False)
    for dag_id in (DAG_IDS[0], "training_examples"):
        since = now()
        chain.airflow.trigger(dag_id)
        chain.airflow.wait_for_chain([dag_id], since, chain.phases.say, 600)
    table = DeltaTable(str(chain.settings.lake_dir / LakeTables().examples)).to_pyarrow_table(
        columns=["request_id", "event_id", "feature_source", "recomputed_because"]
    )
    told = {row["event_id"]: row for row in table.to_pylist()}
    sources = Counter(told[event.event_id]["feature_source"] for event in shown)
    assert sources == {"served": len(shown)}, [told[event.event_id] for event in shown[:3]]
    served = {row["request_id"] for row in told.values() if row["feature_source"] == "served"}
    assert served == {slate.request_id for slate in slates}
    comparison = json.loads(chain.settings.examples_comparison.read_text())
    assert comparison["slates"]["read"] == len(slates)
    assert comparison["values"] > 0 and comparison["equal_share"] == 1, comparison["worst"]


def _ids(item: Item) -> tuple[str, str, str]:
    return item.item_id, item.category, item.creator_id


def test_the_stack_writes_below_its_own_folder_only(scenario: tuple[WorldScenario, list[Record]]) -> None:
    var_dir: Path = scenario[0].chain.settings.var_dir
    assert {path.name for path in var_dir.iterdir()} >= {"kafka", "lake", "bundles", "logs", "airflow"}
