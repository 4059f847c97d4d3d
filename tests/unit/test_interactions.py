"""`millrace evaluate candidates`: tables at the door, the protocol beside a brute-force oracle, tuning, the command."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from infra.cli import app
from models.als import AlsConfig
from models.interactions import Kind
from models.interactions.evaluate import Evaluation, evaluate, read_config
from models.interactions.protocol import build_test, measure, summarise
from models.interactions.recommenders import Item2ItemConfig, PopularConfig, train
from models.interactions.table import Interactions, read_pairs, read_training
from models.interactions.tuning import tune, validation_split
from models.own_table import TableError
from models.refusal import RefusalError

RANKS = (1, 3, 10)


def write(path: Path, pairs: Sequence[tuple[object, ...]], names: Sequence[str] = ("user_id", "item_id")) -> Path:
    columns = list(zip(*pairs, strict=True)) or [[] for _ in names]
    if path.suffix == ".csv":
        path.write_text("\n".join([",".join(names), *(",".join(map(str, row)) for row in pairs)]) + "\n")
    else:
        pq.write_table(pa.table(dict(zip(names, map(list, columns), strict=True))), path)
    return path


def random_pairs(seed: int, users: int = 25, items: int = 30) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and test pairs without a common one; a few test users and items are strangers to training."""
    rng = np.random.default_rng(seed)
    pairs = [(f"u{u}", f"i{i}") for u in range(users) for i in range(items) if rng.random() < 0.3]
    held = rng.random(len(pairs)) < 0.2
    test = [pair for pair, out in zip(pairs, held, strict=True) if out]
    test += [("stranger", "i3"), ("another", "i4"), ("u1", "unseen"), ("u2", "unseen")]
    return [pair for pair, out in zip(pairs, held, strict=True) if not out], test


def tables(folder: Path, seed: int = 0) -> tuple[Path, Path, Path]:
    """Paths of a training table, a test table and ten negatives a test user."""
    training, test = random_pairs(seed)
    rng = np.random.default_rng(seed + 1)
    took = {*training, *test}
    negatives = []
    for user in sorted({user for user, _ in test}):
        free = [f"i{i}" for i in range(30) if (user, f"i{i}") not in took]
        negatives += [(user, item) for item in rng.choice(free, 10, replace=False).tolist()]
    return (
        write(folder / "train.parquet", training),
        write(folder / "test.csv", test),
        write(folder / "negatives.parquet", negatives),
    )


def by_hand(
    score: dict[str, dict[str, float]],
    training: set[tuple[str, str]],
    test: list[tuple[str, str]],
    negatives: list[tuple[str, str]] | None,
    items: list[str],
) -> dict[str, float]:
    """The metrics straight from their definitions, for scores without ties."""
    sums = dict.fromkeys((f"{name}@{k}" for k in RANKS for name in ("hr", "ndcg", "recall", "mrr")), 0.0)
    users = sorted({user for user, _ in test})
    for user in users:
        relevant = {item for who, item in test if who == user}
        if negatives is None:
            candidates = [item for item in items if (user, item) not in training]
        else:
            candidates = [item for who, item in negatives if who == user] + [i for i in relevant if i in items]
        ranked = sorted(candidates, key=lambda item: -score[user][item])
        for k in RANKS:
            hits = [place for place, item in enumerate(ranked[:k]) if item in relevant]
            ideal = sum(1 / np.log2(place + 2) for place in range(min(len(relevant), k)))
            sums[f"hr@{k}"] += bool(hits)
            sums[f"recall@{k}"] += len(hits) / len(relevant)
            sums[f"ndcg@{k}"] += sum(1 / np.log2(place + 2) for place in hits) / ideal
            sums[f"mrr@{k}"] += 1 / (hits[0] + 1) if hits else 0.0
    return {name: total / len(users) for name, total in sums.items()}


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_their_definitions(tmp_path: Path, seed: int, sampled: bool) -> None:
    """Scores are a random permutation, strangers' too: they are given what is popular, which is made one as well."""
    train_path, test_path, negatives_path = tables(tmp_path, seed)
    training = read_training(train_path)
    tested = read_pairs(test_path, training)
    test = build_test(training, tested, read_pairs(negatives_path, tested) if sampled else None)
    users, items = training.user_ids.to_pylist(), training.item_ids.to_pylist()
    score_UI = np.random.default_rng(seed).permutation(len(users) * len(items)).reshape(len(users), -1)
    matrix = training.matrix()
    score = {user: dict(zip(items, row.tolist(), strict=True)) for user, row in zip(users, score_UI, strict=True)}
    found = measure(lambda user_B: score_UI[user_B].astype(np.float32), matrix, test, RANKS, 0)
    pairs, rows = random_pairs(seed)
    negatives = [tuple(row.values()) for row in pq.read_table(negatives_path).to_pylist()] if sampled else None
    told_Q = test.user_Q >= 0
    assert (~told_Q).sum() == 2
    expected = by_hand(score, set(pairs), [row for row in rows if row[0] in users], negatives, items)
    assert {name: value_Q[told_Q].mean() for name, value_Q in found.items()} == pytest.approx(expected)
    assert summarise(found, 0)["hr@10"] == pytest.approx(found["hr@10"].mean())


def test_equal_scores_are_worth_what_chance_is() -> None:
    users, items = 4_000, 101
    table = Interactions(
        user_ids=pa.array([f"u{u}" for u in range(users)]),
        item_ids=pa.array([f"i{i}" for i in range(items)]),
        user_N=np.arange(users, dtype=np.int32),
        item_N=np.zeros(users, np.int32),
        weight_N=np.ones(users, np.float32),
        time_ms_N=None,
    )
    held = Interactions(**{**vars(table), "item_N": np.full(users, 5, np.int32)})
    test = build_test(table, held, None)
    hits = measure(lambda user_B: np.zeros((len(user_B), items), np.float32), table.matrix(), test, [10], 0)["hr@10"]
    assert hits.mean() == pytest.approx(0.1, abs=0.02)


def test_strangers_get_what_is_popular_and_unknown_items_are_misses(tmp_path: Path) -> None:
    rows = [(f"u{u}", "hit") for u in range(9)] + [("u0", "rare")]
    training = read_training(write(tmp_path / "train.parquet", rows))
    tested = write(tmp_path / "t.csv", [("new", "hit"), ("u1", "gone"), ("u1", "rare")])
    test = build_test(training, read_pairs(tested, training), None)
    found = measure(train(training.matrix(), PopularConfig(), 0), training.matrix(), test, [1], 0)
    assert sorted(zip(test.user_Q.tolist(), found["hr@1"].tolist(), found["recall@1"].tolist(), strict=True)) == [
        (-1, 1.0, 1.0),
        (training.user_ids.to_pylist().index("u1"), 1.0, 0.5),
    ]


@pytest.mark.parametrize(
    ("names", "rows", "says"),
    [
        (("user_id", "film"), [("u", "i")], r"lacks item_id; it has user_id, film"),
        (("user_id", "item_id"), [], r"is empty; give one with rows"),
        (("user_id", "item_id", "weight"), [("u", "i", 1.0), ("u", "j", -2.0)], r"weight is -2.0 in 1 rows"),
        (("user_id", "item_id", "weight"), [("u", "i", float("nan"))], r"weight is nan in 1 rows"),
        (("user_id", "item_id", "weight"), [("u", "i", "much")], r"weight is string; allowed: numbers"),
        (("user_id", "item_id", "event_time_ms"), [("u", "i", "today")], r"event_time_ms is string; allowed: numbers"),
        (("user_id", "item_id"), [("u", None)], r"item_id has 1 nulls; leave those rows out"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(
    tmp_path: Path, names: tuple[str, ...], rows: list[tuple[object, ...]], says: str
) -> None:
    with pytest.raises(TableError, match=says):
        read_training(write(tmp_path / "train.parquet", rows, names))


def test_other_refusals_say_what_to_do(tmp_path: Path) -> None:
    train_path, test_path, negatives_path = tables(tmp_path)
    training = read_training(train_path)
    tested = read_pairs(test_path, training)
    with pytest.raises(TableError, match="training knows none of its item ids, such as 7"):
        read_pairs(write(tmp_path / "other.csv", [("u1", 7)]), training)
    with pytest.raises(TableError, match="test users have none that training knows"):
        build_test(training, tested, read_pairs(write(tmp_path / "few.csv", [("u1", "i1")]), tested))
    with pytest.raises(TableError, match="some are test items of the same user"):
        build_test(training, tested, read_pairs(test_path, tested))
    (tmp_path / "broken.parquet").write_text("no table")
    with pytest.raises(TableError, match=r"cannot be read: .*give Parquet, or CSV"):
        read_training(tmp_path / "broken.parquet")
    (tmp_path / "c.json").write_text('{"embeding_dim": 8}')
    with pytest.raises(RefusalError, match=r"unknown key embeding_dim; allowed: .*embedding_dim"):
        read_config(Kind.ALS, tmp_path / "c.json")
    with pytest.raises(RefusalError, match=r"ranks: got 0; allowed: whole numbers from 1"):
        evaluate(Evaluation(train=train_path, test=test_path, negatives=negatives_path, ranks=(0,)))


def blocks(seed: int, users: int = 120, items: int = 60) -> list[tuple[str, str, int]]:
    """Users of three groups who take items of their own group alone, in a random order of times."""
    rng = np.random.default_rng(seed)
    rows = []
    for u in range(users):
        own = np.flatnonzero(np.arange(items) % 3 == u % 3)
        rows += [(f"u{u}", f"i{i}", 1_000 * n) for n, i in enumerate(rng.choice(own, 9, replace=False))]
    return rows


NAMES = ("user_id", "item_id", "event_time_ms")


def test_validation_is_the_newest_row_of_each_user(tmp_path: Path) -> None:
    rows = [*blocks(1), ("few", "i1", 1), ("few", "i2", 2)]
    table = read_training(write(tmp_path / "t.parquet", rows, NAMES))
    kept, held = validation_split(table, 0)
    assert len(held) == 120 and set(held.time_ms_N.tolist()) == {8_000}
    assert len(kept) + len(held) == len(table)
    untimed = read_training(write(tmp_path / "u.parquet", [row[:2] for row in rows]))
    assert len(validation_split(untimed, 0)[1]) == 120
    with pytest.raises(TableError, match="no user has three training rows"):
        validation_split(read_training(write(tmp_path / "s.parquet", [("u", "i"), ("v", "i")])), 0)


@pytest.mark.parametrize("sampled", [True, False])
def test_tuning_is_seeded_stops_in_time_and_never_sees_the_test_table(tmp_path: Path, sampled: bool) -> None:
    table = read_training(write(tmp_path / "t.parquet", blocks(2), NAMES))
    wanted = {"sampled": sampled, "rank": 5, "seed": 3}
    one, two = (tune(table, Item2ItemConfig(), trials=6, limit_s=60, **wanted) for _ in range(2))
    assert one == two and len(one.trials) == 6
    clock = iter(range(0, 10_000, 10))
    short = tune(table, Item2ItemConfig(), trials=50, limit_s=25, now_s=lambda: float(next(clock)), **wanted)
    assert len(short.trials) == 3


def test_the_trial_that_is_best_on_validation_is_taken(tmp_path: Path) -> None:
    table = read_training(write(tmp_path / "t.parquet", blocks(3), NAMES))
    config = AlsConfig(embedding_dim=8, epochs=2, threads=1)
    tuned = tune(table, config, trials=4, sampled=False, rank=5, limit_s=60, seed=0)
    best = max(tuned.trials, key=lambda trial: trial["ndcg@5"])["params"]
    assert isinstance(tuned.config, AlsConfig) and tuned.config.backend == "ials"
    assert (tuned.config.embedding_dim, tuned.config.unobserved_weight) == (
        best["embedding_dim"],
        best["unobserved_weight"],
    )
    assert tuned.config.threads == 1, "what is not searched stays"


@pytest.mark.parametrize(("model", "at_least"), [("als", 0.6), ("item2item", 0.6), ("popular", 0.0)])
def test_the_command_prints_and_writes_a_report(tmp_path: Path, model: str, at_least: float) -> None:
    rows = blocks(4)
    train_path = write(tmp_path / "train.csv", [row for row in rows if row[2] < 8_000], NAMES)
    test_path = write(tmp_path / "test.parquet", [row[:2] for row in rows if row[2] == 8_000])
    out = tmp_path / "metrics.json"
    flags = ["--train", str(train_path), "--test", str(test_path), "--model", model, "--k", "10", "--k", "20"]
    if model == "als":
        (tmp_path / "config.json").write_text('{"embedding_dim": 8, "regularization": 5, "backend": "ials"}')
        flags += ["--config", str(tmp_path / "config.json")]
    done = CliRunner().invoke(app, ["evaluate", "candidates", *flags, "--out", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert report["hr@10"] >= at_least and 0 <= report["ndcg@20"] <= 1
    low, high = report["intervals"]["hr@10"]
    assert low <= report["hr@10"] <= high
    assert (report["test_users"], report["rows"], report["model"]) == (120, 960, model)
    assert "hr@10" in done.output and "full catalogue" in done.output


def test_the_command_refuses_an_unknown_model(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [("u", "i")])
    flags = ["--train", str(path), "--test", str(path), "--model", "svd"]
    done = CliRunner().invoke(app, ["evaluate", "candidates", *flags])
    assert done.exit_code == 2
    assert all(word in done.output for word in ("svd", "als", "item2item", "popular"))
