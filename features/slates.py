"""The slate contract: what the service logs of every answer, one record of the slates topic, keyed by user_id."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SLATE_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SlateItem:
    """One returned item. `features` are its windowed features as the ranker read them, by name."""

    item_id: str
    position: int
    score: float
    propensity: float
    """Probability, given the items above, of this item at this position; 1 where nothing was drawn."""
    sources: tuple[str, ...]
    """Candidate sources that proposed it, best rank first."""
    probabilities: Mapping[str, float]
    """Calibrated prediction per head; empty when the ranker did not score."""
    features: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class SlateCandidate:
    """One scored candidate, returned or not."""

    item_id: str
    score: float
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SlateRecord:
    """One served slate with what stands behind it. Numbers are finite, times milliseconds UTC."""

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
    schema_version: int = SLATE_SCHEMA_VERSION

    def to_json(self) -> bytes:
        """The record as it stands on the wire. Raises `ValueError` for a number that is not finite."""
        # Every nested object is a plain dataclass, whose `vars` are its fields: 5 times as fast as `asdict`.
        return json.dumps(self, default=vars, separators=(",", ":"), allow_nan=False).encode()


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
    except (TypeError, ValueError) as error:
        raise SlateError(f"slate record has a field of another type: {error}") from error


def _slate(record: dict[str, Any]) -> SlateRecord:
    newest = record.get("newest_event_ms")
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
        schema_version=int(record.get("schema_version", SLATE_SCHEMA_VERSION)),
    )


def _item(item: dict[str, Any]) -> SlateItem:
    return SlateItem(
        item_id=str(item["item_id"]),
        position=int(item["position"]),
        score=float(item["score"]),
        propensity=float(item["propensity"]),
        sources=tuple(item["sources"]),
        probabilities=_numbers(item["probabilities"]),
        features=_numbers(item["features"]),
    )


def _candidate(candidate: dict[str, Any]) -> SlateCandidate:
    return SlateCandidate(
        item_id=str(candidate["item_id"]), score=float(candidate["score"]), sources=tuple(candidate["sources"])
    )


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in record.items()}
