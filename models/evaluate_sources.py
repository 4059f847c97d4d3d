"""How much of what users go on to like each source finds, alone and merged.

At one instant every test user asks; their history ends there, and what they like afterwards is the answer.
Shapes: U users, I items, K ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from features.events import TYPE_CODE, EventType
from features.names import MS_PER_DAY, MS_PER_HOUR
from models.history import Histories, collapse
from models.item_table import UNKNOWN, ItemTable
from models.lake import EventLog
from models.metrics import hit_rate, ndcg, recall, reciprocal_rank
from models.refusal import RefusalError
from models.sources import Candidates, RetrievalRequest, Source, trending_scores
from models.sources.als import AlsSource
from models.sources.merge import DEFAULT_QUOTAS, merge

Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

SHORT_K = 10
LONG_K = 100
MAX_USERS = 1_500
"""Test users drawn, which bounds the time."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One test user's request and the items that they went on to like without having seen them before."""

    request: RetrievalRequest
    liked: Int32s


def questions(
    before: EventLog, after: EventLog, item_table: ItemTable, instant_ms: int, seed: int, max_users: int = MAX_USERS
) -> list[Question]:
    """The test users' questions. Users who liked nothing new afterwards have none.

    Raises `RefusalError` when that is everybody.
    """
    rng = np.random.default_rng(seed)
    liked = _by_user(collapse(after.user_N, after.item_N, after.type_N, after.time_ms_N), len(after.user_ids))
    past_rows = collapse(before.user_N, before.item_N, before.type_N, before.time_ms_N)
    past = _by_user(past_rows, len(before.user_ids))
    seen_UI = _seen(before, len(item_table))
    followed = _followed(before, item_table)
    clicks_1h, shown_1h, clicks_24h = (
        _counts(before, kind, instant_ms - window_ms, len(item_table))
        for kind, window_ms in (
            (EventType.CLICK, MS_PER_HOUR),
            (EventType.IMPRESSION, MS_PER_HOUR),
            (EventType.CLICK, MS_PER_DAY),
        )
    )
    trending_I = trending_scores(clicks_1h, shown_1h, clicks_24h)
    shown_24h = _counts(before, EventType.IMPRESSION, instant_ms - MS_PER_DAY, len(item_table))
    found = []
    for user in rng.permutation(len(before.user_ids)):
        new = liked.item_index_N[liked.row(user)]
        new = new[~seen_UI[user][new]]
        if not new.size:
            continue
        rows = past.row(user)
        request = RetrievalRequest(
            instant_ms=instant_ms,
            item_table=item_table,
            history_index_L=past.item_index_N[rows],
            history_weight_L=past.weight_N[rows],
            history_age_ms_L=instant_ms - past.time_ms_N[rows],
            excluded_I=seen_UI[user],
            rng=np.random.default_rng([seed, int(user)]),
            followed_creators=followed.get(int(user), frozenset()),
            trending_score_I=trending_I,
            impressions_I=shown_24h.astype(np.float32),
        )
        found.append(Question(request=request, liked=new))
        if len(found) == max_users:
            break
    if not found:
        raise RefusalError("no user liked an unseen item after the split; let more history gather.")
    return found


def evaluate_sources(sources: Mapping[str, Source], asked: Sequence[Question]) -> dict[str, Any]:
    """Metrics by source and of the merge, averaged over the questions.

    Keys: `hr@10`, `ndcg@10`, `recall@10`, `recall@100`, `mrr`; `recall` at the source's quota of the merge; `answered`,
    the share of users for whom it has candidates; `marginal_recall`, what the merge would lose without it; `coverage`,
    the share of the catalogue that it showed to anybody.
    """
    count = max(LONG_K, *DEFAULT_QUOTAS.values())
    answers: list[dict[str, Candidates]] = [
        {name: source.candidates(question.request, count) for name, source in sources.items()} for question in asked
    ]
    report = {name: _metrics(asked, [answer[name].item_index for answer in answers]) for name in sources}
    merged = [merge(answer, DEFAULT_QUOTAS).item_index_C for answer in answers]
    whole = _recall_of(asked, merged)
    for name in sources:
        kept = [answer[name].item_index[: DEFAULT_QUOTAS.get(name)] for answer in answers]
        others = [merge({n: c for n, c in answer.items() if n != name}, DEFAULT_QUOTAS) for answer in answers]
        without = _recall_of(asked, [found.item_index_C for found in others])
        report[name] |= {"recall": _recall_of(asked, kept), "marginal_recall": whole - without}
    report["merged"] = {
        **_metrics(asked, merged),
        "recall": whole,
        "candidates": float(np.mean([len(items) for items in merged])),
    }
    return report


def index_recall(source: Source, asked: Sequence[Question]) -> float | None:
    """Share of the exact answer (up to the quota) that ALS finds with its index; None where it searches exactly."""
    if not isinstance(source, AlsSource) or source.hnsw_N is None:
        return None
    exact, count = replace(source, hnsw_N=None), DEFAULT_QUOTAS[source.name]
    answers = [(exact.candidates(q.request, count).item_index, source.candidates(q.request, count)) for q in asked]
    return float(np.mean([np.isin(best, found.item_index).mean() for best, found in answers if len(best)]))


def _metrics(asked: Sequence[Question], ranked: Sequence[Int32s]) -> dict[str, float]:
    short_UK, long_UK = (np.stack(list(_relevance(asked, ranked, k))) for k in (SHORT_K, LONG_K))
    liked_U = np.array([len(question.liked) for question in asked])
    shown = np.unique(np.concatenate([items[:LONG_K] for items in ranked]))
    return {
        "hr@10": float(hit_rate(short_UK).mean()),
        "ndcg@10": float(ndcg(short_UK, liked_U).mean()),
        "recall@10": float(recall(short_UK, liked_U).mean()),
        "recall@100": float(recall(long_UK, liked_U).mean()),
        "mrr": float(reciprocal_rank(long_UK).mean()),
        "answered": float(np.mean([len(items) > 0 for items in ranked])),
        "coverage": len(shown) / len(asked[0].request.item_table),
    }


def _relevance(asked: Sequence[Question], ranked: Sequence[Int32s], ranks: int) -> Iterator[Bools]:
    for question, items in zip(asked, ranked, strict=True):
        row_K = np.zeros(ranks, np.bool_)
        row_K[: min(len(items), ranks)] = np.isin(items[:ranks], question.liked)
        yield row_K


def _recall_of(asked: Sequence[Question], found: Sequence[Int32s]) -> float:
    pairs = zip(asked, found, strict=True)
    return float(np.mean([np.isin(question.liked, items).mean() for question, items in pairs]))


@dataclass(frozen=True, kw_only=True)
class _ByUser:
    item_index_N: Int32s
    weight_N: npt.NDArray[np.float32]
    time_ms_N: npt.NDArray[np.int64]
    start_U: npt.NDArray[np.int64]

    def row(self, user: int) -> slice:
        return slice(int(self.start_U[user]), int(self.start_U[user + 1]))


def _by_user(pairs: Histories, users: int) -> _ByUser:
    start_U = np.searchsorted(pairs.row_N, np.arange(users + 1))
    return _ByUser(item_index_N=pairs.item_index_N, weight_N=pairs.weight_N, time_ms_N=pairs.time_ms_N, start_U=start_U)


def _seen(log: EventLog, items: int) -> Bools:
    seen_UI = np.zeros((len(log.user_ids), items), np.bool_)
    known_N = log.item_N != UNKNOWN
    seen_UI[log.user_N[known_N], log.item_N[known_N]] = True
    return seen_UI


def _followed(log: EventLog, item_table: ItemTable) -> dict[int, frozenset[str]]:
    follow, unfollow = TYPE_CODE[EventType.FOLLOW], TYPE_CODE[EventType.UNFOLLOW]
    chosen = np.flatnonzero(np.isin(log.type_N, (follow, unfollow)) & (log.item_N != UNKNOWN))
    state: dict[int, dict[str, bool]] = {}
    for n in chosen[np.argsort(log.time_ms_N[chosen], kind="stable")]:
        creator = item_table.creators[item_table.creator_code[log.item_N[n]]]
        state.setdefault(int(log.user_N[n]), {})[creator] = bool(log.type_N[n] == follow)
    return {user: frozenset(name for name, on in creators.items() if on) for user, creators in state.items()}


def _counts(log: EventLog, kind: EventType, since_ms: int, items: int) -> npt.NDArray[np.float64]:
    chosen_N = (log.type_N == TYPE_CODE[kind]) & (log.time_ms_N >= since_ms) & (log.item_N != UNKNOWN)
    return np.bincount(log.item_N[chosen_N], minlength=items).astype(np.float64)
