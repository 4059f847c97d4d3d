"""A request as the pipeline reads it, and the bounds that a wire request must keep."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from features.events import ID_PATTERN, MAX_ID_BYTES
from serving import ranking_pb2
from serving.arms import MILLRACE, Arm
from serving.experiments import NO_EXPERIMENTS, Experiments
from serving.paging import FIRST_PAGE, Scroll, TokenError, read_token

MAX_COUNT = 500
MAX_ITEM_IDS = 10_000
MAX_CATEGORIES = 1_000
MAX_LANGUAGES = 100
MAX_TRACED = 100
MAX_EVENTS = 500
MAX_SURFACE = 64
MAX_DEVICE = 32
MAX_LOCALE = 35
DEFAULT_SURFACE = "home"
_LOCALE_PATTERN = r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*"


class RequestError(ValueError):
    """A field of a request that is not allowed: INVALID_ARGUMENT on the wire."""

    def __init__(self, field: str, got: object, allowed: str) -> None:
        text = repr(got)
        super().__init__(f"{field}: got {text if len(text) <= 80 else text[:77] + '...'}; allowed: {allowed}.")
        self.field = field


@dataclass(frozen=True, kw_only=True)
class ItemRules:
    """Which items a caller wants. Empty sets allow everything and block nothing."""

    allow_item_ids: frozenset[str] = frozenset()
    block_item_ids: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()
    block_categories: frozenset[str] = frozenset()
    languages: frozenset[str] = frozenset()
    max_age_ms: int = 0
    """Since publication; 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One valid request. `item_ids` is None but for Rank, whose caller's distinct ids it holds."""

    request_id: str
    user_id: str
    surface: str = DEFAULT_SURFACE
    device: str = ""
    language: str | None = None
    count: int
    explore: bool = True
    rules: ItemRules = ItemRules()
    arm: Arm = MILLRACE
    explain: bool = False
    item_ids: tuple[str, ...] | None = None
    similar_to: str | None = None
    """The item of a Similar request."""
    scroll: Scroll = FIRST_PAGE


def recommend_query(
    request: ranking_pb2.RecommendRequest, request_id: str, experiments: Experiments = NO_EXPERIMENTS
) -> Query:
    """Checks a Recommend request. Raises `RequestError` naming the field, what was got and what is allowed."""
    _check_count(request.count)
    user_id = _text("user_id", request.user_id, MAX_ID_BYTES)
    return Query(
        request_id=request_id,
        user_id=user_id,
        surface=_text("surface", request.surface, MAX_SURFACE) or DEFAULT_SURFACE,
        device=_text("device", request.device, MAX_DEVICE),
        language=_language(request.locale),
        count=request.count,
        explore=not request.disable_exploration,
        rules=_item_rules(request.filter),
        arm=_arm(request.experiment_arm, user_id, experiments),
        explain=request.explain,
        scroll=_scroll(request.page_token, user_id),
    )


def rank_query(request: ranking_pb2.RankRequest, request_id: str, experiments: Experiments = NO_EXPERIMENTS) -> Query:
    """Checks a Rank request. Raises `RequestError` naming the field, what was got and what is allowed."""
    _ids("item_ids", request.item_ids, MAX_ITEM_IDS)
    distinct = tuple(dict.fromkeys(request.item_ids))
    user_id = _text("user_id", request.user_id, MAX_ID_BYTES)
    return Query(
        request_id=request_id,
        user_id=user_id,
        surface=_text("surface", request.surface, MAX_SURFACE) or DEFAULT_SURFACE,
        device=_text("device", request.device, MAX_DEVICE),
        language=_language(request.locale),
        count=len(distinct),
        explore=False,
        arm=_arm("", user_id, experiments),
        explain=request.explain,
        item_ids=distinct,
    )


def similar_query(
    request: ranking_pb2.SimilarRequest, request_id: str, experiments: Experiments = NO_EXPERIMENTS
) -> Query:
    """Checks a Similar request. Raises `RequestError` naming the field, what was got and what is allowed."""
    _check_count(request.count)
    if not 1 <= len(request.item_id) <= MAX_ID_BYTES:
        raise RequestError("item_id", request.item_id, f"1 to {MAX_ID_BYTES} characters")
    user_id = _text("user_id", request.user_id, MAX_ID_BYTES)
    return Query(
        request_id=request_id,
        user_id=user_id,
        surface=_text("surface", request.surface, MAX_SURFACE) or DEFAULT_SURFACE,
        language=_language(request.locale),
        count=request.count,
        explore=False,
        arm=_arm("", user_id, experiments),
        rules=_item_rules(request.filter),
        explain=request.explain,
        similar_to=request.item_id,
    )


def check_explain(request: ranking_pb2.ExplainRequest) -> None:
    """Checks an Explain request. Raises `RequestError` naming the field, what was got and what is allowed."""
    if not _text("request_id", request.request_id, MAX_ID_BYTES):
        raise RequestError("request_id", "", f"1 to {MAX_ID_BYTES} characters of {ID_PATTERN}")
    _ids("item_ids", request.item_ids, MAX_TRACED)


def check_feedback(request: ranking_pb2.FeedbackRequest) -> None:
    """Checks a Feedback request but for its events, which are judged one by one. Raises `RequestError`."""
    if len(request.events) > MAX_EVENTS:
        raise RequestError("events", f"{len(request.events)} events", f"at most {MAX_EVENTS}")


def _check_count(count: int) -> None:
    if count > MAX_COUNT:
        raise RequestError("count", count, f"0 to {MAX_COUNT}")


def _item_rules(rules: ranking_pb2.ItemFilter) -> ItemRules:
    return ItemRules(
        allow_item_ids=_ids("filter.allow_item_ids", rules.allow_item_ids, MAX_ITEM_IDS),
        block_item_ids=_ids("filter.block_item_ids", rules.block_item_ids, MAX_ITEM_IDS),
        categories=_ids("filter.categories", rules.categories, MAX_CATEGORIES),
        block_categories=_ids("filter.block_categories", rules.block_categories, MAX_CATEGORIES),
        languages=_ids("filter.languages", rules.languages, MAX_LANGUAGES),
        max_age_ms=rules.max_age_ms,
    )


def _scroll(token: str, user_id: str) -> Scroll:
    try:
        return read_token(token, user_id)
    except TokenError as error:
        raise RequestError("page_token", token, str(error)) from None


def _arm(asked: str, user_id: str, experiments: Experiments) -> Arm:
    if not asked:
        return experiments.assigned(user_id)
    if (arm := experiments.arms.get(asked)) is None:
        raise RequestError("experiment_arm", asked, "empty or one of " + ", ".join(sorted(experiments.arms)))
    return arm


def _text(field: str, value: str, max_length: int) -> str:
    if value and (len(value) > max_length or not re.fullmatch(ID_PATTERN, value)):
        raise RequestError(field, value, f"empty, or 1 to {max_length} characters of {ID_PATTERN}")
    return value


def _language(locale: str) -> str | None:
    if not locale:
        return None
    if len(locale) > MAX_LOCALE or not re.fullmatch(_LOCALE_PATTERN, locale):
        raise RequestError("locale", locale, 'empty, or a BCP 47 tag such as "en" or "pt-BR"')
    return re.split("[-_]", locale)[0].lower()


def _ids(field: str, values: Sequence[str], max_values: int) -> frozenset[str]:
    if len(values) > max_values:
        raise RequestError(field, f"{len(values)} values", f"at most {max_values}")
    for i, value in enumerate(values):
        if not value or len(value) > MAX_ID_BYTES:
            raise RequestError(f"{field}[{i}]", value, f"1 to {MAX_ID_BYTES} characters")
    return frozenset(values)
