"""The real service in its own environment, on a tiny bundle, an SQLite store and a real broker."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from threading import Thread

import grpc
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from typer.testing import CliRunner

from features.backends import Backend, open_backend
from features.events import Event as UserEvent
from features.events import EventType, parse_event
from features.names import Topics
from features.slates import SlateRecord, parse_slate
from features.tile_rows import TileRow
from features.tiles import ITEM_TILES, USER_CATEGORY_TILES, TileFamily
from features.user_state import Interaction
from infra.cli import app
from infra.kafka import create_topics, end_offsets
from models.bundle import champion_id
from serving.client import RankingClient, RankingError
from tests.conftest import ROOT, wait_for
from tests.fuzz_requests import fire
from tests.ranking_service import (
    SERVE_PYTHON,
    Service,
    health,
    promoted,
    ranking_service,
    whole_slate,
    write_feature_repo,
)
from tests.serving_bundle import promote, tiny_items, write_tiny_bundle

NO_BROKER = "127.0.0.1:1"


def _values(family: TileFamily, **columns: int) -> tuple[int, ...]:
    return tuple(columns.get(column.name, 0) for column in family.columns)


def _click(backend: Backend, user_id: str, category: str, clicks: int, now_ms: int) -> None:
    """What the writer does for clicks of the current minute: one tile and the interactions."""
    minute_ms = now_ms // 60_000 * 60_000
    values = _values(USER_CATEGORY_TILES, clicks=clicks, last_clicks_ms=now_ms)
    tile = TileRow((user_id, category), 60_000, minute_ms, clicks, now_ms, values)
    interactions = [
        Interaction(
            event_id=f"{user_id}-{category}-{k}",
            event_type=EventType.CLICK,
            event_time_ms=now_ms - k,
            user_id=user_id,
            item_id=f"{category}{k:02d}",
            category=category,
            creator_id=f"{category}-0",
        )
        for k in range(clicks)
    ]
    backend.write_tiles(USER_CATEGORY_TILES.name, [tile], {})
    backend.write_interactions(interactions, {})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture(scope="module")
def module_topics(kafka_broker: str) -> Topics:
    own = {name: f"{name}.serving-test" for name in ("events", "items", "slates")}
    names = Topics(version="serving-test", **own)
    create_topics(kafka_broker, names)
    return names


@pytest.fixture(scope="module")
def service(kafka_broker: str, module_topics: Topics, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("serving")
    (directory / "rules.toml").write_text("")
    files = ("--rules", str(directory / "rules.toml"), "--experiments", str(directory / "experiments.toml"))
    files += ("--request-log", str(directory / "request-log"))
    with ranking_service(directory, kafka_broker, module_topics, *files) as started:
        with pytest.raises(RankingError) as refused, RankingClient(started.address) as client:
            client.recommend("u", timeout_s=0.5)
        assert refused.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        assert health(started.address) == health_pb2.HealthCheckResponse.NOT_SERVING
        promoted(started)
        yield started


@pytest.fixture
def client(service: Service) -> Iterator[RankingClient]:
    with RankingClient(service.address, timeout_s=5.0) as connected:
        yield connected


def test_an_unknown_user_gets_a_slate(service: Service, client: RankingClient) -> None:
    slate = whole_slate(client, "nobody", 10, device="phone", locale="pt-BR")
    assert len(slate.items) == 10 and [item.position for item in slate.items] == list(range(10))
    assert slate.bundle_id == champion_id(service.bundles) and slate.experiment_arm == "millrace"
    assert slate.newest_event_time_ms is None
    assert set(slate.items[0].head_probabilities) == {"click", "completion", "like", "share", "hide", "watch_fraction"}
    assert set(slate.stage_ms) == {"admit", "hydrate", "retrieve", "filter", "score", "rerank", "side_effects"}


def test_the_wire_contract_is_reflected(service: Service) -> None:
    with grpc.insecure_channel(service.address) as channel:
        known = ProtoReflectionDescriptorDatabase(channel)
        assert "millrace.ranking.v1.RankingService" in known.get_services()
        assert known.FindFileContainingSymbol("millrace.ranking.v1.Slate").name == "serving/ranking.proto"


def test_bad_input_names_the_field(client: RankingClient) -> None:
    for bad, field in ({"count": 501}, "count"), ({"arm": "nope"}, "experiment_arm"), ({"locale": "?"}, "locale"):
        with pytest.raises(RankingError, match=f"INVALID_ARGUMENT: {field}: got .* allowed: "):
            client.recommend("u", **bad)  # type: ignore[arg-type]


def test_rank_scores_the_callers_items(client: RankingClient) -> None:
    slate = client.rank("nobody", ["cats39", "art00", "nope", "art00"], explain=True)
    assert [item.item_id for item in slate.items] == ["art00", "cats39"]
    assert slate.unknown_item_ids == ("nope",)
    assert slate.items[0].score == pytest.approx(sum(slate.items[0].contributions.values()), abs=1e-6)
    assert not client.rank("nobody", []).items
    assert len(client.rank("nobody", [f"x{k}" for k in range(10_000)]).unknown_item_ids) == 10_000


def test_events_in_the_store_change_the_next_slate(service: Service, client: RankingClient) -> None:
    before = client.recommend("fan", 10, explore=False)
    now_ms = _now_ms()
    with open_backend(str(service.store)) as backend:
        _click(backend, "fan", "sport", 5, now_ms)
    after = client.recommend("fan", 10, explore=False)
    assert after.newest_event_time_ms == now_ms and (after.newest_event_age_ms or 0) < 60_000
    share = [sum(item.category == "sport" for item in slate.items) for slate in (before, after)]
    assert share[0] == 0 and share[1] >= 5, share
    assert not {f"sport{k:02d}" for k in range(5)} & {item.item_id for item in after.items}


def test_item_tiles_reach_the_features_within_seconds(
    service: Service, client: RankingClient, kafka_broker: str
) -> None:
    producer = Producer({"bootstrap.servers": kafka_broker})
    now_ms = _now_ms()
    start_ms = now_ms // ITEM_TILES.tile_ms * ITEM_TILES.tile_ms
    key = {"item_id": "song07", "category": "song", "creator_id": "song-1", "tile_ms": ITEM_TILES.tile_ms}
    names = [column.name for column in ITEM_TILES.columns]
    columns = dict(zip(names, _values(ITEM_TILES, clicks=8, impressions=10), strict=True))
    row = {**key, "tile_start_ms": start_ms, "n": 18, "max_event_time_ms": now_ms, **columns}
    producer.produce(service.topics.tiles("item"), json.dumps(row).encode(), json.dumps(key).encode())
    producer.flush(10)

    def clicks() -> float:
        return client.rank("nobody", ["song07"], explain=True).items[0].features["item_clicks_1h"]

    wait_for(lambda: clicks() == 8, "the item's tile in its features", timeout_s=10)
    found = client.recommend("nobody", 200, explore=False)
    assert any(item.item_id == "song07" and "trending" in item.sources for item in found.items)


def test_new_items_and_availability_hold_at_once(service: Service, client: RankingClient, kafka_broker: str) -> None:
    producer = Producer({"bootstrap.servers": kafka_broker})
    new = replace(tiny_items()[0], item_id="brand-new", category="fresh", creator_id="somebody")

    def send_and_wait(available: bool) -> float:
        item = replace(new, available=available)
        producer.produce(service.topics.items, item.to_json(), item.item_id.encode())
        producer.flush(10)
        sent_s = time.monotonic()

        def there() -> bool:
            return bool(client.recommend("nobody", 5, categories=["fresh"]).items) == available

        wait_for(there, f"available={available}", timeout_s=10, every_s=0.01)
        return time.monotonic() - sent_s

    send_and_wait(True)
    assert send_and_wait(False) < 2.0


def test_slates_land_in_kafka(service: Service, client: RankingClient, kafka_broker: str) -> None:
    sent = client.recommend("logged", 10)
    record = _slate_of(kafka_broker, service.topics.slates, sent.request_id)
    assert (record.user_id, record.bundle_id, record.arm) == ("logged", sent.bundle_id, "millrace")
    assert [item.item_id for item in record.items] == [item.item_id for item in sent.items]
    assert [item.propensity for item in record.items] == pytest.approx([item.propensity for item in sent.items])
    assert len(record.candidates) == sent.candidates_scored > 50
    assert "item_ctr_7d" in record.item_features(0) and "user_ctr_7d" in record.user_features
    wait_for(lambda: service.metric('ranking_slates_total{fate="sent"}') >= 1, "the count of sent slates")


def test_a_past_answer_is_explained(service: Service, client: RankingClient) -> None:
    sent = client.recommend("explained", 10)
    found = client.explain(sent.request_id, ["nowhere", sent.items[3].item_id])
    assert not found.full_features
    assert [(item.item_id, item.score, item.position) for item in found.slate.items] == [
        (item.item_id, item.score, item.position) for item in sent.items
    ]
    assert found.slate.bundle_id == sent.bundle_id and found.slate.next_page_token == sent.next_page_token
    first = found.slate.items[0]
    assert first.source_ranks and first.rank_by_score is not None
    assert sum(first.contributions.values()) == pytest.approx(first.score, abs=1e-6)
    assert [(trace.shown, trace.dropped_by) for trace in found.traces] == [(False, "retrieve"), (True, "")]
    for bad, code in (("no-such-request", "NOT_FOUND"), ("not an id", "INVALID_ARGUMENT")):
        with pytest.raises(RankingError, match=f"{code}: ") as refused:
            client.explain(bad)
        assert refused.value.code == code


def test_a_logged_request_replays_and_is_asked_why(
    service: Service, client: RankingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = client.recommend("replayed", 20, device="phone", explain=True)
    assert client.explain(sent.request_id).full_features
    monkeypatch.setenv("MILLRACE_VAR_DIR", str(service.bundles.parent))
    for arguments, words in (
        (["replay-request", sent.request_id], "bit for bit"),
        (["why", "replayed", sent.items[2].item_id], "was shown at position 3"),
    ):
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0 and words in done.output and sent.request_id in done.output, done.output
        assert "different" not in done.output and "close" not in done.output


def test_feedback_reaches_the_events_topic(service: Service, client: RankingClient, kafka_broker: str) -> None:
    now_ms = _now_ms()
    good = UserEvent(
        event_id="f1",
        event_type=EventType.IMPRESSION,
        event_time_ms=now_ms,
        user_id="feeder",
        item_id="art00",
        category="art",
        creator_id="art-0",
        request_id="r",
        position=0,
    )
    bad, other = replace(good, event_id="f2", position=None), replace(good, event_id="f3", user_id="else")
    taken = client.feedback([good, bad, other])
    assert taken.accepted == 2
    assert [(refusal.index, refusal.retry) for refusal in taken.refused] == [(1, False)]
    assert taken.refused[0].reason.startswith("missing:position: got nothing; allowed: ")
    found = {message.key(): parse_event(message.value() or b"", now_ms) for message in _all_of(kafka_broker, service)}
    assert found == {b"feeder": good, b"else": other}
    with pytest.raises(RankingError, match="INVALID_ARGUMENT: events: got '501 events'; allowed: at most 500"):
        client.feedback([good] * 501)
    assert service.metric('ranking_feedback_events_total{fate="accepted"}') == 2


def _all_of(bootstrap_servers: str, service: Service) -> list[Message]:
    """What the events topic holds up to its end of this moment."""
    topic = service.topics.events
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "test", "enable.auto.commit": False})
    try:
        ends = end_offsets(consumer, [topic])
        consumer.assign([TopicPartition(topic, partition, 0) for _, partition in ends])
        sent = sum(ends.values())
        found: list[Message] = []
        wait_for(lambda: found.extend(consumer.consume(100, 0.2)) or len(found) >= sent, f"{sent} records of {topic}")
        return found
    finally:
        consumer.close()


def _slate_of(bootstrap_servers: str, topic: str, request_id: str) -> SlateRecord:
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "test", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])

        def found() -> SlateRecord | None:
            for message in consumer.consume(500, 0.2):
                record = parse_slate(message.value() or b"")
                if record.request_id == request_id:
                    assert message.key() == record.user_id.encode()
                    return record
            return None

        got = wait_for(found, f"slate {request_id} on {topic}", timeout_s=20)
        assert isinstance(got, SlateRecord)
        return got
    finally:
        consumer.close()


def test_a_promotion_switches_and_a_corrupt_bundle_is_refused(service: Service, client: RankingClient) -> None:
    first, second = promoted(service), promoted(service, "second")
    wait_for(lambda: client.recommend("u").bundle_id == second, "the second bundle")
    corrupt = write_tiny_bundle(service.bundles, "corrupt")
    (corrupt / "ranker.onnx").write_bytes(b"rubbish")
    promote(service.bundles, corrupt.name)
    wait_for(lambda: service.metric("ranking_bundles_refused") >= 1, "the refusal", timeout_s=20)
    assert client.recommend("u").bundle_id == second
    promote(service.bundles, first)
    wait_for(lambda: client.recommend("u").bundle_id == first, "the roll-back")
    assert "ranker.onnx is altered" in service.log.read_text()


def test_pages_and_similar_items(client: RankingClient) -> None:
    first = client.recommend("scroller", 10)
    second = client.recommend("scroller", 10, page_token=first.next_page_token)
    assert len({item.item_id for page in (first, second) for item in page.items}) == 20
    with pytest.raises(RankingError, match=r"INVALID_ARGUMENT: page_token: got .* a token of the same user_id"):
        client.recommend("other", 10, page_token=first.next_page_token)
    like = client.similar("sport03", 5)
    assert {item.category for item in like.items} == {"sport"}
    assert "does not know the item" in client.similar("nope", 5).degraded["retrieve"]


def test_rules_are_followed_and_bad_ones_are_refused(service: Service, client: RankingClient) -> None:
    file = service.store.parent / "rules.toml"

    def write(text: str) -> None:
        (new := file.with_suffix(".new")).write_text(text)
        new.replace(file)

    write("[[pin]]\nname = 'song'\nitem = 'song20'\nposition = 0")
    wait_for(lambda: client.recommend("nobody").items[0].sources[0] == "pinned", "the pin")
    write("[[pin]]\nname = 'song'\nposition = 0")
    wait_for(lambda: service.metric("ranking_rules_refused") == 1, "the refusal")
    assert client.recommend("nobody").items[0].item_id == "song20"
    assert "goes on: rules" in service.log.read_text() and "'song', item: field required" in service.log.read_text()
    write("")
    wait_for(lambda: client.recommend("nobody").items[0].item_id != "song20", "the end of the pin")


def test_experiments_are_taken_logged_and_ended_while_it_runs(
    service: Service, client: RankingClient, kafka_broker: str
) -> None:
    champion, other = promoted(service), write_tiny_bundle(service.bundles, "arm").name
    file = service.bundles.parent / "experiments.toml"
    arms = [("control", ""), ("new", f'bundle = "{other}"\nvalue_weights = {{ click = 3 }}\n')]
    text = '[[experiments]]\nname = "e"\nsalt = "e"\n'
    for name, settings in arms:
        text += f'[[experiments.arms]]\nname = "{name}"\nshare = 0.5\n{settings}'
    file.write_text(f'{text}[shadow]\nbundle = "{other}"\nshare = 1\n')
    wait_for(lambda: client.recommend("u").experiment_arm.startswith("e/"), "the experiment")
    slates = [whole_slate(client, f"user-{k}", 3, explain=True) for k in range(30)]
    answered = {slate.experiment_arm: slate.bundle_id for slate in slates}
    assert answered == {"e/control": champion, "e/new": other}
    own = next(slate for slate in slates if slate.experiment_arm == "e/new").items[0]
    assert own.contributions["click"] == pytest.approx(3 * own.head_probabilities["click"])
    assert client.recommend("", 1).experiment_arm == "millrace"
    asked = client.recommend("user-0", 1, arm="e/new")
    assert _slate_of(kafka_broker, service.topics.slates, asked.request_id).arm == "e/new"
    wait_for(lambda: service.metric('ranking_shadow_total{fate="scored"}') > 0, "the challenger's scores")
    file.write_text(text.replace("0.5", "0.6"))
    wait_for(lambda: service.metric("ranking_experiments_refused") == 1, "the refusal")
    assert client.recommend("user-0", 1).experiment_arm == slates[0].experiment_arm
    file.unlink()
    wait_for(lambda: client.recommend("u").experiment_arm == "millrace", "the experiment's end")


def test_random_and_damaged_requests_get_the_right_status(tmp_path: Path, module_topics: Topics) -> None:
    """A hundred thousand of them are in tests/soak."""
    with ranking_service(tmp_path, None, module_topics, "--request-log", str(tmp_path / "requests")) as fuzzed:
        promoted(fuzzed)
        fire(fuzzed.address, seed=7, calls=600)
        assert fuzzed.process.poll() is None and "Traceback" not in fuzzed.log.read_text()


def test_metrics_count_what_was_asked(service: Service, client: RankingClient) -> None:
    before = service.metric('ranking_requests_total{code="OK",method="Recommend"}')
    client.recommend("u")
    answered = 'ranking_requests_total{code="OK",method="Recommend"}'
    wait_for(lambda: service.metric(answered) == before + 1, "the count, which follows the answer")
    assert service.metric("ranking_catalogue_items") >= 200


def test_too_many_at_once_are_shed(tmp_path: Path, module_topics: Topics) -> None:
    with ranking_service(tmp_path, None, module_topics, "--max-in-flight", "1", "--workers", "1") as busy:
        promoted(busy)
        with grpc.insecure_channel(busy.address) as channel:
            from serving import ranking_pb2 as pb
            from serving import ranking_pb2_grpc

            stub = ranking_pb2_grpc.RankingServiceStub(channel)
            request = pb.RecommendRequest(user_id="u", count=100)
            futures = [stub.Recommend.future(request, timeout=10) for _ in range(50)]
            codes = [future.code() for future in futures]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        shed = next(future for future in futures if future.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert int(dict(shed.trailing_metadata())["retry-after-ms"]) > 0


def test_without_store_and_kafka_it_serves_what_is_popular(tmp_path: Path, module_topics: Topics) -> None:
    with (
        ranking_service(tmp_path, NO_BROKER, module_topics, repo=False) as alone,
        RankingClient(alone.address, 5.0) as client,
    ):
        promoted(alone)
        slate = client.recommend("somebody", 10)
        assert len(slate.items) == 10
        assert "no feature repo" in slate.degraded["hydrate"]
        said = {"retrieve", "side_effects"}
        wait_for(lambda: said <= set(client.recommend("somebody", 10).degraded), "word that Kafka is away")
        write_feature_repo(tmp_path)
        wait_for(lambda: "hydrate" not in client.recommend("somebody", 10).degraded, "the store, once it is there")


def _keeps_asking(address: str, stopping: Flag, codes: list[str]) -> None:
    """Asks until the service's health says to go, as callers behind a balancer do; notes every status."""
    with RankingClient(address, 5.0) as client:
        while not stopping.is_set():
            try:
                codes.append("OK" if client.recommend("u", 20).items else "empty")
            except RankingError as error:
                codes.append(error.code)


def test_sigterm_fails_no_request(tmp_path: Path, module_topics: Topics) -> None:
    """Callers who never pause, and some whose requests are all under way, until health says that it ends."""
    with ranking_service(tmp_path, None, module_topics) as ending:
        promoted(ending)
        stopping, codes = Flag(), [[] for _ in range(4)]
        callers = [Thread(target=_keeps_asking, args=(ending.address, stopping, got)) for got in codes]
        for caller in callers:
            caller.start()
        with grpc.insecure_channel(ending.address) as channel:
            from serving import ranking_pb2 as pb
            from serving import ranking_pb2_grpc

            stub = ranking_pb2_grpc.RankingServiceStub(channel)
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
            wait_for(lambda: all(len(got) >= 20 for got in codes), "every caller's answers")
            items = [item.item_id for item in tiny_items()]
            under_way = [stub.Rank.future(pb.RankRequest(user_id="u", item_ids=items), timeout=5) for _ in range(8)]
            ending.process.send_signal(signal.SIGTERM)
            before = [len(got) for got in codes]
            while next(watched).status == health_pb2.HealthCheckResponse.SERVING:
                continue
            wait_for(lambda: all(len(got) > n for got, n in zip(codes, before, strict=True)), "answers after SIGTERM")
            stopping.set()
            assert {future.code() for future in under_way} == {grpc.StatusCode.OK}
        for caller in callers:
            caller.join(10)
        assert {code for got in codes for code in got} == {"OK"}
        assert ending.process.wait(20) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "0"], "allowed: a port from 1 to 65535"),
        (["--bundles", "pyproject.toml"], "which is a file; allowed: a directory"),
        (["--workers", "none"], "allowed: a whole number from 1"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_wrong_flags_end_in_one_sentence(flags: list[str], words: str) -> None:
    good = ["--port", "5000", "--bundles", "var/none", "--feature-repo", "var/none"]
    done = subprocess.run(
        [SERVE_PYTHON, "-m", "serving.server", *good, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_busy_port_ends_in_one_sentence(service: Service) -> None:
    port = service.address.split(":")[1]
    command = [SERVE_PYTHON, "-m", "serving.server", "--port", port, "--bundles", "var/x", "--feature-repo", "var/x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken" in done.stderr and "Traceback" not in done.stderr
