"""Where a user's data stands in files: looked for in decoded Parquet and in raw bytes, by the id or by its digest."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.erasure import digest_of
from features.events import ID_PATTERN

_TOKEN = re.compile(ID_PATTERN.encode())
_ID_CHARACTER = ID_PATTERN.removesuffix("+").encode()


def mentions(value: bytes, user_id: str) -> bool:
    """Whether a record is the user's: by its `user_id` where it is a JSON object that has one, else by any mention."""
    if user_id.encode() not in value and b"\\" not in value:
        return False
    try:
        record = json.loads(value)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict) and isinstance(record.get("user_id"), str):
        return bool(record["user_id"] == user_id)
    return whole_id(user_id).search(value) is not None


def whole_id(user_id: str) -> re.Pattern[bytes]:
    """Finds the id where it is not part of a longer one."""
    return re.compile(rb"(?<!%b)%b(?!%b)" % (_ID_CHARACTER, re.escape(user_id.encode()), _ID_CHARACTER))


def ids_with_digest(values: Iterator[bytes], digest: str) -> set[str]:
    """The identifiers in these texts that have the digest: at most one, but for a collision of SHA-256."""
    seen: set[bytes] = set()
    for value in values:
        seen.update(_TOKEN.findall(value))
    return {token.decode() for token in seen if digest_of(token.decode()) == digest}


def files_that_mention(roots: list[Path], digest: str, user_id: str | None = None) -> list[Path]:
    """The files below the roots that hold the user's id as a whole identifier. Empty when nothing is left.

    With the id the bytes of every file are searched for it, too.
    """
    return [file for root in roots for file in _files(root) if _mentions(file, digest, user_id)]


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _mentions(file: Path, digest: str, user_id: str | None) -> bool:
    if user_id is not None:
        found = whole_id(user_id).search
        return found(file.read_bytes()) is not None or any(found(value) is not None for value in texts(file))
    return bool(ids_with_digest(texts(file), digest))


def texts(file: Path) -> Iterator[bytes]:
    """What a file says: each distinct string of a Parquet file's columns, nested ones included, or all of its bytes."""
    if file.suffix != ".parquet":
        yield file.read_bytes()
        return
    for batch in pq.ParquetFile(file).iter_batches():
        for column in batch.columns:
            yield from _strings(column)


def _strings(array: pa.Array) -> Iterator[bytes]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        yield from _strings(array.dictionary_decode())
    elif pa.types.is_struct(kind):
        for field in array.flatten():
            yield from _strings(field)
    elif pa.types.is_map(kind):
        yield from _strings(array.keys)
        yield from _strings(array.items)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _strings(array.flatten())
    elif kind in _TEXT:
        yield from (
            value.encode() for value in pc.unique(array.cast(pa.large_string())).to_pylist() if value is not None
        )
    elif kind in _BYTES:
        yield from (value for value in pc.unique(array.cast(pa.large_binary())).to_pylist() if value is not None)
    elif not pa.types.is_primitive(kind) and not pa.types.is_null(kind):
        raise TypeError(f"a column of type {kind} cannot be searched: teach batch.user_traces to read it.")


_TEXT = (pa.string(), pa.large_string(), pa.string_view())
_BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
