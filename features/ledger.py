"""The accounts of the stream: what became of each record of the events topic, so that none is lost or counted twice.

A row says which offsets of one block of one partition had one outcome, as a bit mask. Rows are absolute and only grow
(by bitwise or), so it does not matter how often, in which order or by how many writers they are written, and a restart
resets nothing. Produced = counted + duplicate + too late + dead holds if and only if every offset stands in one row.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

BLOCK = 4_096
"""Offsets of a row: a mask of half a kilobyte."""
MASK_BYTES = BLOCK // 8


class Outcome(StrEnum):
    """What became of a record."""

    COUNTED = "counted"
    DUPLICATE = "duplicate"
    TOO_LATE = "too_late"
    DEAD = "dead"


class LedgerRow(NamedTuple):
    """The offsets `block * BLOCK + i` of the partition, for each bit `i` of the mask, had the outcome."""

    outcome: Outcome
    partition: int
    block: int
    mask: int


@dataclass(frozen=True, kw_only=True)
class Account:
    """One partition of the events topic. Everything is a number of offsets."""

    partition: int
    produced: int
    """Between the topic's first offset and its end."""
    outcomes: Mapping[Outcome, int]
    missing: int
    """Without an outcome: not read yet, lost, or a transaction's marker, which is no record."""
    twice: int
    """With more than one."""

    @property
    def balances(self) -> bool:
        """Whether every record has exactly one outcome."""
        return self.missing == 0 and self.twice == 0


class LedgerError(ValueError):
    """A record of the job's outputs that does not say where it stood in the events topic."""


def source_of(value: bytes) -> tuple[int, int]:
    """Partition and offset in the events topic, of a record that the stream job wrote. Raises `LedgerError`.

    They stand before anything that comes from outside: what a dead letter quotes cannot be taken for them.
    """
    found = _SOURCE(value)
    if found is None:
        raise LedgerError(f"output of the stream job: got {value[:200]!r}; needed: its partition and offset.")
    return int(found[1]), int(found[2])


def reason_of(value: bytes) -> str:
    """Why a dead letter is one. Raises `LedgerError`."""
    found = _REASON(value)
    if found is None:
        raise LedgerError(f"dead letter: got {value[:200]!r}; needed: a reason.")
    return found[1].decode()


_SOURCE = re.compile(rb'"partition":\s*(\d+),\s*"offset":\s*(\d+)').search
_REASON = re.compile(rb'\{"reason":\s*"([a-z_:]+)"').match


def ledger_rows(outcome: Outcome, places: Iterable[tuple[int, int]]) -> list[LedgerRow]:
    """The rows of records with one outcome, each given by partition and offset."""
    masks: dict[tuple[int, int], int] = {}
    for partition, offset in places:
        block, place = divmod(offset, BLOCK)
        masks[partition, block] = masks.get((partition, block), 0) | 1 << place
    return [LedgerRow(outcome, partition, block, mask) for (partition, block), mask in masks.items()]


def accounts(rows: Iterable[LedgerRow], spans: Mapping[int, tuple[int, int]]) -> list[Account]:
    """The account of each partition, whose first offset and end `spans` give. Rows outside the spans do not count."""
    by_block: dict[tuple[int, int], dict[Outcome, int]] = {}
    for row in rows:
        masks = by_block.setdefault((row.partition, row.block), {})
        masks[row.outcome] = masks.get(row.outcome, 0) | row.mask
    return [_account(partition, first, end, by_block) for partition, (first, end) in sorted(spans.items())]


def _account(
    partition: int, first: int, end: int, by_block: Mapping[tuple[int, int], Mapping[Outcome, int]]
) -> Account:
    outcomes = dict.fromkeys(Outcome, 0)
    missing = twice = 0
    for block in range(first // BLOCK, -(-end // BLOCK)):
        asked = _within(first - block * BLOCK, end - block * BLOCK)
        once = several = 0
        for outcome, mask in by_block.get((partition, block), {}).items():
            outcomes[outcome] += (mask & asked).bit_count()
            several |= once & mask
            once |= mask
        missing += (asked & ~once).bit_count()
        twice += (asked & several).bit_count()
    return Account(partition=partition, produced=end - first, outcomes=outcomes, missing=missing, twice=twice)


def _within(first: int, end: int) -> int:
    """A mask of the bits from `first` up to `end`, cut to one block."""
    low, high = max(first, 0), min(end, BLOCK)
    return (1 << high) - (1 << low)
