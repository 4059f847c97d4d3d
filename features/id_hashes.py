"""Ids by their 64-bit hashes (FNV-1a, Fowler, Noll and Vo), which compiled loops make without a Python string an id.

Of a thousand ids and 50,000 items, two that differ have the same hash with a chance of 1 in 10^11.

N ids, B bytes of their texts.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from numba import int8, int64, uint8, uint64

from features.compiled import compiled, given, inlined
from features.events import EVENT_TYPES

Int8s = npt.NDArray[np.int8]
Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


def hashes_of(ids: Collection[str]) -> Uint64s:
    """The hash of each id's UTF-8."""
    texts = [each.encode() for each in ids]
    size_N, hash_N = np.fromiter(map(len, texts), np.int64, len(texts)), np.empty(len(texts), np.uint64)
    _hash(np.frombuffer(b"".join(texts), np.uint8), np.cumsum(size_N), hash_N)
    return hash_N


class TimesById(Mapping[str, int]):
    """Event times by id, as a store's JSON has them without spaces: `{"a":1,"b":2}`, times from 0.

    Hashes and times are there at once; the mapping itself is made when it is asked for.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        if "\\" in text:  # an id that JSON has to escape: none that the contract of events allows
            self.hash_N, self.time_ms_N = hashes_of(self._time_ms), np.array([*self._time_ms.values()], np.int64)
            return
        most = text.count('"')
        hash_N, time_ms_N = np.empty(most, np.uint64), np.empty(most, np.int64)
        size = _parse(np.frombuffer(text.encode(), np.uint8), hash_N, time_ms_N)
        self.hash_N, self.time_ms_N = hash_N[:size], time_ms_N[:size]

    @cached_property
    def _time_ms(self) -> dict[str, int]:
        parsed: dict[str, int] = orjson.loads(self._text)
        return parsed

    def __getitem__(self, each: str) -> int:
        return self._time_ms[each]

    def __iter__(self) -> Iterator[str]:
        return iter(self._time_ms)

    def __len__(self) -> int:
        return len(self.hash_N)


class EventColumns(NamedTuple):
    """What weighs a user's events: N of them, newest first."""

    item_hash_N: Uint64s
    type_code_N: Int8s
    """Into `features.events.EVENT_TYPES`."""
    time_ms_N: Int64s


def event_columns(joined: str) -> EventColumns | None:
    """Of a store's history entries (`features.keyed_sets.encode_interaction`) joined by commas; None where they are
    not spelt as usual, with an id that JSON has to escape or a space.
    """
    if "\\" in joined:
        return None
    most = joined.count('"') // _QUOTES
    columns = EventColumns(np.empty(most, np.uint64), np.empty(most, np.int8), np.empty(most, np.int64))
    read = _parse_events(np.frombuffer(joined.encode(), np.uint8), hashes_of(EVENT_TYPES), *columns)
    return columns if read == most == joined.count("[") == joined.count("]") else None


_STRINGS = 5
"""Of an entry: event, type, item, category and creator; a time stands between the second and the third."""
_QUOTES = 2 * _STRINGS
_QUOTE, _ZERO, _NINE = ord('"'), ord("0"), ord("9")
_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


@inlined
def _hash_one(text_B: Bytes, start: int, end: int) -> np.uint64:
    found = _BASIS
    for b in range(start, end):
        found = (found ^ np.uint64(text_B[b])) * _PRIME
    return found


@inlined
def _number(text_B: Bytes, b: int) -> tuple[int, int]:
    """The number whose digits begin there, and where they end; 0 where there are none."""
    value = 0
    while b < len(text_B) and _ZERO <= text_B[b] <= _NINE:
        value = 10 * value + text_B[b] - _ZERO
        b += 1
    return value, b


@compiled(given(uint8, 1, contiguous=True), given(int64, 1), uint64[::1])
def _hash(text_B: Bytes, end_N: Int64s, hash_N: Uint64s) -> None:
    start = 0
    for n in range(len(end_N)):
        hash_N[n] = _hash_one(text_B, start, end_N[n])
        start = end_N[n]


@compiled(given(uint8, 1, contiguous=True), uint64[::1], int64[::1], returns=int64)
def _parse(text_B: Bytes, hash_N: Uint64s, time_ms_N: Int64s) -> int:
    """Returns how many there are: each an id in quotes, one character, and a number."""
    found, b = 0, 0
    while b < len(text_B):
        if text_B[b] != _QUOTE:
            b += 1
            continue
        start = b + 1
        b = start
        while b < len(text_B) and text_B[b] != _QUOTE:
            b += 1
        hash_N[found] = _hash_one(text_B, start, b)
        time_ms_N[found], b = _number(text_B, b + 2)
        found += 1
    return found


@compiled(given(uint8, 1, contiguous=True), given(uint64, 1), uint64[::1], int8[::1], int64[::1], returns=int64)
def _parse_events(
    text_B: Bytes, type_hash_T: Uint64s, item_hash_N: Uint64s, type_code_N: Int8s, time_ms_N: Int64s
) -> int:
    """Returns how many entries were read: fewer than there is room for where one is of another kind."""
    n, string, b = 0, 0, 0
    while b < len(text_B) and n < len(item_hash_N):
        if text_B[b] != _QUOTE:
            b += 1
            continue
        start = b + 1
        b = start
        while b < len(text_B) and text_B[b] != _QUOTE:
            b += 1
        end = b
        b += 1
        if string == 1:
            type_hash, code = _hash_one(text_B, start, end), 0
            while code < len(type_hash_T) and type_hash_T[code] != type_hash:
                code += 1
            digits = b + 1
            time_ms_N[n], b = _number(text_B, digits)
            if code == len(type_hash_T) or b == digits:
                return n
            type_code_N[n] = code
        elif string == 2:
            item_hash_N[n] = _hash_one(text_B, start, end)
        string += 1
        if string == _STRINGS:
            n, string = n + 1, 0
    return n
