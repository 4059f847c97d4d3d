"""Who may call: the callers file, and whose key a key is.

    [[caller]]
    name = "home-page"
    key_sha256 = ["3a6e…"]                # of each of its keys; `millrace callers add` makes one
    methods = ["Recommend", "Similar"]    # all, unless it is given
    requests_per_second = 100
    burst_s = 2

The file holds no key, only hashes. Keys are 256 random bits, so a plain SHA-256 gives nothing away and needs no salt.
"""

import hashlib
import hmac
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.configuration import checked
from models.refusal import RefusalError

MAX_CALLERS = 1_000
Method = Literal["Recommend", "Rank", "Similar", "Explain", "Feedback"]
METHODS: tuple[Method, ...] = get_args(Method)
ANONYMOUS = "anonymous"
"""Everybody, where there is no callers file."""


class CallersError(RefusalError):
    """A callers file that is refused: what was got, what is allowed, what to do."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Caller(_Model):
    """One product service, or whoever else holds keys of its own."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    """Stands in metrics."""
    key_sha256: Annotated[list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]], Field(min_length=1, max_length=10)]
    """SHA-256 of each key in hexadecimal; two while one replaces the other."""
    methods: Annotated[list[Method], Field(min_length=1)] = list(METHODS)
    requests_per_second: int = Field(default=100, ge=1, le=100_000)
    """Of all methods together; of each worker process, unless they share a `--rate-store`."""
    burst_s: int = Field(default=1, ge=1, le=60)
    """The rate holds over any so many seconds in a row, so that many seconds' requests may come at once."""


class _File(_Model):
    caller: Annotated[list[Caller], Field(max_length=MAX_CALLERS)] = []

    @model_validator(mode="after")
    def _nobody_twice(self) -> Self:
        for what, values in (
            ("the name", [caller.name for caller in self.caller]),
            ("the key", [digest for caller in self.caller for digest in caller.key_sha256]),
        ):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{what} {twice[0]} stands twice; allowed: once")
        return self


class Callers:
    """The callers of one file."""

    def __init__(self, callers: Mapping[bytes, Caller]) -> None:
        """By the digest of each key."""
        self._by_digest = tuple(callers.items())

    def __len__(self) -> int:
        return len({caller.name for _, caller in self._by_digest})

    def of(self, key: str) -> Caller | None:
        """Whose key it is. Takes the same time whichever it is, and if it is nobody's."""
        digest, found = hashlib.sha256(key.encode()).digest(), None
        for known, caller in self._by_digest:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def read_callers(file: Path) -> Callers:
    """Reads and checks a callers file. Raises `CallersError`."""
    callers = callers_of(read_text(file), file)
    return Callers({bytes.fromhex(digest): caller for caller in callers for digest in caller.key_sha256})


def read_text(file: Path) -> str:
    """The file's text. Raises `CallersError`."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CallersError(f"callers {file} cannot be read: {error}; give a TOML file.") from None


def callers_of(text: str, file: Path) -> list[Caller]:
    """The callers of a file's text in their order. Raises `CallersError`, which names the file."""
    try:
        return checked(_File, tomllib.loads(text), f"callers {file}").caller
    except tomllib.TOMLDecodeError as error:
        raise CallersError(f"callers {file} cannot be read: {error}; give a TOML file.") from None
    except RefusalError as error:
        raise CallersError(str(error)) from None
