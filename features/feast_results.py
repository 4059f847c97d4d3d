"""Finalised windows as the results of Feast's response, in protobuf's wire format (`features.protobuf_wire`).

G messages of one value each take ten times as long to make one by one as to parse from what is written here.
Shapes: G entities, F features, B bytes.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from google.protobuf.timestamp_pb2 import Timestamp
from numba import boolean, float64, int64, uint8

from features.algebra import Float64s, Int64s
from features.compiled import compiled, given, inlined
from features.names import MS_PER_SECOND
from features.protobuf_wire import FIXED64, LENGTH, VARINT, tag

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

# Field numbers, never changed by who keeps the messages.
_RESULTS = tag(GetOnlineFeaturesResponse, "results", LENGTH)
_VALUES = tag(GetOnlineFeaturesResponse.FeatureVector, "values", LENGTH)
_STAMPS = tag(GetOnlineFeaturesResponse.FeatureVector, "event_timestamps", LENGTH)
_INT64, _FLOAT64 = tag(ValueProto, "int64_val", VARINT), tag(ValueProto, "double_val", FIXED64)
_SECONDS, _NANOS = tag(Timestamp, "seconds", VARINT), tag(Timestamp, "nanos", VARINT)
_INT64_BYTES, _FLOAT64_BYTES, _STAMP_BYTES = 13, 11, 15
"""What a value or a time takes with its tags, its varints written in so many bytes whatever their value."""
_LENGTH_BYTES = 5
"""What the length of a vector takes at most."""


def encode_results(values_GF: Float64s, is_integer_F: Bools, newest_event_ms_G: Int64s) -> bytes:
    """`repeated FeatureVector results`, one a feature, whose values are all present, with the time of each entity."""
    groups, features = values_GF.shape
    statuses = _encode_statuses(groups)
    rest = len(statuses) + groups * _STAMP_BYTES
    out_B = np.empty(features * (1 + _LENGTH_BYTES + groups * _INT64_BYTES + rest), dtype=np.uint8)
    status_B = np.frombuffer(statuses, dtype=np.uint8)
    size = _write_results(values_GF, is_integer_F, newest_event_ms_G, status_B, out_B)
    return out_B[:size].tobytes()


@lru_cache(maxsize=64)
def _encode_statuses(count: int) -> bytes:
    """`repeated FieldStatus statuses`, all present."""
    return GetOnlineFeaturesResponse.FeatureVector(statuses=[FieldStatus.PRESENT] * count).SerializeToString()


@inlined
def _put_varint(out_B: Bytes, at: int, number: int, size: int) -> int:
    """The lowest `7 * size` bits as a varint of so many bytes; the place after it."""
    for place in range(size):
        out_B[at + place] = (number >> 7 * place) & 0x7F | (0x80 if place < size - 1 else 0)
    return at + size


@inlined
def _put_stamp(out_B: Bytes, at: int, time_ms: int) -> int:
    seconds_bytes, nanos_bytes = 6, 5  # enough for any event time, and for the nanoseconds of a second
    out_B[at], out_B[at + 1] = _STAMPS, 2 + seconds_bytes + nanos_bytes
    out_B[at + 2] = _SECONDS
    at = _put_varint(out_B, at + 3, time_ms // MS_PER_SECOND, seconds_bytes)
    out_B[at] = _NANOS
    return _put_varint(out_B, at + 1, time_ms % MS_PER_SECOND * 1_000_000, nanos_bytes)


@inlined
def _put_value(out_B: Bytes, at: int, value: float, is_integer: bool) -> int:
    out_B[at] = _VALUES
    if is_integer:
        out_B[at + 1], out_B[at + 2] = _INT64_BYTES - 2, _INT64
        at = _put_varint(out_B, at + 3, int(value), 10)
        out_B[at - 1] &= 1  # the last group has one bit, of a negative value the sign
        return at
    out_B[at + 1], out_B[at + 2] = _FLOAT64_BYTES - 2, _FLOAT64
    bits = np.float64(value).view(np.int64)
    for place in range(8):
        out_B[at + 3 + place] = (bits >> 8 * place) & 0xFF
    return at + _FLOAT64_BYTES


@compiled(given(float64, 2), given(boolean, 1), given(int64, 1), given(uint8, 1), uint8[::1], returns=int64)
def _write_results(
    values_GF: Float64s, is_integer_F: Bools, newest_event_ms_G: Int64s, status_B: Bytes, out_B: Bytes
) -> int:
    """Returns how many bytes of `out_B` were written."""
    groups, features = values_GF.shape
    at = 0
    for f in range(features):
        value_bytes = _INT64_BYTES if is_integer_F[f] else _FLOAT64_BYTES
        size = groups * (value_bytes + _STAMP_BYTES) + len(status_B)
        out_B[at] = _RESULTS
        at = _put_varint(out_B, at + 1, size, _LENGTH_BYTES)
        for group in range(groups):
            at = _put_value(out_B, at, values_GF[group, f], is_integer_F[f])
        for place in range(len(status_B)):
            out_B[at + place] = status_B[place]
        at += len(status_B)
        for group in range(groups):
            at = _put_stamp(out_B, at, newest_event_ms_G[group])
    return at
