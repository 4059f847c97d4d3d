"""The rules file: what people pin, boost, block and group by hand. TOML; `serving/rules.example.toml` shows each key.

A file is checked as a whole when it is read: unknown keys, wrong types and contradictions are refused in one sentence.
Items, creators, categories and languages that the catalogue does not know are allowed, since the catalogue changes
without the file; they are counted.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from features.events import MAX_ID_BYTES
from models.configuration import checked
from models.refusal import RefusalError
from serving.query import MAX_COUNT

MAX_RULES = 100
"""Of each kind."""
MAX_NAMES = 20_000
"""Ids and names in all lists of a file. So many are looked up in 5 ms when the catalogue changes."""
MAX_FILE_BYTES = 8 * 1024 * 1024

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES)]
Ids = Annotated[tuple[Id, ...], Field(max_length=MAX_NAMES)]


class RulesError(RefusalError):
    """A rules file that is refused: the message names each wrong rule and key, and what is allowed."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rule(_Model):
    """When and to whom a rule applies. Empty lists mean everybody; all that is given must hold."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Stands in explanations and logs; no two rules share one."""
    surfaces: Ids = ()
    """Surfaces of the request, such as "home"."""
    languages_of_users: Ids = ()
    """The language of the request's locale, such as "pt"; a request without a locale has none."""
    devices: Ids = ()
    """The request's device, such as "tv"."""
    interests: Ids = ()
    """Users who have interacted with one of these categories."""
    starts: AwareDatetime | None = Field(default=None, alias="from")
    """First instant of the rule, with its offset, such as 2026-01-01T00:00:00Z."""
    ends: AwareDatetime | None = Field(default=None, alias="until")
    """First instant after the rule."""

    @model_validator(mode="after")
    def _starts_before_it_ends(self) -> Self:
        if self.starts is not None and self.ends is not None and self.starts >= self.ends:
            raise ValueError(
                f"got from {self.starts.isoformat()}, until {self.ends.isoformat()}; allowed: from < until"
            )
        return self

    def applies(self, to: "Audience") -> bool:
        """Whether the rule holds for a request."""
        return (
            (not self.surfaces or to.surface in self.surfaces)
            and (not self.languages_of_users or to.language in self.languages_of_users)
            and (not self.devices or to.device in self.devices)
            and (not self.interests or not to.interests.isdisjoint(self.interests))
            and (self.starts is None or _ms(self.starts) <= to.instant_ms)
            and (self.ends is None or to.instant_ms < _ms(self.ends))
        )


@dataclass(frozen=True, kw_only=True)
class Audience:
    """What rules ask of a request."""

    surface: str
    language: str | None
    device: str
    interests: frozenset[str]
    """Categories that the user has interacted with."""
    instant_ms: int


class PinRule(Rule):
    """Puts an item at a position of the first page. It stays out where it is unavailable, blocked, or hidden by the
    user, and of several rules for one item the first in the file counts.
    """

    item: Id
    position: int = Field(ge=0, lt=MAX_COUNT)
    """From 0; the next free one where another pin stands, the last one of a shorter slate. A page of fewer positions
    does not show the item."""
    repeat: bool = False
    """Whether users who have seen it see it again. An impression makes an item seen, so without this it is shown once
    to each user."""


class BoostRule(Rule):
    """Raises or lowers the score of items that any of the lists names. Several boosts of an item work together."""

    items: Ids = ()
    creators: Ids = ()
    categories: Ids = ()
    languages: Ids = ()
    """The catalogue's language of the item."""
    add: float | None = Field(default=None, ge=-10, le=10)
    """Standard deviations of the candidates' scores: 1 is strong, 3 is the top of most slates."""
    multiply: float | None = Field(default=None, ge=0, le=10)
    """Of the score's magnitude: 1.2 raises it by a fifth of that, 0.5 lowers it by half."""

    @model_validator(mode="after")
    def _says_what_and_by_how_much(self) -> Self:
        if not (self.items or self.creators or self.categories or self.languages):
            raise ValueError("got none of items, creators, categories, languages; allowed: at least one")
        if (self.add is None) == (self.multiply is None):
            raise ValueError(f"got add={self.add}, multiply={self.multiply}; allowed: exactly one of them")
        return self


class BlockRule(Rule):
    """Keeps items out of Recommend and Similar."""

    items: Ids = ()
    creators: Ids = ()
    categories: Ids = ()

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        if not (self.items or self.creators or self.categories):
            raise ValueError("got none of items, creators, categories; allowed: at least one")
        return self


class VersionsRule(_Model):
    """Items that are versions of one another, such as a re-upload: a page shows the best of them only."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    items: Ids = Field(min_length=2)


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


class Rules(_Model):
    """A rules file."""

    pin: tuple[PinRule, ...] = Field(default=(), max_length=MAX_RULES)
    boost: tuple[BoostRule, ...] = Field(default=(), max_length=MAX_RULES)
    block: tuple[BlockRule, ...] = Field(default=(), max_length=MAX_RULES)
    versions: tuple[VersionsRule, ...] = Field(default=(), max_length=MAX_RULES)
    version: str = Field(default="none", exclude=True)
    """Twelve digits of the file's SHA-256, for logs and slates; "none" without a file."""

    @model_validator(mode="after")
    def _names_and_versions_are_unique(self) -> Self:
        named: tuple[Rule | VersionsRule, ...] = (*self.pin, *self.boost, *self.block, *self.versions)
        names = [rule.name for rule in named]
        if twice := _first_twice(names):
            raise ValueError(f"got the name {twice!r} twice; allowed: each once")
        if twice := _first_twice(chain.from_iterable(rule.items for rule in self.versions)):
            raise ValueError(f"got the item {twice!r} twice in versions; allowed: an item in one list, once")
        names_listed = sum(len(value) for rule in named for _, value in rule if isinstance(value, tuple))
        if names_listed > MAX_NAMES:
            raise ValueError(f"got {names_listed} ids and names; allowed: {MAX_NAMES} in the lists of a file")
        return self


NO_RULES = Rules()


def read_rules(file: Path) -> Rules:
    """Reads and checks a rules file. Raises `RulesError`."""
    try:
        data = file.read_bytes()
        if len(data) > MAX_FILE_BYTES:
            raise RulesError(f"rules {file}: got {len(data)} bytes; allowed: {MAX_FILE_BYTES}; shorten its lists.")
        found = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RulesError(f"rules {file} cannot be read: {error}; give a TOML file.") from None
    if "version" in found:
        raise RulesError(f"rules {file}: unknown key version; allowed: pin, boost, block, versions; correct it.")
    try:
        return checked(Rules, {**found, "version": hashlib.sha256(data).hexdigest()[:12]}, f"rules {file}")
    except RefusalError as error:
        raise RulesError(_RULE_NUMBER.sub(lambda place: _named(found, place), str(error))) from None


_RULE_NUMBER = re.compile(r"\b(pin|boost|block|versions)\.(\d+)(\.?)")
"""How an error names a rule: by its kind and its number from 0."""


def _named(found: Mapping[str, Any], place: re.Match[str]) -> str:
    """The same by its name, where it has one."""
    kind, number, key_follows = place.groups()
    rule = found[kind][int(number)]
    name = repr(rule["name"]) if isinstance(rule, dict) and "name" in rule else f"number {number}"
    return f"{kind} {name}{', ' if key_follows else ''}"


def _ms(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)
