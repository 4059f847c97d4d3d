"""The synthetic world: a seeded truth, the history that it sends, and users who react to what they are really shown.

The truth (tastes, quality, match) stays in objects of this package. What leaves it are items and event records,
whose fields are exactly the contract's.

Shapes: I items, P positions, U users, D latent dimensions.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.events import EventType
from features.items import Item
from features.names import MS_PER_MINUTE
from streaming.records import Ledger, Record, RecordKind
from streaming.world.behaviour import Shown, appeal, click_probability, react
from streaming.world.catalogue import CATEGORY_NAMES, Floats, Ints, draw_creators, draw_items, draw_publications
from streaming.world.catalogue import item_id as id_of_item
from streaming.world.faults import KINDS, make_record, schedule
from streaming.world.history import Memory, simulate
from streaming.world.occurrences import EVENT_TYPES, Occurrences, event_ids, occurrences_of, wire_fields
from streaming.world.parameters import WorldParameters
from streaming.world.population import DEVICES, draw_population
from streaming.world.population import user_id as id_of_user

_JUDGES = 500
"""Users whose mean click probability is the true popularity."""
_POPULARITY_EVERY_MS = 10 * MS_PER_MINUTE


@dataclass(frozen=True, kw_only=True)
class UserProfile:
    """What a product service would know of a user."""

    user_id: str
    language: str
    device: str
    is_new: bool
    """Whether the user has no event in the history."""


@dataclass(kw_only=True)
class UserClone:
    """One arm's own copy of a user: the same tastes, random numbers and memories of its own."""

    profile: UserProfile
    arm: str
    index: int
    rng: np.random.Generator
    seen: set[int]
    followed: set[int]


@dataclass(frozen=True, kw_only=True)
class Reaction:
    """What a clone did with a slate."""

    records: list[Record]
    """Every event of it, impressions included, in order. Not in the ledger until it is told."""
    impressions: int
    clicked_item_ids: tuple[str, ...]
    acts: int
    """Events besides the impressions."""
    watch_ms: int
    """Time watched, of all items."""
    watched_P: tuple[float, ...]
    """The fraction watched of each item of the slate; 0 where it was not clicked."""

    @property
    def clicks(self) -> int:
        """Number of items clicked."""
        return len(self.clicked_item_ids)


class World:
    """The simulation at `now_ms`. Equal parameters and instant give equal histories, byte by byte.

    The history is simulated when it is first needed. Live users' reactions are seeded per clone, so that arms do
    not disturb each other; items published live come from a stream of their own.
    """

    def __init__(self, parameters: WorldParameters, *, now_ms: int) -> None:
        self.parameters = parameters
        self.now_ms = now_ms
        self.ledger = Ledger()
        truth, self._history_rng, self._publish_rng, self._live_rng = (
            np.random.default_rng(child) for child in np.random.SeedSequence(parameters.seed).spawn(4)
        )
        self._creators = draw_creators(truth, parameters)
        published_I = draw_publications(truth, parameters, now_ms)
        self._catalogue = draw_items(truth, self._creators, parameters, published_I)
        self._population = draw_population(truth, self._creators, parameters, now_ms)
        self._item_index = {id_of_item(i): i for i in range(len(self._catalogue))}
        self._user_index = {id_of_user(i): i for i in range(len(self._population))}
        self._popularity: dict[tuple[int, int], Floats] = {}

    @cached_property
    def _simulated(self) -> tuple[Occurrences, Memory]:
        return simulate(self._history_rng, self._catalogue, self._population, self.parameters, self.now_ms)

    def items(self) -> list[Item]:
        """The catalogue as it is now: the history's items, then those published live."""
        return [self._catalogue.item(i, self.parameters) for i in range(len(self._catalogue))]

    def history(self) -> Iterator[Record]:
        """Every record of the history in order of arrival, faults included; each is written into the ledger."""
        return self.ledger.follow(self._history())

    def _history(self) -> Iterator[Record]:
        happened, _ = self._simulated
        rng = np.random.default_rng([self.parameters.seed, 1])
        ids = event_ids(rng, happened.time_ms_N)
        slate_ms = np.zeros(int(happened.slate_N.max(initial=-1)) + 1, dtype=np.int64)
        slate_ms[happened.slate_N] = happened.time_ms_N
        request_ids = event_ids(rng, slate_ms)
        fields = list(wire_fields(happened, ids, request_ids, self._catalogue, self._population))
        sent = schedule(rng, happened.time_ms_N, self.parameters.faults, self.now_ms)
        columns = (sent.event_M.tolist(), sent.kind_M.tolist(), sent.arrival_ms_M.tolist(), sent.salt_M.tolist())
        for event, kind, arrival_ms, salt in zip(*columns, strict=True):
            yield make_record(fields[event], KINDS[kind], arrival_ms, salt)

    def publish_items(self, count: int, now_ms: int) -> list[Item]:
        """Brand-new items, published now. They are in the catalogue from here on."""
        first = len(self._catalogue)
        published_I = np.full(count, now_ms, dtype=np.int64)
        self._catalogue = self._catalogue.extended(
            draw_items(self._publish_rng, self._creators, self.parameters, published_I)
        )
        self._item_index |= {id_of_item(i): i for i in range(first, first + count)}
        return [self._catalogue.item(i, self.parameters) for i in range(first, first + count)]

    def live_users(self, count: int) -> list[UserProfile]:
        """Users of the live phase: a share of brand-new ones, the others drawn by how active they are.

        Raises `ValueError` when the world has fewer users than asked for.
        """
        chosen = self.parameters.population
        new = min(round(count * chosen.live_new_fraction), chosen.live_only_users)
        known = np.flatnonzero(self._known_users())
        if count - new > len(known):
            raise ValueError(f"got {count} live users; allowed: at most {len(known) + new}. Ask for fewer.")
        weight = self._population.sessions_mean_U[known]
        picked = self._live_rng.choice(known, size=count - new, replace=False, p=weight / weight.sum())
        brand_new = self._live_rng.choice(chosen.live_only_users, size=new, replace=False) + chosen.users
        return [self.profile(id_of_user(int(index))) for index in (*picked, *brand_new)]

    def newcomers(self, count: int, besides: Collection[str]) -> list[UserProfile]:
        """As many brand-new users other than these, in the order of their ids; fewer where there are no more."""
        chosen = self.parameters.population
        user_ids = map(id_of_user, range(chosen.users, chosen.users + chosen.live_only_users))
        left = [user_id for user_id in user_ids if user_id not in besides]
        return [self.profile(user_id) for user_id in left[:count]]

    def _known_users(self) -> Ints:
        happened, _ = self._simulated
        return np.bincount(happened.user_N, minlength=len(self._population))

    def profile(self, user_id: str) -> UserProfile:
        """The user's profile. Raises `ValueError` for an unknown user."""
        index = self._index_of(user_id, self._user_index, "user")
        return UserProfile(
            user_id=user_id,
            language=self.parameters.catalogue.languages[self._population.language_U[index]],
            device=DEVICES[self._population.device_U[index]],
            is_new=not self._simulated[1].seen_UI[index].any(),
        )

    def clone_user(self, user_id: str, arm: str) -> UserClone:
        """The arm's own copy of the user, as the history left it. Raises `ValueError` for an unknown user."""
        profile = self.profile(user_id)
        index = self._user_index[user_id]
        memory = self._simulated[1]
        return UserClone(
            profile=profile,
            arm=arm,
            index=index,
            rng=np.random.default_rng([self.parameters.seed, 2, index, *arm.encode()]),
            seen=set(np.flatnonzero(memory.seen_UI[index]).tolist()),
            followed=set(np.flatnonzero(memory.followed_UC[index]).tolist()),
        )

    def react(self, clone: UserClone, item_ids: Sequence[str], request_id: str, now_ms: int) -> Reaction:
        """The clone looks at the slate, top first, and acts on it within a second of now.

        The clone remembers what it saw and followed. Nothing is sent and nothing enters the ledger here.
        Raises `ValueError` for an item that the world does not have.
        """
        if not item_ids:
            return Reaction(records=[], impressions=0, clicked_item_ids=(), acts=0, watch_ms=0, watched_P=())
        item_P = np.array([self._index_of(item, self._item_index, "item") for item in item_ids])
        shown = self._shown(clone, item_P, now_ms)
        reactions = react(clone.rng, shown, self.parameters.behaviour, pace=0.0)
        user_S, start_S = np.array([clone.index]), np.array([now_ms])
        happened = occurrences_of(reactions, start_S, user_S, item_P[None, :], 0)
        clone.seen.update(item_P.tolist())
        clone.followed.update(self._catalogue.creator_I[item_P[reactions.followed_SP[0]]].tolist())
        return Reaction(
            records=self._live_records(clone.rng, happened, request_id),
            impressions=len(item_P),
            clicked_item_ids=tuple(id_of_item(int(i)) for i in item_P[reactions.clicked_SP[0]]),
            acts=len(happened) - len(item_P),
            watch_ms=int(reactions.watch_ms_SP.sum()),
            watched_P=tuple((reactions.watch_ms_SP / shown.duration_ms_SP)[0].tolist()),
        )

    def _live_records(self, rng: np.random.Generator, happened: Occurrences, request_id: str) -> list[Record]:
        ids = event_ids(rng, happened.time_ms_N)
        rows = wire_fields(happened, ids, [request_id], self._catalogue, self._population)
        return [make_record(fields, RecordKind.EVENT, fields["event_time_ms"], 0) for fields in rows]

    def _shown(self, clone: UserClone, item_P: Ints, now_ms: int) -> Shown:
        catalogue, population = self._catalogue, self._population
        taste_D = population.taste_at(np.array([clone.index]), np.array([now_ms]))[0]
        creator_P = catalogue.creator_I[item_P]
        return Shown(
            match_SP=(catalogue.taste_ID[item_P] @ taste_D)[None, :],
            appeal_SP=appeal(catalogue, self.parameters.catalogue, item_P, now_ms)[None, :],
            other_language_SP=(catalogue.language_I[item_P] != population.language_U[clone.index])[None, :],
            followed_SP=np.isin(creator_P, list(clone.followed))[None, :],
            seen_SP=np.isin(item_P, list(clone.seen))[None, :],
            duration_ms_SP=catalogue.duration_ms_I[item_P][None, :],
        )

    def expected_clicks(self, clone: UserClone, item_ids: Sequence[str], now_ms: int) -> float:
        """How many of the slate's items the clone would click on average, were it shown now. For evaluation only."""
        item_P = np.array([self._index_of(item, self._item_index, "item") for item in item_ids], np.int64)
        probability_P = click_probability(self._shown(clone, item_P, now_ms), self.parameters.behaviour)[0]
        return float(probability_P @ self.parameters.behaviour.examination_decay ** np.arange(len(item_P)))

    def oracle_slate(
        self, clone: UserClone, count: int, now_ms: int, candidates: Sequence[str] | None = None
    ) -> list[str]:
        """The unseen items with the highest true click probability for this user now. For evaluation only.

        `candidates` restricts the choice; None is every published item.
        """
        item_P = self._unseen(clone, now_ms, candidates)
        probability_P = click_probability(self._shown(clone, item_P, now_ms), self.parameters.behaviour)[0]
        return self._ids(item_P[np.argsort(-probability_P, kind="stable")[:count]])

    def popular_slate(
        self, clone: UserClone, count: int, now_ms: int, candidates: Sequence[str] | None = None
    ) -> list[str]:
        """The unseen items that please most users most: the best slate that ignores who asks. For evaluation only."""
        item_P = self._unseen(clone, now_ms, candidates)
        popularity_P = self._true_popularity(now_ms)[item_P]
        return self._ids(item_P[np.argsort(-popularity_P, kind="stable")[:count]])

    def random_slate(
        self, clone: UserClone, count: int, now_ms: int, candidates: Sequence[str] | None = None
    ) -> list[str]:
        """Unseen items, uniformly at random."""
        item_P = self._unseen(clone, now_ms, candidates)
        return self._ids(clone.rng.permutation(item_P)[:count])

    def true_popularity(self, now_ms: int) -> dict[str, float]:
        """Each item's mean click probability over users, once examined. For evaluation only."""
        return dict(zip(self._item_index, self._true_popularity(now_ms).tolist(), strict=True))

    def _true_popularity(self, now_ms: int) -> Floats:
        at_ms = now_ms - now_ms % _POPULARITY_EVERY_MS
        key = (at_ms, len(self._catalogue))
        if key not in self._popularity:
            catalogue, population = self._catalogue, self._population
            judge_S = np.arange(min(_JUDGES, len(population)))
            shape = (len(judge_S), len(catalogue))
            nobody = np.zeros(shape, dtype=np.bool_)
            shown = Shown(
                match_SP=population.taste_at(judge_S, np.full(len(judge_S), at_ms)) @ catalogue.taste_ID.T,
                appeal_SP=appeal(catalogue, self.parameters.catalogue, np.arange(len(catalogue)), at_ms)[None, :],
                other_language_SP=catalogue.language_I[None, :] != population.language_U[judge_S][:, None],
                followed_SP=nobody,
                seen_SP=nobody,
                duration_ms_SP=np.zeros(shape, dtype=np.int64),
            )
            self._popularity = {key: click_probability(shown, self.parameters.behaviour).mean(axis=0)}
        return self._popularity[key]

    def new_category(self, clone: UserClone, now_ms: int) -> str:
        """The category that the user cares least for among those with the items for a slate of it unseen.

        Categories of a small world may have fewer; those with the two that `taste_change_events` needs do then.
        Raises `ValueError` when there is none.
        """
        item_P = self._unseen(clone, now_ms, None)
        match_P = self._shown(clone, item_P, now_ms).match_SP[0]
        category_P = self._catalogue.category_I[item_P]
        unseen_K = np.bincount(category_P)
        enough = np.flatnonzero(unseen_K >= 10) if unseen_K.max(initial=0) >= 10 else np.flatnonzero(unseen_K >= 2)
        if not len(enough):
            user_id = clone.profile.user_id
            raise ValueError(f"user {user_id} has seen all but {len(item_P)} items; take a world with more items.")
        coldest = min(enough, key=lambda k: float(match_P[category_P == k].mean()))
        return CATEGORY_NAMES[coldest]

    def taste_change_events(self, clone: UserClone, category: str, now_ms: int, request_id: str) -> list[Record]:
        """Five events that say "more of this": click, watch to the end and like one item, click and watch another.

        The items are real, unseen ones of the category, in the user's language where there are two; all five
        happen within a second of now. They are of the contract but not of the simulation: no taste changes.
        """
        item_P = self._unseen(clone, now_ms, None)
        in_category_P = self._catalogue.category_I[item_P] == CATEGORY_NAMES.index(category)
        foreign_P = self._catalogue.language_I[item_P] != self._population.language_U[clone.index]
        item_P = item_P[in_category_P][np.argsort(foreign_P[in_category_P], kind="stable")][:2]
        if len(item_P) < 2:
            raise ValueError(f"category {category}: got {len(item_P)} unseen items; allowed: at least 2. Take another.")
        first, second = (int(i) for i in item_P)
        done = (
            (EventType.CLICK, first),
            (EventType.WATCH, first),
            (EventType.LIKE, first),
            (EventType.CLICK, second),
            (EventType.WATCH, second),
        )
        item_N = np.array([item for _, item in done])
        type_N = np.array([EVENT_TYPES.index(event_type) for event_type, _ in done])
        is_watch_N = type_N == EVENT_TYPES.index(EventType.WATCH)
        clone.seen.update((first, second))
        happened = Occurrences(
            time_ms_N=now_ms + np.arange(len(done)),
            type_N=type_N,
            user_N=np.full(len(done), clone.index),
            item_N=item_N,
            slate_N=np.zeros(len(done), dtype=np.int64),
            position_N=(item_N == second).astype(np.int64),
            watch_ms_N=np.where(is_watch_N, self._catalogue.duration_ms_I[item_N], 0),
        )
        return self._live_records(clone.rng, happened, request_id)

    def _unseen(self, clone: UserClone, now_ms: int, candidates: Sequence[str] | None) -> Ints:
        if candidates is None:
            offered = np.flatnonzero(self._catalogue.published_at_ms_I <= now_ms)
        else:
            offered = np.array([self._index_of(c, self._item_index, "item") for c in candidates], dtype=np.int64)
        return offered[~np.isin(offered, list(clone.seen))]

    def _ids(self, item_P: Ints) -> list[str]:
        return [id_of_item(int(index)) for index in item_P]

    @staticmethod
    def _index_of(name: str, index: dict[str, int], noun: str) -> int:
        if name not in index:
            raise ValueError(f"got the {noun} {name!r}; allowed: the {len(index)} {noun}s of this world.")
        return index[name]
