"""Spark MLlib's ALS as `batch.als` runs it, beside the suite of the other backends in tests/unit/test_als.py."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from features.events import TYPE_CODE, EventType
from models.als import AlsConfig, AlsError
from models.als.spark_factors import read_factors
from models.history import collapse

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

USERS, ITEMS = 24, 30


def random_events(seed: int) -> pd.DataFrame:
    """Events of a few users, hides and unlikes among them."""
    rng = np.random.default_rng(seed)
    size = 1_500
    return pd.DataFrame(
        {
            "user_id": [f"u{u:02}" for u in rng.integers(USERS, size=size)],
            "item_id": [f"i{i:02}" for i in rng.integers(ITEMS, size=size)],
            "event_type": rng.choice([kind.value for kind in EventType], size),
            "event_time_ms": rng.integers(1_000_000, size=size),
        }
    )


@pytest.fixture(scope="module")
def events(spark: "SparkSession") -> "DataFrame":
    return spark.createDataFrame(random_events(1)).persist()


def test_interests_are_what_the_models_read(events: "DataFrame") -> None:
    from batch.als import interests

    rows = events.toPandas()
    pairs = collapse(
        rows.user_id.str[1:].astype(int).to_numpy(),
        rows.item_id.str[1:].astype(np.int32).to_numpy(),
        rows.event_type.map({kind.value: code for kind, code in TYPE_CODE.items()}).to_numpy(np.int8),
        rows.event_time_ms.to_numpy(),
    )
    expected = {
        (f"u{u:02}", f"i{i:02}"): float(weight)
        for u, i, weight in zip(pairs.row_N, pairs.item_index_N, pairs.weight_N, strict=True)
    }
    assert {(row.user_id, row.item_id): row.weight for row in interests(events).collect()} == expected
    assert len(expected) > 100


def test_the_factors_solve_the_loss_that_they_are_served_with(
    spark: "SparkSession", events: "DataFrame", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLlib solves users last: folding a user in with its item factors must give the user factors that it gave."""
    from batch import als

    monkeypatch.setattr(als, "read_table", lambda *_: events)
    run = als.AlsRun(embedding_dim=6, regularization=0.02, alpha=2.5, epochs=5, blocks=2)
    report = als.run_als(spark, tmp_path, tmp_path / "als", run)
    item_ids = tuple(f"i{i:02}" for i in range(ITEMS))
    source = read_factors(tmp_path / "als", (*item_ids, "never")).source
    assert not source.item_factors_ID[-1].any() and source.item_factors_ID[:-1].any(axis=1).all()
    pairs = als.interests(events).toPandas()
    assert report["pairs"] == len(pairs)
    users = pd.read_parquet(tmp_path / "als" / "user_factors").set_index("user_id").factors
    assert len(users) == USERS
    for user, rows in pairs.groupby("user_id"):
        places = rows.item_id.map(item_ids.index).to_numpy(np.int32)
        folded_D = source.fold_in(places, rows.weight.to_numpy(np.float32))
        np.testing.assert_allclose(folded_D, np.array(users[user]), atol=2e-4)
    before = als.run_als(spark, tmp_path, tmp_path / "before", run, before_ms=500_000)
    assert before["newest_event_ms"] < 500_000 < report["newest_event_ms"]
    assert before["pairs"] < report["pairs"]
    again = als.run_als(spark, tmp_path, tmp_path / "als", run)
    assert again == report == json.loads((tmp_path / "als" / "als.json").read_text())
    np.testing.assert_allclose(
        read_factors(tmp_path / "als", item_ids).source.item_factors_ID, source.item_factors_ID[:-1]
    )


def test_a_checker_board_is_recovered(spark: "SparkSession") -> None:
    """Even users like even items, odd users odd ones; each is scored above every item of the other colour."""
    from batch.als import AlsRun, factorise

    board = [(f"u{u:02}", f"i{i:02}", 1.0) for u in range(20) for i in range(20) if (u + i) % 2 == 0]
    pairs = spark.createDataFrame(board, ["user_id", "item_id", "weight"])
    users, items = factorise(pairs, AlsRun(embedding_dim=4, regularization=0.01, epochs=5, blocks=2))
    user_UD = np.array([row.factors for row in users.orderBy("user_id").collect()])
    item_ID = np.array([row.factors for row in items.orderBy("item_id").collect()])
    score_UI = user_UD @ item_ID.T
    same_UI = np.add.outer(np.arange(20), np.arange(20)) % 2 == 0
    assert score_UI[same_UI].min() > score_UI[~same_UI].max()


def test_what_cannot_be_factorised_is_refused(spark: "SparkSession", events: "DataFrame", tmp_path: Path) -> None:
    from batch.als import AlsInputError, AlsRun, factorise, interests

    with pytest.raises(AlsInputError, match="no pair of positive weight"):
        factorise(interests(events.where("event_type = 'impression'")), AlsRun())
    with pytest.raises(AlsInputError, match=r"take alpha above 1\.0"):
        factorise(interests(events), AlsRun(alpha=0.5))
    with pytest.raises(AlsError, match=r"run batch/als.py again"):
        read_factors(tmp_path, ("i",))
    assert AlsConfig().alpha == AlsRun().alpha
