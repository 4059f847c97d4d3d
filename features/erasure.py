"""Erased users: the digest that stands for one, and what still holds their data for a while, with a date.

Every store keeps the digests, so that whoever writes can refuse the user for ever, and nobody can read who it was. A
person who comes back gets a new id.
"""

import hashlib
import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime

from features.events import FUTURE_SKEW_MS, HORIZON_MS, ID_PATTERN, MAX_ID_BYTES
from features.names import MS_PER_DAY, MS_PER_HOUR
from features.tiles import TILE_TOPIC_MS

DIGEST_PATTERN = r"[0-9a-f]{64}"
TOPIC_DAYS = 30
"""Records of the topics that arrived before an erasure are deleted so long after it; Article 12(3) of the GDPR allows
one month."""
SEGMENT_MS = MS_PER_DAY
"""Kafka removes whole segments, so what is due may stay for one more."""
STATE_DAYS = 6
"""The stream job's state, and every checkpoint that holds it, is gone so many days after the user's last event."""

if STATE_DAYS * MS_PER_DAY < HORIZON_MS + FUTURE_SKEW_MS + 72 * MS_PER_HOUR + MS_PER_HOUR:
    raise AssertionError("the stated date must not come before the state of the stream job expires")

_IS_DIGEST = re.compile(DIGEST_PATTERN).fullmatch
_IS_ID = re.compile(ID_PATTERN).fullmatch


class ErasureError(ValueError):
    """One sentence: whom to erase was not said as it must be, or what is in the way."""


def digest_of(user_id: str) -> str:
    """SHA-256 of the id in 64 hexadecimal digits."""
    return hashlib.sha256(user_id.encode()).hexdigest()


def checked_digest(text: str) -> str:
    """The digest. Raises `ErasureError`."""
    if _IS_DIGEST(text) is None:
        raise ErasureError(
            f"digest of a user: got {text!r}; allowed: SHA-256 of the user_id in 64 hexadecimal digits, as "
            "`printf %s USER | sha256sum` and `millrace erase USER` say it."
        )
    return text


def checked_user(text: str) -> str:
    """The user's id, which is not empty. Raises `ErasureError`."""
    if _IS_ID(text) is None or len(text) > MAX_ID_BYTES:
        raise ErasureError(f"user: got {text!r}; allowed: 1 to {MAX_ID_BYTES} characters of {ID_PATTERN}.")
    return text


@dataclass(frozen=True, kw_only=True)
class AgesOut:
    """What cannot be deleted by key: where it is, until when, and who sees to it."""

    what: str
    until: str
    """A date, UTC, at the end of which it is gone."""
    how: str


def ages_out(requested_ms: int) -> tuple[AgesOut, ...]:
    """What goes with time after an erasure that was asked for at this instant."""

    def date(days: int) -> str:
        day = datetime.fromtimestamp((requested_ms + days * MS_PER_DAY) / 1000, tz=UTC).date()
        return day.isoformat()

    last_segment = 1 + SEGMENT_MS // MS_PER_DAY
    return (
        AgesOut(
            what="Flink state and checkpoints", until=date(STATE_DAYS), how="state expires; checkpoints are replaced"
        ),
        AgesOut(
            what="Kafka: events, slates, interactions and refused records",
            until=date(TOPIC_DAYS + last_segment),
            how="the DAG maintenance deletes the records that arrived before the request, once they have been read",
        ),
        AgesOut(
            what="Kafka: tiles",
            until=date(TILE_TOPIC_MS // MS_PER_DAY + last_segment),
            how="the topics' own retention",
        ),
        AgesOut(what="request log of the ranking service", until=date(1), how="it keeps a day"),
        AgesOut(
            what="bundles",
            until=date(0),
            how="they hold no user: ALS keeps item factors and a user is folded in from their history",
        ),
    )


# Feast's key of an ordinary view: format 3 of its entity keys, one join key of type string.

_JOIN_KEY = b"user_id"
_STRING = 2
_KEY_PREFIX = struct.pack("<III", 1, _STRING, len(_JOIN_KEY)) + _JOIN_KEY + struct.pack("<I", _STRING)


def user_document_key(user_id: str) -> bytes:
    """The key under which Feast keeps a user's row of an ordinary view."""
    encoded = user_id.encode()
    return _KEY_PREFIX + struct.pack("<I", len(encoded)) + encoded


def user_of_document(key: bytes) -> str | None:
    """The user whose row has the key; None for the row of another entity."""
    if not key.startswith(_KEY_PREFIX):
        return None
    return key[len(_KEY_PREFIX) + 4 :].decode()
