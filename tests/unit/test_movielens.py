"""MovieLens ratings as events, from a small wheel made here in the layout of the real one."""

import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from features.events import COMPLETION_PERCENT, Event, EventType, parse_event
from streaming.movielens import MEMBERS, MovieLens, MovieLensError, MovieLensParameters, load
from streaming.records import Record

NOW_MS = 1_760_000_000_000
SPLIT_S = 890_000_000
FILMS = [
    "1\tToy Story\t1995\tAnimation Children's Comedy",
    "2\tHeat\t1995\tComedy Crime",
    "3\tunkonwn\tunkonwn\tunknown",
    *(f"{number}\tFilm {number}\t1990\tComedy" for number in range(4, 31)),
]
# User 1 rates a film of each number of stars, two of them in one second; user 2 is brand-new in the held-out part.
RATINGS = [
    "1\t1\t5\t880000000",
    "1\t4\t4\t880000000",
    "1\t5\t3\t880000100",
    "1\t6\t2\t880000200",
    "1\t7\t1\t880000300",
    "3\t4\t5\t885000000",
    "3\t8\t4\t885000001",
    "3\t9\t1\t885000002",
    f"1\t2\t5\t{SPLIT_S}",
    f"2\t4\t4\t{SPLIT_S + 60}",
]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write_wheel(tmp_path / "recbole.whl", RATINGS)


def write_wheel(path: Path, ratings: list[str], films: list[str] = FILMS) -> Path:
    inter = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *ratings]
    item = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *films]
    with zipfile.ZipFile(path, "w") as members:
        members.writestr(f"{MEMBERS}.inter", "\n".join(inter))
        members.writestr(f"{MEMBERS}.item", "\n".join(item))
    return path


def read(wheel: Path, **parameters: float) -> MovieLens:
    return load(
        wheel, now_ms=NOW_MS, parameters=MovieLensParameters(held_out_fraction=0.2).model_copy(update=parameters)
    )


def events_of(records: list[Record]) -> list[Event]:
    return [parse_event(record.value, record.arrival_ms) for record in records]


def test_stars_become_events_as_documented(wheel: Path) -> None:
    events = events_of(list(read(wheel).history()))
    done = {
        item: [str(e.event_type) for e in events if (e.user_id, e.item_id) == ("ml-user-1", f"ml-item-{item}")]
        for item in (1, 4, 5, 6, 7)
    }
    assert done == {
        1: ["impression", "click", "watch", "like", "share"],
        4: ["impression", "click", "watch", "like"],
        5: ["impression", "click", "watch"],
        6: ["impression", "click", "watch"],
        7: ["impression", "click", "watch", "hide"],
    }
    watched = {e.item_id: 100 * e.watch_ms // e.duration_ms for e in events if e.watch_ms and e.duration_ms}
    assert [watched[f"ml-item-{item}"] for item in (1, 4, 5, 6, 7)] == [100, 100, 60, 30, 10]
    assert 60 < COMPLETION_PERCENT <= 100


def test_a_request_shows_one_rated_and_one_unmet_film(wheel: Path) -> None:
    events = events_of(list(read(wheel).history()))
    slates: dict[str | None, list[Event]] = {}
    for event in events:
        if event.event_type is EventType.IMPRESSION:
            slates.setdefault(event.request_id, []).append(event)
    clicked = {(e.request_id, e.item_id) for e in events if e.event_type is EventType.CLICK}
    assert len(slates) == 8
    for request_id, slate in slates.items():
        assert [e.position for e in slate] == [0, 1]
        assert sum((request_id, e.item_id) in clicked for e in slate) == 1
    negatives = Counter(
        (e.user_id, e.item_id) for slate in slates.values() for e in slate if (e.request_id, e.item_id) not in clicked
    )
    assert max(negatives.values()) == 1


def test_all_times_move_by_one_constant_and_the_split_is_now(wheel: Path) -> None:
    data = read(wheel)
    shift_ms = NOW_MS - SPLIT_S * 1_000
    assert [rating.time_ms for rating in data.held_out] == [NOW_MS, NOW_MS + 60_000]
    assert [rating.time_ms - shift_ms for rating in data.ratings][:3] == [880000000000, 880000000010, 880000100000]
    records = list(data.history())
    assert all(before.arrival_ms <= after.arrival_ms < NOW_MS for before, after in pairwise(records))
    assert data.ledger.counted_ids == {event.event_id for event in events_of(records)}
    assert len(data.ledger.counted_ids) == len(records)


def test_the_split_does_not_cut_a_second(tmp_path: Path) -> None:
    ratings = [f"{user}\t{user}\t4\t{890000000 + (user > 6)}" for user in range(1, 11)]
    data = read(write_wheel(tmp_path / "w.whl", ratings))
    assert [rating.user_id for rating in data.held_out] == [f"ml-user-{user}" for user in (7, 8, 9, 10)]


def test_films_get_the_documented_stand_ins(wheel: Path) -> None:
    items = {item.item_id: item for item in read(wheel).items}
    assert items["ml-item-1"].category == "animation", "the rarest genre, ties by name"
    assert items["ml-item-2"].category == "crime"
    assert items["ml-item-3"].category == "unknown"
    assert {item.creator_id for item in items.values()} == {"year-1995", "year-1990", "year-unknown"}
    new_year_1995_s = 788_918_400
    assert items["ml-item-1"].published_at_ms == NOW_MS - (SPLIT_S - new_year_1995_s) * 1_000
    assert {item.duration_ms for item in items.values()} == {6_000_000}


def test_targets_are_liked_films_not_met_before(wheel: Path) -> None:
    data = read(wheel, negatives_per_rating=0)
    list(data.history())
    known, new = data.held_out
    assert data.is_target(known)
    assert data.is_target(new)
    assert data.popular_slate("ml-user-1", 2) == ["ml-item-8"], "4 and 1 are met; 4 leads for who has not met it"
    assert data.popular_slate("ml-user-2", 2)[0] == "ml-item-4"
    replayed = events_of(data.replay(new, NOW_MS + 5))
    assert [str(event.event_type) for event in replayed] == ["impression", "click", "watch", "like"]
    assert replayed[0].event_time_ms == NOW_MS + 5
    assert not data.is_target(new)


def test_equal_seeds_give_equal_records(wheel: Path) -> None:
    assert list(read(wheel).history()) == list(read(wheel).history())
    assert list(read(wheel, seed=8).history()) != list(read(wheel).history())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"no zip", "not a zip file"),
        ({}, "no item named"),
        ({"inter": "a", "item": "b"}, "no rows"),
    ],
)
def test_an_unreadable_wheel_is_one_clear_error(tmp_path: Path, content: object, says: str) -> None:
    path = tmp_path / "recbole.whl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        with zipfile.ZipFile(path, "w") as members:
            for kind, text in content.items():
                members.writestr(f"{MEMBERS}.{kind}", text)
    with pytest.raises(MovieLensError, match=f"(?is){says}.*data.txt names"):
        load(path, now_ms=NOW_MS)


def test_parameters_are_checked() -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        MovieLensParameters(held_out_fraction=1.0)
