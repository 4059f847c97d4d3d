"""The ranker's inputs, assembled by the same code from a live request and from training examples.

Values enter raw: the model graph itself takes logarithms and standardises, so that serving cannot differ.
The user's side has U rows, the candidates' side C; U is C (training, one row an example) or 1 (serving, one user),
and the graph broadcasts. Shapes: F windowed features, S statics, L history slots, E embedded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import float32, int32, int64

from features.compiled import compiled, given, inlined
from features.names import MS_PER_HOUR
from features.specs import Entity, features_of
from models.history import Histories, UserHistory
from models.item_table import UNKNOWN, ItemTable

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]

HEADS: tuple[str, ...] = ("click", "completion", "like", "share", "hide", "watch_fraction")
"""What the ranker predicts of an impression. Completion and watch fraction are of those who watch at all."""
CANDIDATE_ENTITIES: tuple[Entity, ...] = (Entity.USER_CATEGORY, Entity.ITEM, Entity.CREATOR, Entity.CATEGORY)
USER_FEATURES: tuple[str, ...] = tuple(feature.name for feature in features_of(Entity.USER))
CANDIDATE_FEATURES: tuple[str, ...] = tuple(
    feature.name for entity in CANDIDATE_ENTITIES for feature in features_of(entity)
)
AFFINITIES: tuple[str, ...] = ("als_product", "als_cosine")
"""Inner product and cosine of the user's factors, folded in from the whole history, and the item's."""
HISTORY_LENGTH = 20
MAX_POSITION = 30
"""Positions at or beyond this share one embedding."""
SERVING_POSITION = 0
"""Position is an input in training, so that the other inputs need not explain it; serving asks as if at the top."""
STATICS: tuple[str, ...] = ("duration_ms", "age_ms")
EMBEDDED: tuple[str, ...] = ("item", "category", "creator", "language")
OOV = 0
"""The embedding row of what training did not know, and of empty history slots."""


@dataclass(frozen=True, kw_only=True)
class RankerInputs:
    """Named arrays of one forward pass, in the types that the ONNX graph declares. Non-finite values never enter."""

    user_UF: Float32s
    """Windowed features of the user, raw, in the order of `USER_FEATURES`."""
    device_U: Int32s
    hour_U: Int32s
    """Hour of the day, UTC, 0 to 23."""
    history_item_UL: Int32s
    history_category_UL: Int32s
    history_creator_UL: Int32s
    history_language_UL: Int32s
    history_weight_UL: Float32s
    """Weight of each history item; 0 marks an empty slot."""
    history_age_ms_UL: Float32s
    candidate_CF: Float32s
    """Windowed features of the candidate, raw, in the order of `CANDIDATE_FEATURES`."""
    static_CS: Float32s
    """Duration and age since publication, both in milliseconds."""
    affinity_CA: Float32s
    """What ALS says of the history and the candidate, in the order of `AFFINITIES`; 0 where it knows nothing."""
    item_C: Int32s
    category_C: Int32s
    creator_C: Int32s
    language_C: Int32s
    position_C: Int32s

    def __len__(self) -> int:
        return len(self.item_C)

    def feed(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by the graph's input names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take(self, rows: Int64s) -> "RankerInputs":
        """The given rows of a set whose user side has a row an example."""
        return RankerInputs(**{name: array[rows] for name, array in self.feed().items()})

    def as_served(self) -> "RankerInputs":
        """The same inputs, asked for at the serving position."""
        return replace(self, position_C=np.full_like(self.position_C, SERVING_POSITION))


class Rows(NamedTuple):
    """A matrix of features, and which of its rows each candidate has; -1 is the last one."""

    values_XF: Floats
    row_C: Int64s


@dataclass(frozen=True, kw_only=True)
class RankerLayout:
    """What a trained ranker expects of its inputs; saved beside it, checked when it is loaded."""

    user_features: tuple[str, ...] = USER_FEATURES
    candidate_features: tuple[str, ...] = CANDIDATE_FEATURES
    heads: tuple[str, ...] = HEADS
    history_length: int = HISTORY_LENGTH
    devices: tuple[str, ...] = ()
    """Known devices; any other is out of vocabulary."""
    items: int
    categories: int
    creators: int
    languages: int

    def to_json(self) -> dict[str, Any]:
        """The layout as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "RankerLayout":
        """Reads what `to_json` gave. Raises `TypeError` when a field is absent or unknown."""
        values: dict[str, Any] = {name: tuple(got) if isinstance(got, list) else got for name, got in record.items()}
        return RankerLayout(**values)

    def mismatch(self) -> str | None:
        """What differs from the inputs that this code assembles, as a clause; None when nothing does."""
        for name, expected in (("user_features", USER_FEATURES), ("candidate_features", CANDIDATE_FEATURES)):
            got = getattr(self, name)
            if got != expected:
                changed = sorted(set(got) ^ set(expected))
                return f"its {name} differ from this code's in {', '.join(changed) or 'their order'}"
        return None


def assemble_request(
    *,
    layout: RankerLayout,
    item_table: ItemTable,
    item_index_C: Int32s,
    instant_ms: int,
    user_features_F: Floats,
    user_category_CF: Floats | Rows,
    item_CF: Floats | Rows,
    creator_CF: Floats | Rows,
    category_CF: Floats | Rows,
    history: UserHistory,
    affinity_CA: Float32s | None = None,
    device: str | None,
) -> RankerInputs:
    """The inputs of one live request: one user row, C candidate rows, every candidate at `SERVING_POSITION`.

    Windowed features come in the order of `features.specs.features_of`, those of candidates as they are or as `Rows`
    that they are gathered from. Non-finite values become 0, and so does an affinity that is not given.
    """
    kept = slice(0, layout.history_length)
    rows = Histories(
        row_N=np.zeros(len(history.item_index_L[kept]), np.int64),
        item_index_N=history.item_index_L[kept],
        weight_N=history.weight_L[kept],
        time_ms_N=history.time_ms_L[kept],
    )
    instant_C = np.full(len(item_index_C), instant_ms, np.int64)
    return RankerInputs(
        user_UF=clean(user_features_F[None, :]),
        device_U=device_codes(layout, [device]),
        hour_U=hours(instant_C[:1] if len(instant_C) else np.array([instant_ms])),
        **history_slots(layout, item_table, rows, np.array([instant_ms], np.int64)),
        candidate_CF=_gathered(len(item_index_C), user_category_CF, item_CF, creator_CF, category_CF),
        **item_columns(layout, item_table, item_index_C, instant_C),
        affinity_CA=no_affinity(len(item_index_C)) if affinity_CA is None else clean(affinity_CA),
        position_C=np.full(len(item_index_C), SERVING_POSITION, np.int32),
    )


def _gathered(candidates: int, *parts: Floats | Rows) -> Float32s:
    """The parts beside each other, non-finite values as 0."""
    rows = [part if isinstance(part, Rows) else Rows(part, np.arange(candidates)) for part in parts]
    gathered_CF = np.empty((candidates, sum(part.values_XF.shape[1] for part in rows)), np.float32)
    first = 0
    for values_XF, row_C in rows:
        _gather(np.ascontiguousarray(values_XF, np.float32), row_C, first, gathered_CF)
        first += values_XF.shape[1]
    return gathered_CF


def no_affinity(rows: int) -> Float32s:
    """Of candidates of whom ALS says nothing."""
    return np.zeros((rows, len(AFFINITIES)), np.float32)


def item_columns(
    layout: RankerLayout, item_table: ItemTable, item_index_C: Int32s, instant_ms_C: Int64s
) -> dict[str, npt.NDArray[Any]]:
    """The catalogue's part of the inputs. An item published after the instant has age 0.

    An `UNKNOWN` item is out of vocabulary in everything, with duration and age 0.
    """
    static_CS = np.empty((len(item_index_C), len(STATICS)), np.float32)
    row_EC = np.empty((len(EMBEDDED), len(item_index_C)), np.int32)
    _lay_items(
        np.asarray(item_index_C, np.int32),
        instant_ms_C,
        item_table.duration_ms,
        item_table.published_at_ms,
        *_codes(item_table),
        _known(layout),
        UNKNOWN,
        static_CS,
        row_EC,
    )
    return {"static_CS": static_CS, **{f"{name}_C": row_C for name, row_C in zip(EMBEDDED, row_EC, strict=True)}}


def history_slots(
    layout: RankerLayout, item_table: ItemTable, histories: Histories, instant_ms_U: Int64s
) -> dict[str, npt.NDArray[Any]]:
    """Lays each user row's newest items into L slots; empty slots have weight 0."""
    shape = (len(instant_ms_U), layout.history_length)
    row_EUL, weight_UL, age_ms_UL = np.zeros((len(EMBEDDED), *shape), np.int32), *np.zeros((2, *shape), np.float32)
    _lay_histories(
        histories.row_N,
        histories.item_index_N,
        histories.weight_N,
        histories.time_ms_N,
        instant_ms_U,
        *_codes(item_table),
        _known(layout),
        row_EUL,
        weight_UL,
        age_ms_UL,
    )
    rows = {f"history_{name}_UL": row_UL for name, row_UL in zip(EMBEDDED, row_EUL, strict=True)}
    return {**rows, "history_weight_UL": weight_UL, "history_age_ms_UL": age_ms_UL}


def _codes(item_table: ItemTable) -> tuple[Int32s, Int32s, Int32s]:
    return item_table.category_code, item_table.creator_code, item_table.language_code


def _known(layout: RankerLayout) -> Int64s:
    """How many of each of `EMBEDDED` training knew."""
    return np.array([layout.items, layout.categories, layout.creators, layout.languages])


def device_codes(layout: RankerLayout, devices: Sequence[str | None]) -> Int32s:
    """Embedding row of each device; None and unknown ones are `OOV`."""
    rows = {device: row for row, device in enumerate(layout.devices, start=1)}
    return np.array([rows.get(device or "", OOV) for device in devices], np.int32)


def hours(instant_ms: Int64s) -> Int32s:
    """Hour of the day, UTC."""
    return (instant_ms // MS_PER_HOUR % 24).astype(np.int32)


def clean(values: npt.NDArray[Any]) -> Float32s:
    """Values as float32, non-finite ones as 0; the same array where it is so already."""
    single = values.astype(np.float32, copy=False)
    finite = np.isfinite(single)
    return single if finite.all() else np.where(finite, single, np.float32(0))


@inlined
def _embedding_row(code: int, known: int) -> int:
    """One above the code, or `OOV` where training did not know it."""
    return code + 1 if 0 <= code < known else OOV


_INT32S, _INT64S = given(int32, 1), given(int64, 1)


@compiled(given(float32, 2, contiguous=True), _INT64S, int64, float32[:, ::1])
def _gather(values_XF: Float32s, row_C: Int64s, first: int, gathered_CF: Float32s) -> None:
    """Fills the columns from the first on with each candidate's row."""
    if len(row_C) != len(gathered_CF):
        raise ValueError("row_C: needed is a row for each candidate.")
    rows, features = values_XF.shape
    for c in range(len(row_C)):
        row = row_C[c] + rows if row_C[c] < 0 else row_C[c]
        if not 0 <= row < rows:
            raise IndexError("row_C: a row that the matrix does not have.")
        for f in range(features):
            value = values_XF[row, f]
            gathered_CF[c, first + f] = value if np.isfinite(value) else float32(0)


@compiled(_INT32S, *[_INT64S] * 3, *[_INT32S] * 3, _INT64S, int64, float32[:, ::1], int32[:, ::1])
def _lay_items(
    item_index_C: Int32s,
    instant_ms_C: Int64s,
    duration_ms_I: Int64s,
    published_at_ms_I: Int64s,
    category_I: Int32s,
    creator_I: Int32s,
    language_I: Int32s,
    known_E: Int64s,
    unknown: int,
    static_CS: Float32s,
    row_EC: Int32s,
) -> None:
    for c in range(len(item_index_C)):
        item = item_index_C[c]
        if item == unknown:
            static_CS[c], row_EC[:, c] = 0, OOV
            continue
        if not 0 <= item < len(duration_ms_I):
            raise IndexError("item_index_C: an item that the table does not hold.")
        static_CS[c, 0] = duration_ms_I[item]
        static_CS[c, 1] = max(instant_ms_C[c] - published_at_ms_I[item], 0)
        row_EC[0, c] = _embedding_row(item, known_E[0])
        row_EC[1, c] = _embedding_row(category_I[item], known_E[1])
        row_EC[2, c] = _embedding_row(creator_I[item], known_E[2])
        row_EC[3, c] = _embedding_row(language_I[item], known_E[3])


@compiled(
    _INT64S,
    _INT32S,
    given(float32, 1),
    *[_INT64S] * 2,
    *[_INT32S] * 3,
    _INT64S,
    int32[:, :, ::1],
    *[float32[:, ::1]] * 2,
)
def _lay_histories(
    row_N: Int64s,
    item_index_N: Int32s,
    weight_N: Float32s,
    time_ms_N: Int64s,
    instant_ms_U: Int64s,
    category_I: Int32s,
    creator_I: Int32s,
    language_I: Int32s,
    known_E: Int64s,
    row_EUL: Int32s,
    weight_UL: Float32s,
    age_ms_UL: Float32s,
) -> None:
    """Rows ascend, so the slots of one row are counted from its first event."""
    users, length = weight_UL.shape
    first = 0
    for n in range(len(row_N)):
        u, item = row_N[n], item_index_N[n]
        if not (0 <= u < users and 0 <= item < len(category_I)):
            raise IndexError("histories: a row or an item that is not there.")
        if u != row_N[first]:
            first = n
        slot = n - first
        if slot >= length:
            continue
        row_EUL[0, u, slot] = _embedding_row(item, known_E[0])
        row_EUL[1, u, slot] = _embedding_row(category_I[item], known_E[1])
        row_EUL[2, u, slot] = _embedding_row(creator_I[item], known_E[2])
        row_EUL[3, u, slot] = _embedding_row(language_I[item], known_E[3])
        weight_UL[u, slot] = weight_N[n]
        age_ms_UL[u, slot] = max(instant_ms_U[u] - time_ms_N[n], 0)
