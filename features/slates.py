"""The slate contract: what the service logs of every answer, one record of the slates topic, keyed by user_id.

Version 1 had each returned item's windowed features as a JSON object. Version 2 has all that the service read in
`SlateRecord.evidence`, its numbers packed, so that the request can be run again; a third of the bytes all the same.
Both versions are read.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict

from features.packed import PackedArray, unpack

SLATE_SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class SlateItem:
    """One returned item."""

    item_id: str
    position: int
    score: float
    propensity: float
    """Probability, given the items above, of this item at this position; 1 where nothing was drawn."""
    sources: tuple[str, ...]
    """Candidate sources that proposed it, best rank first."""
    probabilities: Mapping[str, float]
    """Calibrated prediction per head; empty when the ranker did not score."""
    category: str = ""
    creator_id: str = ""
    """As in the catalogue; empty before version 2."""
    features: Mapping[str, float] = field(default_factory=dict)
    """Version 1's. Read them by `SlateRecord.item_features`, which knows both versions."""


class SlateCandidate(TypedDict):
    """One scored candidate, returned or not. There are hundreds in a record, so it is what JSON has."""

    item_id: str
    score: float
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SlateEvidence:
    """What the service read and set for one answer: enough to run it again from the features on, on its bundle."""

    method: str
    """Recommend, Rank or Similar."""
    query: Mapping[str, Any]
    """The request's fields as they were read, the item filter's among them."""
    settings: Mapping[str, Any]
    """The arm with its value weights and rerank settings, and what the rules file said of the candidates."""
    user: Mapping[str, Any]
    """The user's state as it was read: its instant, categories and history."""
    catalogue: tuple[Mapping[str, Any], ...]
    """Rows of the items topic for candidates and history, where the bundle's catalogue has other ones or none."""
    unscored: tuple[str, ...]
    """What sources proposed beside the candidates: filtered, or beyond the limit."""
    sources: Mapping[str, int]
    """How many items each source proposed."""
    excluded_since: Mapping[str, Mapping[str, Any]]
    """For each reason, which items that came after the bundle were filtered: `ids`, or with `but` all but them."""
    candidates_retrieved: int
    stage_ms: Mapping[str, float]
    unknown_item_ids: tuple[str, ...]
    next_page_token: str
    candidate_features: tuple[str, ...]
    """Names of the columns of the array `candidate_CF`; empty when the ranker did not score."""
    full_features: bool
    """Whether the ranker's inputs of every candidate are there, not the returned items' only."""
    arrays: str
    """Numbers (`features.packed`): see `serving.slate_record`."""

    def to_fields(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: got for name, got in vars(self).items() if name != "unpacked"}

    @cached_property
    def unpacked(self) -> Mapping[str, PackedArray]:
        """The arrays. Raises `SlateError` when they cannot be read."""
        try:
            return unpack(self.arrays)
        except ValueError as error:
            raise SlateError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class SlateRecord:
    """One served slate with what stands behind it. JSON numbers are finite, times milliseconds UTC."""

    request_id: str
    user_id: str
    """Empty for an anonymous user."""
    served_at_ms: int
    surface: str
    bundle_id: str
    arm: str
    degraded: tuple[str, ...]
    """`stage: reason` of each stage that fell back."""
    snapshot_instant_ms: int
    """The instant at which item, creator and category features were finalised."""
    newest_event_ms: int | None
    """Event time of the user's newest event behind the slate."""
    user_features: Mapping[str, float]
    """The user's windowed features as the ranker read them, by name; empty when it did not score."""
    items: tuple[SlateItem, ...]
    candidates: tuple[SlateCandidate, ...]
    evidence: SlateEvidence | None = None
    """None before version 2."""
    schema_version: int = SLATE_SCHEMA_VERSION
    spec_version: str = ""
    """`features.specs.version` of the windowed features; empty in records from before it was logged."""

    def to_fields(self) -> dict[str, Any]:
        """The record as JSON values."""
        # The objects' `vars` are their fields: 5 times as fast as `asdict`.
        items = [{name: got for name, got in vars(item).items() if name != "features" or got} for item in self.items]
        evidence = None if self.evidence is None else self.evidence.to_fields()
        return {**vars(self), "items": items, "evidence": evidence}

    def to_json(self) -> bytes:
        """The record as it stands on the wire. Raises `ValueError` for a number that is not finite."""
        return json.dumps(self.to_fields(), separators=(",", ":"), allow_nan=False).encode()

    def item_features(self, position: int) -> Mapping[str, float]:
        """The windowed features of the item at a position as the ranker read them, by name.

        Empty when the ranker did not score, and for a position whose features were not logged.
        """
        if self.evidence is None or not self.evidence.candidate_features:
            return self.items[position].features
        return _row_of(self.evidence, position)


class SlateError(ValueError):
    """A record that is not a slate."""


def parse_slate(value: bytes) -> SlateRecord:
    """Reads one record of the slates topic. Raises `SlateError` naming what is wrong; ignores unknown fields."""
    try:
        record = json.loads(value)
    except ValueError as error:
        raise SlateError(f"slate record is not JSON: got {value[:80]!r}; allowed: a JSON object") from error
    if not isinstance(record, dict):
        raise SlateError(f"slate record is a {type(record).__name__}; allowed: a JSON object")
    try:
        return _slate(record)
    except KeyError as error:
        raise SlateError(f"slate record lacks {error}; got the fields {sorted(record)}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise SlateError(f"slate record has a field of another type: {error}") from error


def _row_of(evidence: SlateEvidence, position: int) -> dict[str, float]:
    """The row of `candidate_CF` that `input_row_R` says is of the candidate at the position."""
    arrays, names = evidence.unpacked, evidence.candidate_features
    slate, rows, values = (arrays[name].data for name in ("row_S", "input_row_R", "candidate_CF"))
    row_S, row_R = (struct.unpack(f"<{len(data) // 4}i", data) for data in (slate, rows))
    if row_S[position] not in row_R:
        return {}
    start = 4 * len(names) * row_R.index(row_S[position])
    return dict(zip(names, struct.unpack_from(f"<{len(names)}f", values, start), strict=True))


def _slate(record: dict[str, Any]) -> SlateRecord:
    newest = record.get("newest_event_ms")
    evidence = record.get("evidence")
    return SlateRecord(
        request_id=str(record["request_id"]),
        user_id=str(record["user_id"]),
        served_at_ms=int(record["served_at_ms"]),
        surface=str(record["surface"]),
        bundle_id=str(record["bundle_id"]),
        arm=str(record["arm"]),
        degraded=tuple(record["degraded"]),
        snapshot_instant_ms=int(record["snapshot_instant_ms"]),
        newest_event_ms=None if newest is None else int(newest),
        user_features=_numbers(record["user_features"]),
        items=tuple(_item(item) for item in record["items"]),
        candidates=tuple(_candidate(candidate) for candidate in record["candidates"]),
        evidence=None if evidence is None else _evidence(evidence),
        schema_version=int(record.get("schema_version", 1)),
        spec_version=str(record.get("spec_version", "")),
    )


def _item(item: dict[str, Any]) -> SlateItem:
    return SlateItem(
        item_id=str(item["item_id"]),
        position=int(item["position"]),
        score=float(item["score"]),
        propensity=float(item["propensity"]),
        sources=tuple(item["sources"]),
        probabilities=_numbers(item["probabilities"]),
        category=str(item.get("category", "")),
        creator_id=str(item.get("creator_id", "")),
        features=_numbers(item.get("features", {})),
    )


def _candidate(candidate: dict[str, Any]) -> SlateCandidate:
    return SlateCandidate(
        item_id=str(candidate["item_id"]), score=float(candidate["score"]), sources=tuple(candidate["sources"])
    )


def _evidence(evidence: dict[str, Any]) -> SlateEvidence:
    return SlateEvidence(
        method=str(evidence["method"]),
        query=dict(evidence["query"]),
        settings=dict(evidence["settings"]),
        user=dict(evidence["user"]),
        catalogue=tuple(evidence["catalogue"]),
        unscored=tuple(evidence["unscored"]),
        sources={name: int(count) for name, count in evidence["sources"].items()},
        excluded_since=dict(evidence["excluded_since"]),
        candidates_retrieved=int(evidence["candidates_retrieved"]),
        stage_ms=_numbers(evidence["stage_ms"]),
        unknown_item_ids=tuple(evidence["unknown_item_ids"]),
        next_page_token=str(evidence["next_page_token"]),
        candidate_features=tuple(evidence["candidate_features"]),
        full_features=bool(evidence["full_features"]),
        arrays=str(evidence["arrays"]),
    )


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in record.items()}
