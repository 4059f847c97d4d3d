"""What `millrace features` and `millrace recommend` show."""

from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from features.backends import Backend, open_backend
from features.events import EventType
from features.ledger import Account, Outcome
from features.names import MS_PER_MINUTE
from features.tile_rows import TileRow, family_named
from features.user_state import Interaction
from infra.views import UnknownKeyError, item_view, ledger_view, slate_view, user_view
from serving.client import RankedItem, Slate

NOW_MS = 1_700_000_000_000
EVENT_MS = NOW_MS - 5_000


def _text(view: RenderableType) -> str:
    console = Console(width=200, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(view)
    return captured.get()


def _tile(family_name: str, key: tuple[str, ...], **columns: int) -> TileRow:
    family = family_named(family_name)
    values = tuple(columns.get(column.name, 0) for column in family.columns)
    tile_ms = family.tile_ms
    return TileRow(key, tile_ms, EVENT_MS - EVENT_MS % tile_ms, max(columns.values()), EVENT_MS, values)


@pytest.fixture
def store(tmp_path: Path) -> Backend:
    backend = open_backend(str(tmp_path / "store.db"))
    click = Interaction(
        event_id="e1",
        event_type=EventType.CLICK,
        event_time_ms=EVENT_MS,
        user_id="ada",
        item_id="song-1",
        category="music",
        creator_id="c1",
    )
    backend.write_tiles("user_category", [_tile("user_category", ("ada", "music"), clicks=3)], {})
    backend.write_tiles("item", [_tile("item", ("song-1", "music", "c1"), clicks=3)], {})
    backend.write_interactions([click], {})
    return backend


def _row(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_a_user_is_shown_with_windows_categories_and_history(store: Backend) -> None:
    shown = _text(user_view(store, "ada", NOW_MS))
    assert "user ada: newest event 5.0 s ago; seen 1 items, hidden 0, follows 0 creators" in shown
    assert _row(shown, "user_clicks_10m")[1] == "3"
    assert _row(shown, "user_category_clicks_10m")[1] == "3"
    assert _row(shown, "click") == ["click", "5", "s", "song-1", "music"]


def test_the_windows_are_those_of_now(store: Backend) -> None:
    later = _text(user_view(store, "ada", NOW_MS + 12 * MS_PER_MINUTE))
    assert _row(later, "user_clicks_10m")[1] == "0"
    assert _row(later, "user_clicks_1h")[1] == "3"


def test_an_item_is_shown_with_its_windows(store: Backend) -> None:
    shown = _text(item_view(store, "song-1", NOW_MS))
    assert "item song-1: newest event 5.0 s ago" in shown
    assert _row(shown, "item_clicks_1h")[1] == "3"


@pytest.mark.parametrize("view", [user_view, item_view])
def test_an_unknown_key_is_refused(store: Backend, view: object) -> None:
    with pytest.raises(UnknownKeyError, match=r"has no event of the (user|item) 'nobody'; see "):
        view(store, "nobody", NOW_MS)  # type: ignore[operator]


def test_a_slate_is_shown_with_provenance_and_what_degraded() -> None:
    item = RankedItem(
        item_id="song-1",
        score=0.5,
        head_probabilities={"click": 0.25},
        sources=("als", "trending"),
        position=0,
        propensity=0.1,
        category="music",
        creator_id="c1",
        explored=True,
        contributions={},
        features={},
    )
    slate = Slate(
        request_id="r1",
        items=(item,),
        bundle_id="b1",
        experiment_arm="millrace",
        served_at_ms=NOW_MS,
        newest_event_time_ms=EVENT_MS,
        newest_event_age_ms=5_000,
        item_snapshot_time_ms=NOW_MS,
        degraded={"hydrate": "store unavailable"},
        stage_ms={},
        candidates_retrieved=9,
        candidates_scored=8,
        unknown_item_ids=(),
    )
    shown = _text(slate_view(slate))
    assert "bundle b1, arm millrace, newest event 5.0 s old, 8 candidates scored" in shown
    assert "degraded: hydrate: store unavailable" in shown
    assert _row(shown, "1")[1:] == ["song-1", "music", "c1", "0.5000", "25.0%", "als,", "trending", "p=0.10"]


def test_the_ledger_is_a_row_a_partition_and_their_sum() -> None:
    outcomes = {Outcome.COUNTED: 1_200, Outcome.DUPLICATE: 3, Outcome.TOO_LATE: 2, Outcome.DEAD: 1}
    accounts = [Account(partition=n, produced=1_207, outcomes=outcomes, missing=1, twice=0) for n in range(2)]
    shown = _text(ledger_view(accounts))
    assert _row(shown, "1") == ["1", "1,207", "1,200", "3", "2", "1", "1", "0"]
    assert _row(shown, "all") == ["all", "2,414", "2,400", "6", "4", "2", "2", "0"]
