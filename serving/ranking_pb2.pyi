from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecommendRequest(_message.Message):
    __slots__ = ("user_id", "surface", "device", "locale", "count", "disable_exploration", "filter", "experiment_arm", "explain")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SURFACE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DISABLE_EXPLORATION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_ARM_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    surface: str
    device: str
    locale: str
    count: int
    disable_exploration: bool
    filter: ItemFilter
    experiment_arm: str
    explain: bool
    def __init__(self, user_id: _Optional[str] = ..., surface: _Optional[str] = ..., device: _Optional[str] = ..., locale: _Optional[str] = ..., count: _Optional[int] = ..., disable_exploration: _Optional[bool] = ..., filter: _Optional[_Union[ItemFilter, _Mapping]] = ..., experiment_arm: _Optional[str] = ..., explain: _Optional[bool] = ...) -> None: ...

class ItemFilter(_message.Message):
    __slots__ = ("allow_item_ids", "block_item_ids", "categories", "block_categories")
    ALLOW_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    allow_item_ids: _containers.RepeatedScalarFieldContainer[str]
    block_item_ids: _containers.RepeatedScalarFieldContainer[str]
    categories: _containers.RepeatedScalarFieldContainer[str]
    block_categories: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, allow_item_ids: _Optional[_Iterable[str]] = ..., block_item_ids: _Optional[_Iterable[str]] = ..., categories: _Optional[_Iterable[str]] = ..., block_categories: _Optional[_Iterable[str]] = ...) -> None: ...

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

class Slate(_message.Message):
    __slots__ = ("request_id", "items", "bundle_id", "experiment_arm", "served_at_ms", "newest_event_time_ms", "newest_event_age_ms", "item_snapshot_time_ms", "degraded", "stage_times", "candidates_retrieved", "candidates_scored", "unknown_item_ids")
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
    def __init__(self, request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[RankedItem, _Mapping]]] = ..., bundle_id: _Optional[str] = ..., experiment_arm: _Optional[str] = ..., served_at_ms: _Optional[int] = ..., newest_event_time_ms: _Optional[int] = ..., newest_event_age_ms: _Optional[int] = ..., item_snapshot_time_ms: _Optional[int] = ..., degraded: _Optional[_Iterable[_Union[Degradation, _Mapping]]] = ..., stage_times: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ..., candidates_retrieved: _Optional[int] = ..., candidates_scored: _Optional[int] = ..., unknown_item_ids: _Optional[_Iterable[str]] = ...) -> None: ...

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
    __slots__ = ("rank_by_score", "contributions", "features", "explored", "source_ranks")
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
    rank_by_score: int
    contributions: _containers.ScalarMap[str, float]
    features: _containers.ScalarMap[str, float]
    explored: bool
    source_ranks: _containers.ScalarMap[str, int]
    def __init__(self, rank_by_score: _Optional[int] = ..., contributions: _Optional[_Mapping[str, float]] = ..., features: _Optional[_Mapping[str, float]] = ..., explored: _Optional[bool] = ..., source_ranks: _Optional[_Mapping[str, int]] = ...) -> None: ...

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
