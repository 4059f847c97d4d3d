"""The synthetic world: reproducible, honest about its faults, and closed about its truth."""

import ast
import json
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from features.events import FIELDS, ContractError, Event, EventType, is_too_late, parse_event
from features.items import Item, parse_item
from features.names import MS_PER_DAY
from streaming.records import COUNTED_KINDS, DUPLICATE_KINDS, REFUSED_KINDS, Ledger, Record, RecordKind, uuid7
from streaming.world import World, WorldParameters
from streaming.world.knower import Knower

ROOT = Path(__file__).resolve().parents[2]
NOW_MS = 1_760_000_000_000
CONTRACT = {field.name for field in FIELDS}


def small(seed: int = 3) -> WorldParameters:
    """A world of a few thousand events."""
    default = WorldParameters()
    return default.model_copy(
        update={
            "seed": seed,
            "catalogue": default.catalogue.model_copy(update={"items": 600}),
            "population": default.population.model_copy(update={"users": 250, "live_only_users": 40}),
        }
    )


@cache
def world() -> World:
    """One world for the tests that only read it."""
    built = World(small(), now_ms=NOW_MS)
    assert history(built)
    return built


def history(built: World) -> list[Record]:
    return list(built.history())


@cache
def records() -> tuple[Record, ...]:
    return tuple(history(World(small(), now_ms=NOW_MS)))


@cache
def valid_events() -> tuple[tuple[Event, Record], ...]:
    kinds = COUNTED_KINDS | {RecordKind.TOO_LATE}
    return tuple((parse_event(r.value, r.arrival_ms), r) for r in records() if r.kind in kinds)


def test_default_parameters_are_golden(matches_golden) -> None:
    matches_golden("world_parameters.json", json.dumps(WorldParameters().model_dump(mode="json"), indent=2) + "\n")


def test_every_parameter_is_documented() -> None:
    def undocumented(model: type) -> list[str]:
        return [name for name, field in model.model_fields.items() if not field.description]

    parts = [type(getattr(WorldParameters(), name)) for name in WorldParameters.model_fields]
    models = [WorldParameters, *(part for part in parts if hasattr(part, "model_fields"))]
    assert [undocumented(model) for model in models] == [[]] * len(models)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"catalogue": {"language_shares": [0.5, 0.2, 0.2]}}, "one share for each language"),
        ({"catalogue": {"items": 10}}, "at least slate_size"),
        ({"policy": {"popular_fraction": 0.8, "random_fraction": 0.4}}, "at most 1"),
        ({"population": {"userz": 5}}, "Extra inputs are not permitted"),
        ({"faults": {"duplicate_rate": 1.5}}, "less than or equal to 1"),
    ],
)
def test_refuses_parameters_that_cannot_be(change: dict[str, dict[str, object]], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        WorldParameters.model_validate(change)


def test_equal_seeds_give_equal_worlds_and_others_differ() -> None:
    again, other = World(small(), now_ms=NOW_MS), World(small(seed=4), now_ms=NOW_MS)
    assert again.items() == world().items()
    assert tuple(history(again)) == records()
    assert other.items() != again.items()


def test_records_are_what_their_kind_says() -> None:
    refused = 0
    for record in records():
        if record.kind in REFUSED_KINDS:
            refused += 1
            with pytest.raises(ContractError):
                parse_event(record.value, record.arrival_ms)
            continue
        event = parse_event(record.value, record.arrival_ms)
        assert record.event_id == event.event_id
        assert record.key == event.user_id.encode()
        assert is_too_late(event.event_time_ms, record.arrival_ms) == (record.kind is RecordKind.TOO_LATE)
    assert refused > 20


def test_the_ledger_says_what_was_sent() -> None:
    ledger = world().ledger
    sent = Counter(record.kind for record in records())
    first_copies = [record.event_id for record in records() if record.kind in COUNTED_KINDS]
    assert ledger.sent == sent
    assert set(sent) == set(RecordKind), "the small world has every fault"
    assert len(first_copies) == len(ledger.counted_ids)
    assert ledger.counted_ids == set(first_copies)
    assert ledger.records_sent == len(records())
    assert ledger.records_sent == ledger.events_produced + ledger.duplicates_sent + ledger.malformed_sent


def test_second_copies_come_after_the_first_in_order_of_arrival() -> None:
    first: dict[str, Record] = {}
    changed = 0
    for record in records():
        if record.kind in COUNTED_KINDS:
            first[str(record.event_id)] = record
        elif record.kind in DUPLICATE_KINDS:
            original = first[str(record.event_id)]
            assert (record.key, record.value == original.value) == (original.key, record.kind is RecordKind.DUPLICATE)
            changed += record.value != original.value
    assert changed > 0


def test_records_arrive_in_order_and_by_now_and_some_events_are_overtaken() -> None:
    arrivals = [record.arrival_ms for record in records()]
    times = [event.event_time_ms for event, _ in valid_events()]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] <= NOW_MS
    assert min(times) >= NOW_MS - 14 * MS_PER_DAY
    assert times != sorted(times)
    assert all(event.event_time_ms <= record.arrival_ms for event, record in valid_events())


def test_no_record_says_more_than_the_contract() -> None:
    for event, record in valid_events():
        assert json.loads(record.value).keys() <= CONTRACT
        assert record.value == event.to_json()
    for item in world().items():
        assert json.loads(item.to_json()).keys() == {field.name for field in fields(Item)}
        assert parse_item(item.to_json()) == item


def test_reactions_follow_their_impressions() -> None:
    shown: dict[tuple[str | None, str], Event] = {}
    events = sorted((event for event, _ in valid_events()), key=lambda event: (event.event_time_ms, event.event_id))
    for event in events:
        if event.event_type is EventType.IMPRESSION:
            shown[event.request_id, event.item_id] = event
    clicked = {(e.request_id, e.item_id): e for e in events if e.event_type is EventType.CLICK}
    for event in events:
        impression = shown[event.request_id, event.item_id]
        assert (event.user_id, event.position) == (impression.user_id, impression.position)
        assert event.event_time_ms >= impression.event_time_ms
        if event.event_type is EventType.WATCH:
            assert event.event_time_ms > clicked[event.request_id, event.item_id].event_time_ms
    assert {event.event_type for event in events} == {
        EventType.IMPRESSION,
        EventType.CLICK,
        EventType.WATCH,
        EventType.LIKE,
        EventType.SHARE,
        EventType.FOLLOW,
        EventType.HIDE,
    }


def test_no_item_is_shown_before_its_publication_or_twice_to_a_user() -> None:
    published = {item.item_id: item.published_at_ms for item in world().items()}
    impressions = [event for event, _ in valid_events() if event.event_type is EventType.IMPRESSION]
    assert all(published[event.item_id] <= event.event_time_ms for event in impressions)
    pairs = [(event.user_id, event.item_id) for event in impressions]
    assert len(pairs) == len(set(pairs))


def test_clicks_fall_with_the_position() -> None:
    events = [event for event, _ in valid_events()]
    at = {
        kind: Counter(event.position for event in events if event.event_type is kind)
        for kind in (EventType.IMPRESSION, EventType.CLICK)
    }
    top, bottom = (
        sum(at[EventType.CLICK][p] for p in half) / sum(at[EventType.IMPRESSION][p] for p in half)
        for half in (range(5), range(5, 10))
    )
    assert top > 1.2 * bottom


def test_users_are_most_active_in_the_evening() -> None:
    hours = Counter(event.event_time_ms // 3_600_000 % 24 for event, _ in valid_events())
    evening, night = (sum(hours[h] for h in span) for span in (range(16, 22), range(2, 8)))
    assert evening > 2 * night


def click_rates(built: World, users: int, slates: int) -> dict[str, float]:
    rates = {}
    profiles = built.live_users(users)
    for arm, choose in (
        ("random", built.random_slate),
        ("popular", built.popular_slate),
        ("oracle", built.oracle_slate),
    ):
        clicks = impressions = 0
        for profile in profiles:
            clone = built.clone_user(profile.user_id, arm)
            for number in range(slates):
                now_ms = NOW_MS + number * 60_000
                reaction = built.react(clone, choose(clone, 10, now_ms), f"{arm}-{number}", now_ms)
                clicks, impressions = clicks + reaction.clicks, impressions + reaction.impressions
        rates[arm] = clicks / impressions
    return rates


def test_knowing_the_user_beats_popularity_beats_chance() -> None:
    rates = click_rates(world(), users=120, slates=2)
    assert rates["oracle"] > 1.5 * rates["popular"] > 1.5 * 1.5 * rates["random"] > 0


def test_who_knows_all_but_the_taste_comes_between_the_popular_slate_and_the_oracle() -> None:
    built = World(small(), now_ms=NOW_MS)
    clicks = dict.fromkeys(("popular", "knower", "oracle"), 0)
    for profile in built.live_users(40):
        clones = {arm: built.clone_user(profile.user_id, arm) for arm in clicks}
        knower = Knower(built, clones["knower"], particles=2_000)
        for _ in range(3):
            clicks["knower"] += knower.live(10, NOW_MS).clicks
            for arm, choose in (("popular", built.popular_slate), ("oracle", built.oracle_slate)):
                clicks[arm] += built.react(clones[arm], choose(clones[arm], 10, NOW_MS), arm, NOW_MS).clicks
    assert clicks["popular"] * 1.2 < clicks["knower"] < clicks["oracle"] * 1.1


def test_newcomers_are_brand_new_and_others_than_those_named() -> None:
    built = World(small(), now_ms=NOW_MS)
    first = built.newcomers(2, ())
    then = built.newcomers(10_000, [profile.user_id for profile in first])
    assert all(profile.is_new for profile in (*first, *then))
    ids = [profile.user_id for profile in (*first, *then)]
    assert len(set(ids)) == len(ids) == small().population.live_only_users
    assert not built.newcomers(1, ids)


def test_clones_of_one_user_do_not_disturb_each_other() -> None:
    built = World(small(), now_ms=NOW_MS)
    user_id = built.live_users(1)[0].user_id

    def run(arm: str) -> list[Record]:
        clone = built.clone_user(user_id, arm)
        return built.react(clone, built.random_slate(clone, 10, NOW_MS), "r", NOW_MS).records

    alone = run("millrace")
    assert run("random") != alone
    assert run("millrace") == alone


def test_live_reactions_are_contract_events_of_this_moment() -> None:
    built = World(small(), now_ms=NOW_MS)
    clone = built.clone_user(built.live_users(1)[0].user_id, "oracle")
    before = built.ledger.records_sent
    slate = built.oracle_slate(clone, 10, NOW_MS)
    reaction = built.react(clone, slate, "request-1", NOW_MS)
    events = [parse_event(record.value, record.arrival_ms) for record in reaction.records]
    assert [e.item_id for e in events if e.event_type is EventType.IMPRESSION] == slate
    assert {e.item_id for e in events if e.event_type is EventType.CLICK} == set(reaction.clicked_item_ids)
    assert all(NOW_MS <= e.event_time_ms < NOW_MS + 1_000 and e.request_id == "request-1" for e in events)
    assert built.ledger.records_sent == before
    assert not set(slate) & set(built.oracle_slate(clone, 10, NOW_MS))


def test_an_unknown_item_or_user_is_refused_by_name() -> None:
    clone = world().clone_user("user-00000", "millrace")
    with pytest.raises(ValueError, match="got the item 'nothing'"):
        world().react(clone, ["nothing"], "r", NOW_MS)
    with pytest.raises(ValueError, match="got the user 'nobody'"):
        world().clone_user("nobody", "millrace")


def test_brand_new_users_and_items_appear_live() -> None:
    built = World(small(), now_ms=NOW_MS)
    profiles = built.live_users(40)
    known = {event.user_id for event, _ in valid_events()}
    assert [p.user_id not in known for p in profiles] == [p.is_new for p in profiles]
    assert sum(p.is_new for p in profiles) == 6
    before = built.items()
    fresh = built.publish_items(5, NOW_MS + 1)
    assert built.items() == before + fresh
    assert all(item.published_at_ms == NOW_MS + 1 for item in fresh)
    clone = built.clone_user(profiles[0].user_id, "oracle")
    assert not {item.item_id for item in fresh} & set(built.oracle_slate(clone, 500, NOW_MS))
    assert {item.item_id for item in fresh} <= set(built.oracle_slate(clone, 500, NOW_MS + 1))
    assert built.true_popularity(NOW_MS).keys() == {item.item_id for item in built.items()}


def test_a_taste_change_is_five_real_events_of_one_category() -> None:
    built = World(small(), now_ms=NOW_MS)
    clone = built.clone_user(built.live_users(1)[0].user_id, "millrace")
    category = built.new_category(clone, NOW_MS)
    sent = built.taste_change_events(clone, category, NOW_MS, "r")
    events = [parse_event(record.value, record.arrival_ms) for record in sent]
    catalogue = {item.item_id: item for item in built.items()}
    assert [str(e.event_type) for e in events] == ["click", "watch", "like", "click", "watch"]
    assert {catalogue[e.item_id].category for e in events} == {e.category for e in events} == {category}
    assert all(e.watch_ms == e.duration_ms for e in events)


def test_tastes_drift_and_stay_unit_vectors() -> None:
    population = world()._population
    users = np.arange(50)
    start, end = (population.taste_at(users, np.full(50, at)) for at in (NOW_MS - 14 * MS_PER_DAY, NOW_MS))
    np.testing.assert_allclose(np.linalg.norm(end, axis=1), 1.0)
    np.testing.assert_allclose(np.sum(start * end, axis=1), np.cos(np.radians(28.0)))


def test_uuid7_is_version_7_and_sorts_by_time() -> None:
    assert uuid7(0x017F22E279B0, 0xCC3 << 62 | 0x18C4DC0C0C07398F) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"  # RFC 9562
    assert uuid7(1_000, (1 << 74) - 1) < uuid7(1_001, 0)


def test_a_ledger_follows_records_without_changing_them() -> None:
    ledger = Ledger()
    assert list(ledger.follow(records()[:100])) == list(records()[:100])
    assert ledger.records_sent == 100


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ["features", "models", "batch", "serving", "streaming", "dags"])
def test_no_room_can_read_the_truth(room: str) -> None:
    inside = ROOT / "streaming" / "world"
    readers = [
        str(path.relative_to(ROOT))
        for path in (ROOT / room).rglob("*.py")
        if inside not in path.parents and any(name.startswith("streaming.world") for name in imports(path))
    ]
    assert readers == [], "only the demo and the tests may import the synthetic world"
