"""MovieLens 100K as it really comes: the locked wheel from the registry."""

from collections import Counter
from math import log2

import pytest

from features.events import EventType, parse_event
from infra.data_wheels import data_wheel
from streaming.movielens import MovieLens, load

NOW_MS = 1_760_000_000_000


@pytest.fixture(scope="module")
def data() -> MovieLens:
    """The data set from the wheel that `infra/requirements/data.txt` locks."""
    return load(data_wheel("recbole"), now_ms=NOW_MS)


def test_counts_are_those_of_the_data_set(data: MovieLens) -> None:
    assert (len(data.items), len(data.ratings), len(data.held_out)) == (1_682, 90_000, 10_000)
    assert Counter(rating.stars for rating in [*data.ratings, *data.held_out]) == {
        1: 6_110,
        2: 11_370,
        3: 27_145,
        4: 34_174,
        5: 21_201,
    }


def test_every_record_keeps_the_contract_and_popularity_is_a_baseline(data: MovieLens) -> None:
    types = Counter(parse_event(r.value, r.arrival_ms).event_type for r in data.history())
    assert types[EventType.CLICK] == types[EventType.WATCH] == types[EventType.IMPRESSION] / 2 == 90_000
    assert len(data.ledger.counted_ids) == types.total()

    gains = []
    for rating in data.held_out:
        if data.is_target(rating):
            slate = data.popular_slate(rating.user_id, 10)
            gains.append(1 / log2(slate.index(rating.item_id) + 2) if rating.item_id in slate else 0.0)
        data.replay(rating, NOW_MS)
    hit_rate, ndcg = sum(gain > 0 for gain in gains) / len(gains), sum(gains) / len(gains)
    assert len(gains) > 5_000
    assert hit_rate == pytest.approx(0.091, abs=0.005)
    assert ndcg == pytest.approx(0.047, abs=0.003)
