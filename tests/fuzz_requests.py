"""Random and mutated requests of every method, and what the proto's comments allow the service to answer.

The bounds are written down here a second time, from `serving/ranking.proto` and `features/events.py`, so that the
service's own checks are judged by something else.
"""

import random
import re
import string
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError, Message

from serving import ranking_pb2 as pb
from tests.serving_bundle import tiny_items

OK, INVALID, NOT_FOUND, UNAVAILABLE = "OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE"
ID = re.compile(r"[A-Za-z0-9._:@/+=~-]+")
LOCALE = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*")
AT_ONCE, HANG_S = 24, 20.0
"""Calls under way: few enough for a service that sheds none. An answer that takes longer is a hang."""
BUILT_IN_ARMS = ("", "millrace", "popular", "random")

REQUESTS: dict[str, type[Message]] = {
    "Recommend": pb.RecommendRequest,
    "Rank": pb.RankRequest,
    "Similar": pb.SimilarRequest,
    "Explain": pb.ExplainRequest,
    "Feedback": pb.FeedbackRequest,
}


@dataclass(frozen=True)
class Shot:
    """One call: the bytes to send and the status names that are right."""

    method: str
    body: bytes
    allowed: frozenset[str]


def fire(address: str, seed: int, calls: int) -> None:
    """Sends so many calls, `AT_ONCE` at a time; raises `AssertionError` with the first answer that is not right."""
    rng = random.Random(seed)
    item_ids = [item.item_id for item in tiny_items()]
    with grpc.insecure_channel(address) as channel:
        send = {method: channel.unary_unary(f"/millrace.ranking.v1.RankingService/{method}") for method in REQUESTS}
        pending: deque[tuple[Shot, grpc.Future]] = deque()
        for shot in _endless(rng, item_ids, calls):
            if len(pending) == AT_ONCE:
                _judge(*pending.popleft())
            pending.append((shot, send[shot.method].future(shot.body, timeout=HANG_S)))
        while pending:
            _judge(*pending.popleft())


def _endless(rng: random.Random, item_ids: Sequence[str], calls: int) -> "Iterator[Shot]":
    left = calls
    while left > 0:
        for shot in shots(rng, item_ids)[:left]:
            left -= 1
            yield shot


def _judge(shot: "Shot", answer: grpc.Future) -> None:
    got = answer.code().name
    said = f"{shot.method} {shot.body[:400].hex()}: got {got} ({answer.details()}), right: {sorted(shot.allowed)}"
    assert got in shot.allowed, said


def shots(rng: random.Random, item_ids: Sequence[str]) -> "list[Shot]":
    """A handful of calls: one random request of each method, and one of them damaged."""
    built = {method: make(rng, item_ids) for method, make in _MAKERS.items()}
    found = [Shot(method, message.SerializeToString(), allowed(method, message)) for method, message in built.items()]
    method = rng.choice(sorted(built))
    damaged = _mutated(rng, built[method].SerializeToString())
    try:
        parsed = REQUESTS[method].FromString(damaged)
    except DecodeError:
        return [*found, Shot(method, damaged, frozenset({INVALID}))]
    return [*found, Shot(method, damaged, allowed(method, parsed))]


def allowed(method: str, message: Message) -> frozenset[str]:
    """The right statuses of a request, in a service that has a bundle, a request log, no callers' file and no Kafka."""
    return _ALLOWED[method](message)


# What is right.


def _recommend(message: Message) -> frozenset[str]:
    assert isinstance(message, pb.RecommendRequest)
    good = (
        _context(message.user_id, message.surface, message.locale, message.device)
        and message.count <= 500
        and message.experiment_arm in BUILT_IN_ARMS
        and _filter(message.filter)
        and not message.page_token
    )
    return _status(good)


def _rank(message: Message) -> frozenset[str]:
    assert isinstance(message, pb.RankRequest)
    good = _context(message.user_id, message.surface, message.locale, message.device)
    return _status(good and _ids(message.item_ids, 10_000))


def _similar(message: Message) -> frozenset[str]:
    assert isinstance(message, pb.SimilarRequest)
    good = _context(message.user_id, message.surface, message.locale, "") and 1 <= len(message.item_id) <= 128
    return _status(good and message.count <= 500 and _filter(message.filter))


def _explain(message: Message) -> frozenset[str]:
    assert isinstance(message, pb.ExplainRequest)
    good = _id(message.request_id, 128) and _ids(message.item_ids, 100)
    return frozenset({NOT_FOUND}) if good else frozenset({INVALID})


def _feedback(message: Message) -> frozenset[str]:
    """Events that break the contract are refused one by one; without Kafka none of the others is taken."""
    assert isinstance(message, pb.FeedbackRequest)
    return frozenset({OK, UNAVAILABLE}) if len(message.events) <= 500 else frozenset({INVALID})


_ALLOWED: dict[str, Callable[[Message], frozenset[str]]] = {
    "Recommend": _recommend,
    "Rank": _rank,
    "Similar": _similar,
    "Explain": _explain,
    "Feedback": _feedback,
}


def _status(good: bool) -> frozenset[str]:
    return frozenset({OK if good else INVALID})


def _context(user_id: str, surface: str, locale: str, device: str) -> bool:
    texts = ((user_id, 128), (surface, 64), (device, 32))
    good_locale = not locale or (len(locale) <= 35 and LOCALE.fullmatch(locale) is not None)
    return good_locale and all(not text or _id(text, most) for text, most in texts)


def _id(text: str, most: int) -> bool:
    return len(text) <= most and ID.fullmatch(text) is not None


def _ids(values: Sequence[str], most: int) -> bool:
    return len(values) <= most and all(1 <= len(value) <= 128 for value in values)


def _filter(rules: pb.ItemFilter) -> bool:
    bounds = (
        (rules.allow_item_ids, 10_000),
        (rules.block_item_ids, 10_000),
        (rules.categories, 1_000),
        (rules.block_categories, 1_000),
        (rules.languages, 100),
    )
    return all(_ids(values, most) for values, most in bounds)


# What is sent.


def _make_recommend(rng: random.Random, items: Sequence[str]) -> Message:
    return pb.RecommendRequest(
        user_id=_user(rng),
        surface=_text(rng, 64),
        device=_text(rng, 32),
        locale=_locale(rng),
        count=_count(rng),
        disable_exploration=rng.random() < 0.5,
        filter=_make_filter(rng, items),
        experiment_arm=rng.choice(BUILT_IN_ARMS) if rng.random() < 0.95 else _text(rng, 20),
        explain=rng.random() < 0.2,
    )


def _make_rank(rng: random.Random, items: Sequence[str]) -> Message:
    return pb.RankRequest(
        user_id=_user(rng),
        surface=_text(rng, 64),
        device=_text(rng, 32),
        locale=_locale(rng),
        item_ids=_some_ids(rng, items, 10_000),
        explain=rng.random() < 0.2,
    )


def _make_similar(rng: random.Random, items: Sequence[str]) -> Message:
    return pb.SimilarRequest(
        item_id=rng.choice((*items[:40], "", "nowhere", "x" * 128, "x" * 129)),
        user_id=_user(rng),
        surface=_text(rng, 64),
        locale=_locale(rng),
        count=_count(rng),
        filter=_make_filter(rng, items),
        explain=rng.random() < 0.2,
    )


def _make_explain(rng: random.Random, items: Sequence[str]) -> Message:
    return pb.ExplainRequest(
        request_id=rng.choice(("", "0" * 32, "nowhere", "?", "x" * 129)), item_ids=_some_ids(rng, items, 100)
    )


def _make_feedback(rng: random.Random, items: Sequence[str]) -> Message:
    events = [
        pb.UserEvent(
            event_id=_text(rng, 64),
            event_type=rng.choice(("impression", "click", "watch", "hide", "", "dance")),
            event_time_ms=rng.choice((0, -1, 1_760_000_000_000, 2**62)),
            user_id=_user(rng),
            item_id=rng.choice(items),
            category=_text(rng, 128),
            creator_id=_text(rng, 128),
            watch_ms=rng.choice((-5, 0, 5_000, 2**40)),
        )
        for _ in range(rng.choice((0, 1, 2, 5, 501)))
    ]
    return pb.FeedbackRequest(events=events)


_MAKERS: dict[str, Callable[[random.Random, Sequence[str]], Message]] = {
    "Recommend": _make_recommend,
    "Rank": _make_rank,
    "Similar": _make_similar,
    "Explain": _make_explain,
    "Feedback": _make_feedback,
}


def _user(rng: random.Random) -> str:
    return rng.choice(("", f"user-{rng.randrange(50)}", _text(rng, 128)))


def _text(rng: random.Random, most: int) -> str:
    """Mostly right; sometimes a character too long, of other characters, or of other alphabets."""
    kind = rng.random()
    if kind < 0.3:
        return ""
    if kind < 0.97:
        return "".join(rng.choices(string.ascii_letters + string.digits + "._:@/+=~-", k=rng.randint(1, most)))
    if kind < 0.985:
        return "a" * (most + rng.randint(0, 2))
    return "".join(rng.choices("aб漢\0\n '\"\\{}😀\u202e", k=rng.randint(1, 8)))


def _locale(rng: random.Random) -> str:
    if rng.random() < 0.9:
        return rng.choice(("", "en", "pt-BR", "zh_Hant_TW"))
    return rng.choice(("e", "en-", "-", "en-123456789", "a" * 40, "öö"))


def _count(rng: random.Random) -> int:
    return rng.choice((0, 1, 10, 50, 499, 500) if rng.random() < 0.9 else (501, 2**31, 2**32 - 1))


def _some_ids(rng: random.Random, items: Sequence[str], most: int) -> list[str]:
    kind = rng.random()
    if kind < 0.3:
        return []
    if kind < 0.96:
        return [rng.choice((*items, "unknown", "😀")) for _ in range(rng.randint(1, min(most, 60)))]
    if kind < 0.98:
        return [rng.choice(items)] * (most + rng.choice((0, 1)))
    return [rng.choice(("", "x" * 129, rng.choice(items))) for _ in range(3)]


def _make_filter(rng: random.Random, items: Sequence[str]) -> pb.ItemFilter | None:
    if rng.random() < 0.6:
        return None
    return pb.ItemFilter(
        allow_item_ids=_some_ids(rng, items, 10_000) if rng.random() < 0.3 else [],
        block_item_ids=_some_ids(rng, items, 10_000) if rng.random() < 0.3 else [],
        categories=_rarely(rng, [""]) or rng.choice(([], ["cats"], ["nowhere"])),
        block_categories=_rarely(rng, ["x" * 129]) or rng.choice(([], ["cats", "song"])),
        languages=_rarely(rng, ["l"] * 101) or rng.choice(([], ["en"], ["pt", "xx"])),
        max_age_ms=rng.choice((0, 1, 3_600_000, 2**63, 2**64 - 1)),
    )


def _rarely(rng: random.Random, values: list[str]) -> list[str]:
    return values if rng.random() < 0.05 else []


def _mutated(rng: random.Random, body: bytes) -> bytes:
    """The bytes with some flipped, cut out, doubled or put in."""
    out = bytearray(body or b"\0")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out)) if out else 0
        match rng.randrange(4):
            case 0 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + rng.randint(1, 8)]
            case 2:
                out[at:at] = out[at : at + rng.randint(1, 8)]
            case _:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(out)
