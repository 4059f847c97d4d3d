"""The ledger's accounts against sets of offsets."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.ledger import BLOCK, LedgerError, LedgerRow, Outcome, accounts, ledger_rows, reason_of, source_of


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_accounts_are_those_of_sets(seed: int) -> None:
    """Records in batches of any size, some batches written again; a few offsets lost, a few with two outcomes."""
    rng = random.Random(seed)
    first, end = rng.choice([0, 5, BLOCK]), rng.choice([5, BLOCK, 2 * BLOCK + 7])
    first, end = min(first, end), max(first, end)
    held: dict[Outcome, set[int]] = {outcome: set() for outcome in Outcome}
    for offset in range(first, end):
        for outcome in rng.sample(list(Outcome), rng.choices([0, 1, 2], weights=[1, 98, 1])[0]):
            held[outcome].add(offset)
    rows: list[LedgerRow] = []
    for outcome, offsets in held.items():
        ordered = rng.sample(sorted(offsets), len(offsets))
        for start in range(0, len(ordered), 700):
            rows += ledger_rows(outcome, [(3, offset) for offset in ordered[start : start + 700]])
    rows += rng.sample(rows, len(rows) // 2)
    rng.shuffle(rows)
    (account,) = accounts(rows, {3: (first, end)})
    times = [sum(offset in offsets for offsets in held.values()) for offset in range(first, end)]
    assert account.outcomes == {outcome: len(offsets) for outcome, offsets in held.items()}
    assert (account.produced, account.missing) == (end - first, times.count(0))
    assert account.twice == sum(n > 1 for n in times)
    assert account.balances == all(n == 1 for n in times)


def test_what_lies_outside_the_topic_does_not_count() -> None:
    rows = ledger_rows(Outcome.COUNTED, [(0, offset) for offset in range(10)])
    (account,) = accounts(rows, {0: (4, 8)})
    assert account.outcomes[Outcome.COUNTED] == 4
    assert account.balances


def test_a_partition_without_rows_misses_everything() -> None:
    (account,) = accounts([], {1: (0, 3)})
    assert (account.missing, account.balances) == (3, False)


def test_an_outputs_source_is_the_jobs_and_not_what_a_letter_quotes() -> None:
    quoted = json.dumps('{"partition":7,"offset":7}')
    letter = f'{{"reason":"missing:user_id","partition":1,"offset":20,"arrival_ms":3,"value":{quoted}}}'.encode()
    assert (source_of(letter), reason_of(letter)) == ((1, 20), "missing:user_id")
    with pytest.raises(LedgerError, match="needed: its partition and offset"):
        source_of(b'{"event_id":"e"}')
    with pytest.raises(LedgerError, match="needed: a reason"):
        reason_of(b'{"value":{"reason":"x"}}')
