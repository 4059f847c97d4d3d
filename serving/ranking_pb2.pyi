from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecommendRequest(_message.Message):
    __slots__ = ("user_id", "surface", "device", "locale", "count", "disable_exploration", "filter", "experiment_arm", "explain", "page_token")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SURFACE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DISABLE_EXPLORATION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_ARM_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    surface: str
    device: str
    locale: str
    count: int
    disable_exploration: bool
    filter: ItemFilter
    experiment_arm: str
    explain: bool
    page_token: str
    def __init__(self, user_id: _Optional[str] = ..., surface: _Optional[str] = ..., device: _Optional[str] = ..., locale: _Optional[str] = ..., count: _Optional[int] = ..., disable_exploration: _Optional[bool] = ..., filter: _Optional[_Union[ItemFilter, _Mapping]] = ..., experiment_arm: _Optional[str] = ..., explain: _Optional[bool] = ..., page_token: _Optional[str] = ...) -> None: ...

class ItemFilter(_message.Message):
    __slots__ = ("allow_item_ids", "block_item_ids", "categories", "block_categories", "languages", "max_age_ms")
    ALLOW_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    allow_item_ids: _containers.RepeatedScalarFieldContainer[str]
    block_item_ids: _containers.RepeatedScalarFieldContainer[str]
    categories: _containers.RepeatedScalarFieldContainer[str]
    block_categories: _containers.RepeatedScalarFieldContainer[str]
    languages: _containers.RepeatedScalarFieldContainer[str]
    max_age_ms: int
    def __init__(self, allow_item_ids: _Optional[_Iterable[str]] = ..., block_item_ids: _Optional[_Iterable[str]] = ..., categories: _Optional[_Iterable[str]] = ..., block_categories: _Optional[_Iterable[str]] = ..., languages: _Optional[_Iterable[str]] = ..., max_age_ms: _Optional[int] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("user_id", "surface", "device", "locale", "item_ids", "explain")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SURFACE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    surface: str
    device: str
    locale: str
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    explain: bool
    def __init__(self, user_id: _Optional[str] = ..., surface: _Optional[str] = ..., device: _Optional[str] = ..., locale: _Optional[str] = ..., item_ids: _Optional[_Iterable[str]] = ..., explain: _Optional[bool] = ...) -> None: ...

class SimilarRequest(_message.Message):
    __slots__ = ("item_id", "user_id", "surface", "locale", "count", "filter", "explain")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SURFACE_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    user_id: str
    surface: str
    locale: str
    count: int
    filter: ItemFilter
    explain: bool
    def __init__(self, item_id: _Optional[str] = ..., user_id: _Optional[str] = ..., surface: _Optional[str] = ..., locale: _Optional[str] = ..., count: _Optional[int] = ..., filter: _Optional[_Union[ItemFilter, _Mapping]] = ..., explain: _Optional[bool] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id", "item_ids")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., item_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RequestExplanation(_message.Message):
    __slots__ = ("slate", "traces", "full_features")
    SLATE_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    FULL_FEATURES_FIELD_NUMBER: _ClassVar[int]
    slate: Slate
    traces: _containers.RepeatedCompositeFieldContainer[ItemTrace]
    full_features: bool
    def __init__(self, slate: _Optional[_Union[Slate, _Mapping]] = ..., traces: _Optional[_Iterable[_Union[ItemTrace, _Mapping]]] = ..., full_features: _Optional[bool] = ...) -> None: ...

class ItemTrace(_message.Message):
    __slots__ = ("item_id", "shown", "dropped_by", "reason", "score", "needed_score", "sources")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NEEDED_SCORE_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    shown: bool
    dropped_by: str
    reason: str
    score: float
    needed_score: float
    sources: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, item_id: _Optional[str] = ..., shown: _Optional[bool] = ..., dropped_by: _Optional[str] = ..., reason: _Optional[str] = ..., score: _Optional[float] = ..., needed_score: _Optional[float] = ..., sources: _Optional[_Iterable[str]] = ...) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[UserEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[UserEvent, _Mapping]]] = ...) -> None: ...

class UserEvent(_message.Message):
    __slots__ = ("event_id", "event_type", "event_time_ms", "user_id", "item_id", "category", "creator_id", "request_id", "position", "watch_ms", "duration_ms", "device")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    CREATOR_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    WATCH_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    event_type: str
    event_time_ms: int
    user_id: str
    item_id: str
    category: str
    creator_id: str
    request_id: str
    position: int
    watch_ms: int
    duration_ms: int
    device: str
    def __init__(self, event_id: _Optional[str] = ..., event_type: _Optional[str] = ..., event_time_ms: _Optional[int] = ..., user_id: _Optional[str] = ..., item_id: _Optional[str] = ..., category: _Optional[str] = ..., creator_id: _Optional[str] = ..., request_id: _Optional[str] = ..., position: _Optional[int] = ..., watch_ms: _Optional[int] = ..., duration_ms: _Optional[int] = ..., device: _Optional[str] = ...) -> None: ...

class FeedbackResponse(_message.Message):
    __slots__ = ("accepted", "refused")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    refused: _containers.RepeatedCompositeFieldContainer[EventRefusal]
    def __init__(self, accepted: _Optional[int] = ..., refused: _Optional[_Iterable[_Union[EventRefusal, _Mapping]]] = ...) -> None: ...

class EventRefusal(_message.Message):
    __slots__ = ("index", "reason", "retry")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    index: int
    reason: str
    retry: bool
    def __init__(self, index: _Optional[int] = ..., reason: _Optional[str] = ..., retry: _Optional[bool] = ...) -> None: ...

class Slate(_message.Message):
    __slots__ = ("request_id", "items", "bundle_id", "experiment_arm", "served_at_ms", "newest_event_time_ms", "newest_event_age_ms", "item_snapshot_time_ms", "degraded", "stage_times", "candidates_retrieved", "candidates_scored", "unknown_item_ids", "next_page_token")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_ARM_FIELD_NUMBER: _ClassVar[int]
    SERVED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_EVENT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    ITEM_SNAPSHOT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    STAGE_TIMES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_RETRIEVED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_SCORED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    items: _containers.RepeatedCompositeFieldContainer[RankedItem]
    bundle_id: str
    experiment_arm: str
    served_at_ms: int
    newest_event_time_ms: int
    newest_event_age_ms: int
    item_snapshot_time_ms: int
    degraded: _containers.RepeatedCompositeFieldContainer[Degradation]
    stage_times: _containers.RepeatedCompositeFieldContainer[StageTime]
    candidates_retrieved: int
    candidates_scored: int
    unknown_item_ids: _containers.RepeatedScalarFieldContainer[str]
    next_page_token: str
    def __init__(self, request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[RankedItem, _Mapping]]] = ..., bundle_id: _Optional[str] = ..., experiment_arm: _Optional[str] = ..., served_at_ms: _Optional[int] = ..., newest_event_time_ms: _Optional[int] = ..., newest_event_age_ms: _Optional[int] = ..., item_snapshot_time_ms: _Optional[int] = ..., degraded: _Optional[_Iterable[_Union[Degradation, _Mapping]]] = ..., stage_times: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ..., candidates_retrieved: _Optional[int] = ..., candidates_scored: _Optional[int] = ..., unknown_item_ids: _Optional[_Iterable[str]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RankedItem(_message.Message):
    __slots__ = ("item_id", "score", "head_probabilities", "sources", "position", "propensity", "category", "creator_id", "explanation")
    class HeadProbabilitiesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    HEAD_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    CREATOR_ID_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    score: float
    head_probabilities: _containers.ScalarMap[str, float]
    sources: _containers.RepeatedScalarFieldContainer[str]
    position: int
    propensity: float
    category: str
    creator_id: str
    explanation: Explanation
    def __init__(self, item_id: _Optional[str] = ..., score: _Optional[float] = ..., head_probabilities: _Optional[_Mapping[str, float]] = ..., sources: _Optional[_Iterable[str]] = ..., position: _Optional[int] = ..., propensity: _Optional[float] = ..., category: _Optional[str] = ..., creator_id: _Optional[str] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("rank_by_score", "contributions", "features", "explored", "source_ranks", "moves")
    class ContributionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class FeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class SourceRanksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    RANK_BY_SCORE_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    EXPLORED_FIELD_NUMBER: _ClassVar[int]
    SOURCE_RANKS_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    rank_by_score: int
    contributions: _containers.ScalarMap[str, float]
    features: _containers.ScalarMap[str, float]
    explored: bool
    source_ranks: _containers.ScalarMap[str, int]
    moves: _containers.RepeatedCompositeFieldContainer[RerankMove]
    def __init__(self, rank_by_score: _Optional[int] = ..., contributions: _Optional[_Mapping[str, float]] = ..., features: _Optional[_Mapping[str, float]] = ..., explored: _Optional[bool] = ..., source_ranks: _Optional[_Mapping[str, int]] = ..., moves: _Optional[_Iterable[_Union[RerankMove, _Mapping]]] = ...) -> None: ...

class RerankMove(_message.Message):
    __slots__ = ("step", "from_position", "to_position", "reason")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FROM_POSITION_FIELD_NUMBER: _ClassVar[int]
    TO_POSITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    step: str
    from_position: int
    to_position: int
    reason: str
    def __init__(self, step: _Optional[str] = ..., from_position: _Optional[int] = ..., to_position: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Degradation(_message.Message):
    __slots__ = ("stage", "reason")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stage: str
    reason: str
    def __init__(self, stage: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StageTime(_message.Message):
    __slots__ = ("stage", "ms")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    ms: float
    def __init__(self, stage: _Optional[str] = ..., ms: _Optional[float] = ...) -> None: ...
