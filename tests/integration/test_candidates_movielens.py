"""`millrace evaluate candidates` on MovieLens 100K, leave-last-out with 100 sampled negatives (the NCF protocol)."""

import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.data_wheels import data_wheel
from streaming.movielens import MEMBERS

CHOSEN = {
    "backend": "ials",
    "embedding_dim": 128,
    "regularization": 0.067,
    "frequency_exponent": 0.75,
    "unobserved_weight": 0.36,
    "alpha": 1.36,
    "epochs": 13,
}
"""What `--tune 40` chose on a validation split of the training rows."""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every user's newest rating is test, the rest is training; negatives are items that the user never rated."""
    with ZipFile(data_wheel("recbole")) as wheel, wheel.open(f"{MEMBERS}.inter") as text:
        rows = pd.read_csv(text, sep="\t").rename(columns=lambda name: name.split(":")[0])
    rows = rows.sort_values(["user_id", "timestamp"], kind="stable")
    rows["event_time_ms"] = (rows.timestamp * 1_000).astype("int64")
    is_last = ~rows.duplicated("user_id", keep="last")
    rng, items = np.random.default_rng(0), rows.item_id.unique()
    rated = rows.groupby("user_id").item_id.apply(set)
    negatives = [
        (user, item)
        for user in rows.user_id.unique()
        for item in rng.choice(np.setdiff1d(items, list(rated[user])), 100, replace=False)
    ]
    folder = tmp_path_factory.mktemp("movielens")
    rows[~is_last][["user_id", "item_id", "event_time_ms"]].astype({"event_time_ms": int}).to_parquet(
        folder / "t.parquet"
    )
    rows[is_last][["user_id", "item_id"]].to_parquet(folder / "test.parquet")
    pd.DataFrame(negatives, columns=["user_id", "item_id"]).to_csv(folder / "negatives.csv", index=False)
    (folder / "chosen.json").write_text(json.dumps(CHOSEN))
    return folder


def measured(tables: Path, *flags: str) -> dict[str, float]:
    out = tables / "metrics.json"
    given = ["--train", "t.parquet", "--test", "test.parquet", "--negatives", "negatives.csv"]
    paths = [flag if flag.startswith("--") else str(tables / flag) for flag in given]
    done = CliRunner().invoke(app, ["evaluate", "candidates", *paths, *flags, "--out", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    report: dict[str, float] = json.loads(out.read_text())
    return report


def test_each_model_beats_the_simpler_one(tables: Path) -> None:
    popular, similar = (measured(tables, "--model", model) for model in ("popular", "item2item"))
    plain = measured(tables)
    chosen = measured(tables, "--config", str(tables / "chosen.json"))
    assert chosen["test_users"] == 943 and chosen["rows"] == 99_057
    for better, worse in ((similar, popular), (plain, similar), (chosen, plain)):
        assert better["hr@10"] > worse["hr@10"] + 0.02
        assert better["ndcg@10"] > worse["ndcg@10"] + 0.015
    assert chosen["hr@10"] > 0.64 and chosen["ndcg@10"] > 0.37


def test_tuning_chooses_on_training_rows_and_does_not_hurt(tables: Path) -> None:
    """Item-to-item, whose trials take a second; ALS is tuned in tests/unit/test_interactions.py on a small table."""
    plain = measured(tables, "--model", "item2item")
    tuned = measured(tables, "--model", "item2item", "--tune", "4")
    assert len(tuned["trials"]) == 4
    assert tuned["ndcg@10"] > plain["ndcg@10"] - 0.01
