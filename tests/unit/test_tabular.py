"""The multitask network of one's own table: mixtures, configuration, labels, splits, encoding, training, the model."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from models.metrics import auc
from models.own_table import read_table
from models.ranker.epochs import TrainingError
from models.ranker.experts import PLE, MMoE
from models.refusal import RefusalError
from models.tabular.config import NetworkConfig, TabularConfig, parse_config, read_config
from models.tabular.encoding import KNOWN, NULL, UNKNOWN, Encoder
from models.tabular.model import TabularModel, calibrate
from models.tabular.network import build_network
from models.tabular.run import evaluate, train
from models.tabular.split import split_rows
from models.tabular.table import labels_of
from models.tabular.training import Part, Trained, predict, train_network

ROWS = 1_500
QUICK = {"epochs": 3, "batch_size": 64, "embedding_dim": 4, "hidden_dims": [16], "expert_dim": 8, "tower_dim": 8}
BASE: dict[str, Any] = {
    "numeric": ["age", "gain"],
    "categorical": ["job", "zone"],
    "tasks": [
        {"name": "rich", "column": "income", "positive": ">50K"},
        {"name": "share", "column": "share", "kind": "fractional"},
    ],
    "split": {"by": "random", "validation": 0.2, "test": 0.2},
    "network": QUICK,
}


def config(**changes: Any) -> TabularConfig:
    return TabularConfig.model_validate({**BASE, **changes})


def network(**changes: Any) -> NetworkConfig:
    return NetworkConfig.model_validate({**QUICK, **changes})


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """`rich` follows from age and job; `share` from gain and zone, and is unknown in a quarter of the rows."""
    rng = np.random.default_rng(0)
    age_N, gain_N = rng.integers(18, 80, ROWS), np.where(rng.random(ROWS) < 0.7, 0, rng.integers(1, 9_000, ROWS))
    job_N, zone_N = rng.choice(["nurse", "clerk", "smith"], ROWS), rng.integers(1, 6, ROWS)
    logit_N = (age_N - 45) / 8 + 2.0 * (job_N == "nurse") + rng.normal(size=ROWS)
    share_N = 1 / (1 + np.exp(-(zone_N - 3 + np.log1p(gain_N) / 4 - 1)))
    return pa.table(
        {
            "age": pa.array(age_N, mask=rng.random(ROWS) < 0.05),
            "gain": pa.array(gain_N),
            "job": pa.array(job_N, mask=rng.random(ROWS) < 0.05),
            "zone": pa.array(zone_N),
            "income": np.where(logit_N > 0, " >50K", "<=50K"),
            "share": pa.array(share_N, mask=rng.random(ROWS) < 0.25),
            "t": np.arange(ROWS) // 10,
        }
    )


def parts_of(table: pa.Table, chosen: TabularConfig) -> tuple[Encoder, dict[str, Part]]:
    rows = split_rows(table, chosen, test_apart=False)
    encoder = Encoder.fit(table, rows["train"], chosen)
    whole = Part(inputs=encoder(table), label_NT=labels_of(table, chosen.tasks))
    return encoder, {name: whole.take(part) for name, part in rows.items()}


def trained_on(
    table: pa.Table, chosen: TabularConfig, checkpoint: Path | None = None
) -> tuple[Trained, dict[str, Part]]:
    encoder, parts = parts_of(table, chosen)
    return train_network(parts["train"], parts["validation"], encoder, chosen, checkpoint), parts


def assert_same_weights(one: Trained, other: Trained) -> None:
    assert one.epochs == other.epochs
    for name, value in one.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], value), name


# The mixtures.


@pytest.mark.parametrize(
    "mixture",
    [
        MMoE(hidden_dim=5, tasks=3, experts=2, expert_dim=4),
        PLE(hidden_dim=5, tasks=3, shared_experts=2, own_experts=1, expert_dim=4, levels=1),
        PLE(hidden_dim=5, tasks=3, shared_experts=2, own_experts=2, expert_dim=4, levels=3),
    ],
    ids=["mmoe", "ple-1", "ple-3"],
)
def test_a_mixture_gives_each_task_its_own_view_of_the_hidden_layer(mixture: torch.nn.Module) -> None:
    for rows in (7, 1, 0):
        assert mixture(torch.randn(rows, 5)).shape == (3, rows, 4)


def by_hand(levels: int) -> PLE:
    """Own experts x and -x, shared expert 3x, all gates even."""
    ple = PLE(hidden_dim=1, tasks=2, shared_experts=1, own_experts=1, expert_dim=1, levels=levels)
    with torch.no_grad():
        for parameter in ple.parameters():
            parameter.zero_()
        for level in ple.levels:
            level.own_weight.copy_(torch.tensor([1.0, -1.0])[:, None, None])
            level.shared_experts.weight.fill_(3.0)
    return ple


def test_ple_is_as_computed_by_hand() -> None:
    hidden_NH = torch.tensor([[2.0]])
    # Level 1: experts 2, relu(-2) = 0 and 6; so task 1 has (2 + 6) / 2, task 2 (0 + 6) / 2, shared (2 + 0 + 6) / 3.
    assert by_hand(1)(hidden_NH).flatten().tolist() == [4.0, 3.0]
    # Level 2: experts 4, relu(-3) = 0 and 3 × 8/3 = 8.
    assert by_hand(2)(hidden_NH).flatten().tolist() == pytest.approx([6.0, 4.0])


def test_a_task_of_ple_never_learns_from_the_loss_of_another_through_own_experts() -> None:
    ple = PLE(hidden_dim=4, tasks=2, shared_experts=1, own_experts=2, expert_dim=3, levels=1)
    ple(torch.randn(6, 4))[0].sum().backward()
    level = ple.levels[0]
    assert level.own_weight.grad[1].abs().max() == 0
    assert level.own_weight.grad[0].abs().max() > 0 and level.shared_experts.weight.grad.abs().max() > 0


# Configuration.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"numerics": ["age"]}, "unknown key numerics"),
        ({"network": {"layers": 3}}, "unknown key network.layers"),
        ({"split": {"by": "random", "share": 0.1}}, "unknown key split.share"),
        ({"split": {"by": "user"}}, "'column', 'time', 'random'"),
        ({"numeric": [], "categorical": []}, "name at least one feature"),
        ({"numeric": ["share"]}, "a label cannot be a feature"),
        ({"numeric": ["age", "age"]}, "age stands there twice"),
        ({"tasks": []}, "tasks"),
        ({"tasks": [{"name": "run", "column": "income"}]}, "another name"),
        (
            {"tasks": [{"name": "a", "column": "b", "kind": "fractional", "positive": 1}]},
            "positive is for binary tasks",
        ),
        ({"network": {"dropout": 1.5}}, "network.dropout: input should be less than 1"),
    ],
)
def test_a_wrong_configuration_is_refused_by_the_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusalError, match="configuration here: ") as refused:
        parse_config({**BASE, **changes}, "here")
    assert said in str(refused.value)


def test_a_configuration_is_read_from_json_and_yaml(tmp_path: Path) -> None:
    for name in ("c.json", "c.yaml"):
        (tmp_path / name).write_text(json.dumps(BASE))
        assert read_config(tmp_path / name) == config()
    for name in ("c.json", "c.yaml"):
        (tmp_path / name).write_text("{")
        with pytest.raises(RefusalError, match="give a JSON, TOML or YAML file"):
            read_config(tmp_path / name)


# Tables and labels.


def write(table: pa.Table, path: Path) -> Path:
    pq.write_table(table, path)
    return path


def test_parquet_a_directory_of_it_and_csv_give_the_same_rows(table: pa.Table, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    write(table.slice(0, 700), folder / "a.parquet")
    write(table.slice(700), folder / "b.parquet")
    pa.csv.write_csv(table, tmp_path / "all.csv")
    whole = read_table(write(table, tmp_path / "all.parquet"), table.column_names)
    for path in (folder, tmp_path / "all.csv"):
        encoder, parts = parts_of(whole, config())
        _, again = parts_of(read_table(path, table.column_names), config())
        for name, part in parts.items():
            np.testing.assert_array_equal(part.inputs.code_NK, again[name].inputs.code_NK)
            np.testing.assert_allclose(part.inputs.number_NF, again[name].inputs.number_NF)
            np.testing.assert_allclose(part.label_NT, again[name].label_NT, rtol=1e-6)
        assert encoder.sizes == [KNOWN + 3, KNOWN + 5]


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values))


def numbers(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy().copy()


def broken_tables(table: pa.Table) -> Iterator[tuple[str, pa.Table, str]]:
    share_N = np.nan_to_num(numbers(table, "share"))
    yield "missing", table.drop_columns(["age", "job"]), "lacks age, job; it has gain"
    yield "empty", table.slice(0, 0), "is empty"
    nan_N = np.where(np.arange(ROWS) == 7, np.nan, share_N)
    yield "nan", with_column(table, "share", nan_N), "1 of 1500 values are NaN or infinite"
    yield "infinite", with_column(table, "share", np.where(np.arange(ROWS) == 7, np.inf, share_N)), "NaN or infinite"
    yield "above", with_column(table, "share", np.where(np.arange(ROWS) == 7, 1.5, share_N)), "got 1.5"
    yield "constant", with_column(table, "income", ["<=50K"] * 5 + [">50K"] * (ROWS - 5)), "more than one class"
    yield "no positive", with_column(table, "income", ["<=50K"] * ROWS), "no row holds '>50K'; there are '<=50K'"
    yield "no label", with_column(table, "share", pa.nulls(ROWS, pa.float64())), "no row of the train part has a label"
    yield "text", with_column(table, "age", ["old"] * ROWS), "numeric feature age: got string values such as 'old'"
    infinite_N = np.where(np.arange(ROWS) == 7, np.inf, 0.0)
    yield "feature", with_column(table, "gain", infinite_N), "numeric feature gain: 1 values are infinite"


@pytest.mark.parametrize(
    "case",
    ["missing", "empty", "nan", "infinite", "above", "constant", "no positive", "no label", "text", "feature"],
)
def test_a_table_that_cannot_be_learnt_from_is_refused(case: str, table: pa.Table, tmp_path: Path) -> None:
    broken, said = next((made, said) for name, made, said in broken_tables(table) if name == case)
    with pytest.raises(RefusalError) as refused:
        train(write(broken, tmp_path / "t.parquet"), config(), tmp_path / "model")
    assert said in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_a_part_with_a_single_class_is_refused(table: pa.Table, tmp_path: Path) -> None:
    by_time = config(split={"by": "time", "column": "t", "validation": 0.2, "test": 0.2})
    income = [">50K", "<=50K"] * 600 + [">50K"] * 300
    with pytest.raises(RefusalError, match="all 300 labels of the test part are 1"):
        train(write(with_column(table, "income", income), tmp_path / "t.parquet"), by_time, tmp_path / "model")


def test_text_labels_need_a_positive_value_and_zero_and_one_do_not() -> None:
    def labels(values: Any, **task: Any) -> list[float]:
        chosen = config(tasks=[{"name": "a", "column": "y", **task}])
        return labels_of(pa.table({"y": values}), chosen.tasks)[:, 0].tolist()

    assert labels(["no", " yes", "yes "], positive="yes") == [0, 1, 1]
    assert labels(["no", "yes", "sure"], positive=["yes", "sure"]) == [0, 1, 1]
    assert labels([1, 2, 3], positive=2) == labels([1.0, 2.0, 3.0], positive=2) == [0, 1, 0]
    assert labels([True, False]) == labels([1, 0]) == labels([1.0, 0.0]) == [1, 0]
    assert labels([False, True], positive=False) == [1, 0]
    np.testing.assert_array_equal(labels([1, None]), [1, np.nan])
    np.testing.assert_array_equal(labels(["yes", None], positive="yes"), [1, np.nan])
    with pytest.raises(RefusalError, match="set positive"):
        labels(["no", "yes"])
    with pytest.raises(RefusalError, match="got 2 and 0 more of its kind; allowed: 0 and 1, or set positive"):
        labels([0, 1, 2])


# Splits.


def test_rows_of_one_instant_stay_together_and_the_newest_are_test(table: pa.Table) -> None:
    rows = split_rows(
        table, config(split={"by": "time", "column": "t", "validation": 0.1, "test": 0.2}), test_apart=False
    )
    t_N = numbers(table, "t")
    assert t_N[rows["train"]].max() < t_N[rows["validation"]].min() <= t_N[rows["validation"]].max()
    assert t_N[rows["validation"]].max() < t_N[rows["test"]].min()
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [1050, 150, 300]


@pytest.mark.parametrize("apart", [False, True])
def test_a_random_split_takes_each_row_once_and_is_the_same_each_time(table: pa.Table, apart: bool) -> None:
    rows, again = (split_rows(table, config(), test_apart=apart) for _ in range(2))
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(ROWS))
    assert [len(rows[name]) for name in ("train", "validation", "test")] == (
        [1200, 300, 0] if apart else [900, 300, 300]
    )
    assert all(np.array_equal(rows[name], again[name]) for name in rows)


def test_a_column_may_name_the_parts_and_validation_may_be_drawn_from_training(table: pa.Table) -> None:
    part = pa.array(["tr"] * 1_000 + ["te"] * 500)
    marked = table.append_column("part", part)
    split = {"by": "column", "column": "part", "train": "tr", "test": "te", "validation": None, "validation_share": 0.2}
    rows = split_rows(marked, config(split=split), test_apart=False)
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [800, 200, 500]
    assert rows["test"].min() == 1_000
    with pytest.raises(RefusalError, match=r"validation part of 1500 rows is empty; set split\.validation to null"):
        split_rows(marked, config(split={**split, "validation": "va"}), test_apart=False)
    with pytest.raises(RefusalError, match="also holds te"):
        split_rows(marked, config(split={**split, "test": "x"}), test_apart=False)
    with pytest.raises(RefusalError, match="leave one of them out"):
        split_rows(marked, config(split=split), test_apart=True)
    with pytest.raises(RefusalError, match="give it with --test"):
        split_rows(marked, config(split={**split, "test": None}), test_apart=False)


# Encoding.


def test_unknown_rare_and_null_categories_have_codes_of_their_own() -> None:
    seen = pa.table({"job": ["a"] * 6 + ["b"] * 5 + ["c"] * 2 + [None] * 3, "x": [0.0] * 16})
    chosen = config(numeric=[], categorical=["job"])
    encoder = Encoder.fit(seen, np.arange(16), chosen)
    asked = pa.table({"job": ["a", " b ", "c", "z", None]})
    assert encoder(asked).code_NK[:, 0].tolist() == [KNOWN, KNOWN + 1, UNKNOWN, UNKNOWN, NULL]
    assert encoder.sizes == [KNOWN + 2]


def test_categories_are_the_same_as_integers_and_as_whole_floats() -> None:
    chosen = config(numeric=[], categorical=["zone"])
    encoder = Encoder.fit(pa.table({"zone": [3] * 5 + [4] * 5}), np.arange(10), chosen)
    assert encoder(pa.table({"zone": [3.0, float("nan"), 4.0]})).code_NK[:, 0].tolist() == [KNOWN, NULL, KNOWN + 1]


@pytest.mark.parametrize("scale", ["quantile", "log"])
def test_scaled_numbers_keep_their_order_and_know_only_training_rows(scale: str) -> None:
    rng = np.random.default_rng(0)
    x_N = np.concatenate([rng.lognormal(3, 2, 500), np.zeros(500), [np.nan, 1e30, -1e30]])
    chosen = config(numeric=["x"], categorical=[], network={**QUICK, "numeric_scale": scale})
    made = pa.table({"x": x_N})
    encoder = Encoder.fit(made, np.arange(1_000), chosen)
    z_N = encoder(made).number_NF[:, 0]
    order = np.argsort(x_N[:1_000])
    assert (np.diff(z_N[:1_000][order]) >= 0).all() and np.isnan(z_N[1_000])
    assert abs(z_N[:1_000].mean()) < 0.5 and np.isfinite(z_N[1_001:]).all() and np.abs(z_N[1_001:]).max() <= 5
    assert np.array_equal(Encoder.fit(made.slice(0, 1_000), np.arange(1_000), chosen)(made).number_NF[:, 0], z_N, True)


def test_a_constant_or_absent_number_says_nothing() -> None:
    made = pa.table({"x": [3.0] * 10, "y": pa.nulls(10, pa.float64())})
    encoder = Encoder.fit(made, np.arange(10), config(numeric=["x", "y"], categorical=[]))
    encoded = encoder(made)
    assert encoded.number_NF[:, 0].tolist() == [0.0] * 10 and np.isnan(encoded.number_NF[:, 1]).all()
    logit_NT = predict(build_network(encoder.sizes, encoder.edges, 1, network()), encoded)
    assert np.isfinite(logit_NT).all()


# Training.


@pytest.mark.parametrize("mixture", ["mmoe", "ple", "single-task"])
def test_each_mixture_learns_both_tasks(mixture: str, table: pa.Table) -> None:
    chosen = config(network={**QUICK, "mixture": mixture, "epochs": 8, "learning_rate": 0.01})
    trained, parts = trained_on(table, chosen)
    label_NT, logit_NT = parts["test"].label_NT, predict(trained.network, parts["test"].inputs)
    defined_N = ~np.isnan(label_NT[:, 1])
    assert auc(label_NT[:, 0] > 0.5, logit_NT[:, 0]) > 0.9
    assert auc(label_NT[defined_N, 1] > 0.5, logit_NT[defined_N, 1]) > 0.95


def test_training_is_reproducible_under_its_seed(table: pa.Table) -> None:
    one, again, other = (trained_on(table, config(network={**QUICK, "seed": seed}))[0] for seed in (0, 0, 1))
    assert_same_weights(one, again)
    assert one.epochs != other.epochs


class _Kill(logging.Handler):
    """Interrupts training when it reports its second epoch, before that epoch is kept."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("epoch 2 "):
            raise KeyboardInterrupt


def test_a_run_that_was_killed_goes_on_to_the_same_result(table: pa.Table, tmp_path: Path) -> None:
    logger, killer = logging.getLogger("models.ranker.epochs"), _Kill()
    level = logger.level
    logger.addHandler(killer)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(KeyboardInterrupt):
            trained_on(table, config(), tmp_path / "checkpoint")
    finally:
        logger.removeHandler(killer)
        logger.setLevel(level)
    assert len(torch.load(tmp_path / "checkpoint", weights_only=True)["epochs"]) == 1
    resumed, _ = trained_on(table, config(), tmp_path / "checkpoint")
    assert_same_weights(resumed, trained_on(table, config())[0])


def test_rows_without_labels_teach_nothing(table: pa.Table) -> None:
    """What an unlabelled row holds changes no weight, and a task's null label is none of its classes."""
    encoder, parts = parts_of(table, config())
    train_part = parts["train"]
    blank = np.arange(len(train_part)) % 3 == 0
    label_NT = np.where(blank[:, None], np.nan, train_part.label_NT).astype(np.float32)
    other = replace(
        train_part.inputs,
        number_NF=np.where(blank[:, None], 4.0, train_part.inputs.number_NF).astype(np.float32),
        code_NK=np.where(blank[:, None], NULL, train_part.inputs.code_NK),
    )
    one, again = (
        train_network(Part(inputs=inputs, label_NT=label_NT), parts["validation"], encoder, config())
        for inputs in (train_part.inputs, other)
    )
    assert_same_weights(one, again)


def test_shuffled_labels_teach_nothing(table: pa.Table) -> None:
    rng = np.random.default_rng(1)
    shuffled = with_column(table, "income", rng.permutation(np.array(table.column("income").to_pylist())))
    trained, parts = trained_on(shuffled, config(tasks=BASE["tasks"][:1]))
    logit_N = predict(trained.network, parts["test"].inputs)[:, 0]
    assert auc(parts["test"].label_NT[:, 0] > 0.5, logit_N) == pytest.approx(0.5, abs=0.08)


def test_a_non_finite_loss_stops_training_before_the_update(table: pa.Table) -> None:
    encoder, parts = parts_of(table, config())
    broken = replace(parts["train"].inputs, number_NF=np.full_like(parts["train"].inputs.number_NF, np.inf))
    with pytest.raises(TrainingError, match="stopped before the update"):
        train_network(replace(parts["train"], inputs=broken), parts["validation"], encoder, config())


def test_calibration_is_kept_only_where_it_helps_rows_that_it_was_not_fitted_to() -> None:
    rng, left_alone = np.random.default_rng(0), 0
    for _ in range(20):
        logit_N2 = rng.normal(-1, 1.5, (2_000, 2))
        label_N2 = (rng.random((2_000, 2)) < 1 / (1 + np.exp(-logit_N2))).astype(np.float32)
        label_N2[::7, 1] = np.nan
        made = calibrate((logit_N2 * [1.0, 3.0]).astype(np.float32), label_N2)
        assert made.slope_T[1] == pytest.approx(1 / 3, abs=0.06)
        left_alone += made.slope_T[0] == 1.0
    assert left_alone >= 14


# The model's directory.


@pytest.fixture(scope="module")
def saved(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """The table's file, the model and the report of its training."""
    folder = tmp_path_factory.mktemp("saved")
    file = write(table, folder / "t.parquet")
    return file, folder / "model", train(file, config(), folder / "model")


def test_evaluating_gives_what_training_reported(saved: tuple[Path, Path, dict[str, Any]]) -> None:
    file, model, report = saved
    assert {"rich", "share", "run"} == set(report)
    assert {"auc", "auc_interval", "log_loss", "ece", "ece_before", "examples", "undefined"} <= set(report["rich"])
    low, high = report["rich"]["auc_interval"]
    assert low <= report["rich"]["auc"] <= high
    again = evaluate(model, file)
    assert again["rich"] == report["rich"] and again["share"] == report["share"]
    assert not [path for path in model.parent.iterdir() if path.name.startswith(".")], "a checkpoint is left"


def test_baselines_stand_beside_the_tasks(saved: tuple[Path, Path, dict[str, Any]]) -> None:
    file, model, _ = saved
    report = evaluate(model, file, with_baselines=True)
    assert {"auc", "log_loss", "ece"} == set(report["rich"]["lightgbm"]) == set(report["rich"]["single_task"])
    assert report["rich"]["lightgbm"]["auc"] > 0.85
    assert report["rich"]["training_rate"]["log_loss"] > report["rich"]["log_loss"]


def test_rows_of_another_table_are_not_taken_for_the_split(
    saved: tuple[Path, Path, dict[str, Any]], table: pa.Table, tmp_path: Path
) -> None:
    _, model, _ = saved
    other = write(table.slice(100), tmp_path / "other.parquet")
    with pytest.raises(RefusalError, match="use --split all"):
        evaluate(model, other)
    assert evaluate(model, other, split="all")["run"]["rows"] == {"all": ROWS - 100}


def test_test_rows_may_stand_in_a_table_of_their_own(table: pa.Table, tmp_path: Path) -> None:
    examples, test = (
        write(table.slice(0, 1_000), tmp_path / "a.parquet"),
        write(table.slice(1_000), tmp_path / "b.parquet"),
    )
    report = train(examples, config(), tmp_path / "model", test=test)
    assert report["run"]["rows"] == {"train": 800, "validation": 200, "test": 500}
    with pytest.raises(RefusalError, match="give one with --test"):
        evaluate(tmp_path / "model", examples)
    assert evaluate(tmp_path / "model", examples, test=test)["rich"] == report["rich"]


def test_a_directory_that_is_no_model_or_exists_already_is_refused(
    saved: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    file, model, _ = saved
    with pytest.raises(RefusalError, match="cannot be loaded"):
        TabularModel.load(tmp_path)
    with pytest.raises(RefusalError, match="exists already"):
        train(file, config(), model)
