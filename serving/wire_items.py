"""The returned items in protobuf's wire format: what a slate takes in at once, and what its log record is made of.

Made field by field, fifty messages take five times as long (`features.protobuf_wire`).

S positions of the slate, T heads, P sources, N items that the sources proposed, B bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import float32, float64, int32, int64, uint8

from features.compiled import compiled, given, inlined
from features.protobuf_wire import FIXED32, FIXED64, LENGTH, VARINT, tag
from models.item_table import Int32s
from serving import ranking_pb2 as pb

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

# Field numbers, never changed: callers depend on them.
_ITEMS = tag(pb.Slate, "items", LENGTH)
_ITEM_ID, _SCORE = tag(pb.RankedItem, "item_id", LENGTH), tag(pb.RankedItem, "score", FIXED64)
_HEAD = tag(pb.RankedItem, "head_probabilities", LENGTH)
_HEAD_NAME, _HEAD_VALUE = 1 << 3 | LENGTH, 2 << 3 | FIXED32  # every map's entries are so
_SOURCES, _POSITION = tag(pb.RankedItem, "sources", LENGTH), tag(pb.RankedItem, "position", VARINT)
_PROPENSITY = tag(pb.RankedItem, "propensity", FIXED64)
_CATEGORY, _CREATOR = tag(pb.RankedItem, "category", LENGTH), tag(pb.RankedItem, "creator_id", LENGTH)
_SIZE_BYTES = 3
"""What a size or a position takes, whatever it is: up to two million."""
_FRAME_BYTES = 1 + _SIZE_BYTES
_ITEM_BYTES = 5 * _FRAME_BYTES + 2 * 9
"""What an item takes beside its texts, heads and sources."""


@dataclass(frozen=True, kw_only=True)
class ItemColumns:
    """The returned items, a column a field. All numbers but the probabilities are finite."""

    item_index_S: Int32s
    item_ids: Sequence[str]
    categories: Sequence[str]
    creators: Sequence[str]
    score_S: Float64s
    propensity_S: Float64s
    heads: Sequence[str]
    probability_ST: Float32s
    """A head whose prediction is not finite is left out of the item's."""
    by_source: Mapping[str, Int32s]
    """The items that each source proposed, best first."""


def encode(columns: ItemColumns) -> bytes:
    """`repeated RankedItem items` of a `Slate`, without explanations."""
    names = (*columns.heads, *columns.by_source)
    texts = [text.encode() for text in (*names, *columns.item_ids, *columns.categories, *columns.creators)]
    size_X = np.fromiter(map(len, texts), np.int64, len(texts))
    named = int(size_X[: len(names)].sum())
    each = _ITEM_BYTES + named + len(columns.heads) * (2 * _FRAME_BYTES + 5) + len(columns.by_source) * _FRAME_BYTES
    out_B = np.empty(len(columns.item_ids) * each + int(size_X.sum()) - named, np.uint8)
    proposed = [*columns.by_source.values()]
    order_S = np.argsort(columns.item_index_S)
    size = _write(
        np.frombuffer(b"".join(texts), np.uint8),
        np.cumsum(size_X),
        columns.item_index_S[order_S],
        order_S,
        np.concatenate([np.empty(0, np.int32), *proposed]),
        np.array([len(item_index) for item_index in proposed], np.int64),
        columns.score_S,
        columns.propensity_S,
        columns.probability_ST,
        out_B,
    )
    return out_B[:size].tobytes()


@inlined
def _put_size(out_B: Bytes, at: int, size: int) -> int:
    """A varint of `_SIZE_BYTES`; the place after it."""
    out_B[at], out_B[at + 1], out_B[at + 2] = size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14
    return at + _SIZE_BYTES


@inlined
def _put_text(out_B: Bytes, at: int, tag_: int, text_B: Bytes, end_X: Int64s, x: int) -> int:
    start = end_X[x - 1] if x else 0
    out_B[at] = tag_
    at = _put_size(out_B, at + 1, end_X[x] - start)
    for b in range(start, end_X[x]):
        out_B[at] = text_B[b]
        at += 1
    return at


@inlined
def _put_bits(out_B: Bytes, at: int, tag_: int, bits: int, size: int) -> int:
    """A number of fixed width, little-endian."""
    out_B[at] = tag_
    for place in range(size):
        out_B[at + 1 + place] = bits >> 8 * place & 0xFF
    return at + 1 + size


@inlined
def _ranks(ascending_S: Int32s, order_S: Int64s, proposed_N: Int32s, proposed_P: Int64s, positions: int) -> Int32s:
    """Each item's rank in each source `[S, P]`; below 0 where the source did not propose it."""
    rank_SP = np.full((positions, len(proposed_P)), -1, np.int32)
    n = 0
    for p in range(len(proposed_P)):
        for rank in range(proposed_P[p]):
            at = np.searchsorted(ascending_S, proposed_N[n])
            if at < positions and ascending_S[at] == proposed_N[n]:
                rank_SP[order_S[at], p] = rank
            n += 1
    return rank_SP


@compiled(
    given(uint8, 1),
    given(int64, 1),
    given(int32, 1),
    given(int64, 1),
    given(int32, 1),
    given(int64, 1),
    *[given(float64, 1)] * 2,
    given(float32, 2),
    uint8[::1],
    returns=int64,
)
def _write(
    text_B: Bytes,
    end_X: Int64s,
    ascending_S: Int32s,
    order_S: Int64s,
    proposed_N: Int32s,
    proposed_P: Int64s,
    score_S: Float64s,
    propensity_S: Float64s,
    probability_ST: Float32s,
    out_B: Bytes,
) -> int:
    """Texts are the heads, the sources, then each position's item, category and creator. Returns the bytes written."""
    positions, heads = probability_ST.shape
    sources = len(proposed_P)
    rank_SP = _ranks(ascending_S, order_S, proposed_N, proposed_P, positions)
    at = 0
    for s in range(positions):
        out_B[at] = _ITEMS
        start = at + _FRAME_BYTES
        x = heads + sources + s
        at = _put_text(out_B, start, _ITEM_ID, text_B, end_X, x)
        at = _put_bits(out_B, at, _SCORE, int(np.float64(score_S[s]).view(np.int64)), 8)
        for t in range(heads):
            if np.isfinite(probability_ST[s, t]):
                out_B[at] = _HEAD
                entry = at + _FRAME_BYTES
                at = _put_text(out_B, entry, _HEAD_NAME, text_B, end_X, t)
                at = _put_bits(out_B, at, _HEAD_VALUE, int(np.float32(probability_ST[s, t]).view(np.int32)), 4)
                _put_size(out_B, entry - _SIZE_BYTES, at - entry)
        for _ in range(sources):
            best = -1
            for p in range(sources):
                if rank_SP[s, p] >= 0 and (best < 0 or rank_SP[s, p] < rank_SP[s, best]):
                    best = p
            if best < 0:
                break
            rank_SP[s, best] = -1
            at = _put_text(out_B, at, _SOURCES, text_B, end_X, heads + best)
        out_B[at] = _POSITION
        at = _put_size(out_B, at + 1, s)
        at = _put_bits(out_B, at, _PROPENSITY, int(np.float64(propensity_S[s]).view(np.int64)), 8)
        at = _put_text(out_B, at, _CATEGORY, text_B, end_X, x + positions)
        at = _put_text(out_B, at, _CREATOR, text_B, end_X, x + 2 * positions)
        _put_size(out_B, start - _SIZE_BYTES, at - start)
    return at
