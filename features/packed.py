"""Arrays as one line of text, for records that are JSON: bit for bit, small, readable without numpy.

base64 of zlib of: a line of JSON, `{name: [dtype, shape]}`, and then each array's bytes, in C order, in that order.
"""

import base64
import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_BYTES = 256 * 1024 * 1024
"""A record that would unpack to more is refused."""


@dataclass(frozen=True, kw_only=True)
class PackedArray:
    """One array. `dtype` is numpy's name with its byte order, such as `<f4`."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def pack(arrays: Mapping[str, PackedArray], compress: Callable[[bytes], bytes] = zlib.compress) -> str:
    """The arrays as text. `compress` writes zlib's format."""
    head = json.dumps({name: [array.dtype, array.shape] for name, array in arrays.items()}, separators=(",", ":"))
    body = b"".join([head.encode(), b"\n", *(array.data for array in arrays.values())])
    return base64.b64encode(compress(body)).decode()


def unpack(text: str) -> dict[str, PackedArray]:
    """Reads what `pack` gave. Raises `ValueError` for anything else."""
    try:
        inflate = zlib.decompressobj()
        body = inflate.decompress(base64.b64decode(text, validate=True), MAX_BYTES)
        if not inflate.eof:
            raise ValueError(f"cut off, or more than {MAX_BYTES} bytes")
        head, _, data = body.partition(b"\n")
        return _arrays(json.loads(head), data)
    except (ValueError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"packed arrays cannot be read: {error}; allowed: what features.packed.pack gave") from error


def _arrays(head: Mapping[str, tuple[str, list[int]]], data: bytes) -> dict[str, PackedArray]:
    found, start = {}, 0
    for name, (dtype, shape) in head.items():
        end = start + math.prod(shape) * int(dtype[2:])
        found[name] = PackedArray(dtype=dtype, shape=tuple(shape), data=data[start:end])
        start = end
    if start != len(data):
        raise ValueError(f"got {len(data)} bytes; allowed: {start}")
    return found
