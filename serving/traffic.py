"""Which user belongs to which arm: a fixed bucket a user, and fixed ranges of buckets an arm."""

from collections.abc import Sequence
from hashlib import sha256

BUCKETS = 10_000
"""Shares are whole hundredths of a percent."""
UNASSIGNED = -1
MAX_ARMS = 16


class TrafficError(ValueError):
    """A share or a start that cannot be: what was got and what is allowed, as one clause."""


def bucket_of(salt: str, key: str) -> int:
    """The bucket of a key, 0 to `BUCKETS - 1`: the first 64 bits of SHA-256 over salt, a zero byte and key, scaled.

    Uniform over keys, and independent between salts.
    """
    digest = sha256(f"{salt}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * BUCKETS >> 64


def buckets(share: float) -> int:
    """A share as a number of buckets. Raises `TrafficError` unless it is within [0, 1] and whole buckets."""
    count = round(share * BUCKETS)
    if not 0 <= share <= 1 or abs(share * BUCKETS - count) > 1e-6:
        raise TrafficError(f"got {share!r}; allowed: 0 to 1 in steps of {1 / BUCKETS}")
    return count


def arm_of_bucket(name_A: Sequence[str], share_A: Sequence[int], start_A: Sequence[int | None]) -> tuple[int, ...]:
    """The arm's index by bucket, `UNASSIGNED` where there is none. Shares and starts are in buckets.

    1. The first arm is the control. Each other arm takes `share` buckets from its `start` on, whatever the others
       have; without a start it begins at its place in the van der Corput sequence 0, 1/2, 1/4, 3/4, 1/8, …, which
       leaves each room to grow and does not depend on how many arms there are.
    2. The control takes what they leave, from the last bucket down.

    So an arm that grows takes users from the control and from nobody's, never from another arm (for more than two
    arms no rule without memory can do so at every size, hence the refusal). Raises `TrafficError` when an arm
    would need buckets of another, or when there are not enough.
    """
    if len(share_A) > MAX_ARMS:
        raise TrafficError(f"got {len(share_A)} arms; allowed: at most {MAX_ARMS}")
    if sum(share_A) > BUCKETS:
        raise TrafficError(f"the shares sum to {sum(share_A) / BUCKETS}; allowed: at most 1")
    if start_A and start_A[0] is not None:
        raise TrafficError(f"{name_A[0]}, the first arm, is the control and takes what others leave; remove its start")
    arm_of = [UNASSIGNED] * BUCKETS
    for arm in range(1, len(share_A)):
        given = start_A[arm]
        start = _van_der_corput(arm - 1) if given is None else given
        end = start + share_A[arm]
        others = sorted({other for other in arm_of[start:end] if other != UNASSIGNED})
        if others or end > BUCKETS:
            met = f"the arm {name_A[others[0]]}" if others else "the end"
            raise TrafficError(
                f"the arm {name_A[arm]} takes from {start / BUCKETS} to {end / BUCKETS} and meets {met}; "
                "give it a smaller share, or give the arms starts that leave room"
            )
        arm_of[start:end] = [arm] * share_A[arm]
    free = [bucket for bucket in reversed(range(BUCKETS)) if arm_of[bucket] == UNASSIGNED]
    for bucket in free[: share_A[0] if share_A else 0]:
        arm_of[bucket] = 0
    return tuple(arm_of)


def _van_der_corput(k: int) -> int:
    """The k-th start: the bits of k mirrored at the binary point."""
    bits = MAX_ARMS.bit_length() - 1
    mirrored = int(f"{k:0{bits}b}"[::-1], 2)
    return mirrored * BUCKETS // MAX_ARMS
