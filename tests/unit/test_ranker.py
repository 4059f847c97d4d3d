"""The ranker: its inputs, losses, optimiser, training, calibration and export."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch

from features.events import EventType
from features.names import MS_PER_HOUR
from features.specs import Entity, features_of
from features.user_state import Interaction
from models.affinity import affinity_of
from models.examples import BATCH_ROWS, Examples, assemble, example_batches
from models.history import user_history
from models.item_table import UNKNOWN, ItemTable, train_item_table
from models.metrics import auc, log_loss
from models.ranker.calibration import Calibration, fit_platt, identity
from models.ranker.config import RankerConfig
from models.ranker.epochs import TrainingError, masked_loss
from models.ranker.experts import Mixture
from models.ranker.export import difference, export
from models.ranker.network import RankerNetwork
from models.ranker.optimiser import AdamW
from models.ranker.scorer import Ranker
from models.ranker.training import Data, Trained, predict, train_ranker
from models.ranker_inputs import (
    CANDIDATE_FEATURES,
    HEADS,
    OOV,
    USER_FEATURES,
    RankerInputs,
    RankerLayout,
    Rows,
    assemble_request,
)
from models.sources.als import AlsSource
from tests.synthetic_lake import SyntheticLake, synthetic_lake

CONFIG = RankerConfig(batch_size=256, epochs=4, learning_rate=4e-3, item_dim=4, hidden_dim=48, expert_dim=24)


@pytest.fixture(scope="module")
def lake() -> SyntheticLake:
    return synthetic_lake(seed=2, users=50, items=60, slates=12)


@pytest.fixture(scope="module")
def table(lake: SyntheticLake) -> ItemTable:
    return train_item_table(lake.items)


@pytest.fixture(scope="module")
def layout(table: ItemTable) -> RankerLayout:
    sizes = table.trained
    return RankerLayout(
        devices=("phone", "tv"),
        items=sizes.items,
        categories=sizes.categories,
        creators=sizes.creators,
        languages=sizes.languages,
    )


@pytest.fixture(scope="module")
def examples(lake: SyntheticLake, layout: RankerLayout, table: ItemTable) -> Examples:
    return assemble(lake.examples.to_batches(BATCH_ROWS), lake.examples.num_rows, layout, table)


@pytest.fixture(scope="module")
def data(examples: Examples) -> Data:
    order = np.argsort(examples.time_ms_N, kind="stable")
    cut = len(order) * 8 // 10
    return Data.of(examples, order[:cut], order[cut:])


@pytest.fixture(scope="module")
def trained(data: Data, layout: RankerLayout) -> Trained:
    return train_ranker(data, layout, CONFIG, seed=0)


def one_user(inputs: RankerInputs) -> RankerInputs:
    return replace(inputs, **{name: array[:1] for name, array in inputs.feed().items() if "_U" in name})


def test_a_request_is_assembled_as_its_training_example_was(
    lake: SyntheticLake, layout: RankerLayout, table: ItemTable, examples: Examples
) -> None:
    factors_ID = np.random.default_rng(3).normal(size=(len(table), 8)).astype(np.float32)
    als = AlsSource(item_factors_ID=factors_ID, alpha=2.0, regularization=0.1)
    examples = examples.with_affinity(affinity_of(examples, [als]))
    for n in range(len(examples) - 1, len(examples) - 200, -20):
        row = lake.examples.slice(n, 1).to_pylist()[0]
        times, types = row["history_event_times_ms"], row["history_event_types"]
        interactions = [
            Interaction(
                event_id=str(order),
                event_type=EventType(event_type),
                event_time_ms=time_ms,
                user_id=row["user_id"],
                item_id=item_id,
                category="unused",
                creator_id="unused",
            )
            for order, (item_id, event_type, time_ms) in enumerate(
                zip(row["history_item_ids"], types, times, strict=True)
            )
        ]
        windows = {entity: np.array([row[feature.name] for feature in features_of(entity)]) for entity in Entity}
        history, item_index_C = user_history(interactions, table), table.indices([row["item_id"]])
        request = assemble_request(
            layout=layout,
            item_table=table,
            item_index_C=item_index_C,
            instant_ms=row["t_ms"],
            user_features_F=windows[Entity.USER],
            user_category_CF=windows[Entity.USER_CATEGORY][None],
            item_CF=windows[Entity.ITEM][None],
            creator_CF=windows[Entity.CREATOR][None],
            category_CF=windows[Entity.CATEGORY][None],
            history=history,
            affinity_CA=als.affinity(als.fold_in(history.item_index_L, history.weight_L), item_index_C),
            device=row["device"],
        )
        assert request.affinity_CA.any(), n
        example = examples.inputs.take(np.array([n])).as_served()
        for name, array in request.feed().items():
            assert array.dtype == example.feed()[name].dtype, name
            np.testing.assert_array_equal(array, example.feed()[name], err_msg=name)


def test_an_example_is_of_the_instant_at_which_its_features_were_read(
    lake: SyntheticLake, layout: RankerLayout, table: ItemTable
) -> None:
    shown_ms = lake.examples["t_ms"].to_numpy()
    known = np.arange(len(shown_ms)) % 2 == 0
    read_ms = np.where(known, shown_ms - 2 * MS_PER_HOUR, shown_ms)

    def inputs(examples: pa.Table) -> RankerInputs:
        return assemble(example_batches(ds.dataset(examples)), examples.num_rows, layout, table).inputs

    got = inputs(lake.examples.append_column("feature_ms", pa.array(read_ms, mask=~known)))
    column = lake.examples.schema.get_field_index("t_ms")
    expected = inputs(lake.examples.set_column(column, "t_ms", pa.array(read_ms)))
    for name, array in expected.feed().items():
        np.testing.assert_array_equal(got.feed()[name], array, err_msg=name)
    assert (inputs(lake.examples).hour_U[known] != got.hour_U[known]).all()


def test_what_training_did_not_know_is_out_of_vocabulary_and_non_finite_values_never_enter(
    layout: RankerLayout, table: ItemTable
) -> None:
    inputs = assemble_request(
        layout=layout,
        item_table=table,
        item_index_C=np.array([UNKNOWN, 0], np.int32),
        instant_ms=1,
        user_features_F=np.full(len(USER_FEATURES), np.nan),
        user_category_CF=np.full((2, len(features_of(Entity.USER_CATEGORY))), np.inf),
        item_CF=np.zeros((2, len(features_of(Entity.ITEM)))),
        creator_CF=np.zeros((2, len(features_of(Entity.CREATOR)))),
        category_CF=np.zeros((2, len(features_of(Entity.CATEGORY)))),
        history=user_history([], table),
        device="fridge",
    )
    assert inputs.item_C.tolist() == [OOV, 1] and inputs.creator_C[0] == OOV and inputs.device_U.tolist() == [OOV]
    assert inputs.static_CS[0].tolist() == [0.0, 0.0]
    assert all(np.isfinite(array).all() for array in inputs.feed().values())


def test_rows_of_a_matrix_are_gathered_as_if_they_had_been_given(table: ItemTable, layout: RankerLayout) -> None:
    rng, items = np.random.default_rng(0), np.arange(4, dtype=np.int32)
    width = {entity: len(features_of(entity)) for entity in Entity}
    values_XF = {entity: rng.normal(size=(6, width[entity])).astype(np.float32) for entity in Entity}
    values_XF[Entity.ITEM][2] = np.nan
    row_C = np.array([2, -1, 0, 2])

    def assembled(part: Callable[[Entity], Any]) -> RankerInputs:
        return assemble_request(
            layout=layout,
            item_table=table,
            item_index_C=items,
            instant_ms=1,
            user_features_F=np.zeros(width[Entity.USER]),
            user_category_CF=part(Entity.USER_CATEGORY),
            item_CF=part(Entity.ITEM),
            creator_CF=part(Entity.CREATOR),
            category_CF=part(Entity.CATEGORY),
            history=user_history((), table),
            device=None,
        )

    gathered = assembled(lambda entity: Rows(values_XF[entity], row_C))
    given = assembled(lambda entity: np.nan_to_num(values_XF[entity][row_C], nan=0.0).astype(np.float64))
    np.testing.assert_array_equal(gathered.candidate_CF, given.candidate_CF)
    with pytest.raises(IndexError, match="row_C"):
        assembled(lambda entity: Rows(values_XF[entity], row_C + 4))
    with pytest.raises(ValueError, match="row_C"):
        assembled(lambda entity: Rows(values_XF[entity], row_C[:2]))


def test_masked_loss_is_the_weighted_sum_of_each_heads_log_loss_where_its_label_is_defined() -> None:
    rng = np.random.default_rng(0)
    logit_NT, label_NT = rng.normal(size=(50, 3)), rng.random((50, 3))
    label_NT[rng.random((50, 3)) < 0.4] = np.nan
    label_NT[:, 2] = np.nan
    defined = ~np.isnan(label_NT)
    expected = sum(
        weight * log_loss(label_NT[defined[:, t], t], 1 / (1 + np.exp(-logit_NT[defined[:, t], t])))
        for t, weight in ((0, 1.0), (1, 0.5))
    )
    got = masked_loss(torch.tensor(logit_NT), torch.tensor(label_NT), torch.tensor([1.0, 0.5, 2.0]))
    assert float(got) == pytest.approx(expected)


def test_the_optimiser_makes_the_updates_of_the_paper() -> None:
    """Against Algorithm 2 in plain numbers; tests/integration compares it with torch's own."""
    rng = np.random.default_rng(0)
    value, mean, square = rng.normal(size=5), np.zeros(5), np.zeros(5)
    parameter = torch.nn.Parameter(torch.tensor(value))
    optimiser = AdamW([parameter], 0.01, 0.1)
    for step in range(1, 11):
        gradient = rng.normal(size=5)
        parameter.grad = torch.tensor(gradient)
        optimiser.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        change = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        value = value - 0.01 * (change + 0.1 * value)
    np.testing.assert_allclose(parameter.detach().numpy(), value)


def test_training_beats_popularity_on_later_examples(trained: Trained, data: Data, examples: Examples) -> None:
    rows = data.validation_rows
    clicked_N = examples.label_NT[rows, HEADS.index("click")] > 0
    got = auc(clicked_N, predict(trained.network, data.inputs, rows)[:, HEADS.index("click")])
    clicks_N = examples.inputs.candidate_CF[rows, CANDIDATE_FEATURES.index("item_clicks_7d")]
    assert got > auc(clicked_N, clicks_N) + 0.1
    assert got > 0.7


def test_shuffled_labels_teach_nothing(data: Data, layout: RankerLayout) -> None:
    rng = np.random.default_rng(0)
    shuffled = replace(data, label_NT=data.label_NT[torch.from_numpy(rng.permutation(len(data.label_NT)))])
    network = train_ranker(shuffled, layout, CONFIG.model_copy(update={"epochs": 1}), seed=0).network
    rows = data.validation_rows
    logit_N = predict(network, data.inputs, rows)[:, 0]
    assert auc(shuffled.label_NT[rows, 0].numpy() > 0, logit_N) == pytest.approx(0.5, abs=0.08)


def test_a_new_interest_moves_its_category_up(trained: Trained, data: Data, table: ItemTable) -> None:
    """Five fresh clicks in a category, with the windows that they fill, and that category's items gain on others."""
    rows = torch.from_numpy(np.arange(len(table)))
    base = {name: array[:1].expand(len(rows), *array.shape[1:]).clone() for name, array in data.inputs.items()}
    base["item_C"], base["category_C"] = rows.int() + 1, torch.from_numpy(table.category_code).int() + 1
    for name in ("history_weight_UL", "candidate_CF", "user_UF"):
        base[name].zero_()
    chosen = np.flatnonzero(table.category_code == 2)
    after = {name: array.clone() for name, array in base.items()}
    after["history_weight_UL"][:, :5] = 1.0
    after["history_age_ms_UL"][:, :5] = 60_000.0
    after["history_item_UL"][:, :5] = torch.from_numpy(chosen[:5]).int() + 1
    after["history_category_UL"][:, :5] = 3
    for window in ("10m", "1h", "24h"):
        after["candidate_CF"][chosen, CANDIDATE_FEATURES.index(f"user_category_clicks_{window}")] = 5.0
    every = np.arange(len(table))
    logit_B, logit_A = (predict(trained.network, inputs, every)[:, 0] for inputs in (base, after))
    others = np.setdiff1d(every, chosen)
    gain = logit_A - logit_B
    assert gain[chosen].mean() > gain[others].mean() + 0.3


def test_a_run_that_was_killed_goes_on_to_the_same_result(
    data: Data, layout: RankerLayout, trained: Trained, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    short = CONFIG.model_copy(update={"epochs": 2})
    train_ranker(data, layout, short, seed=0, checkpoint=checkpoint)
    kept = torch.load(checkpoint, weights_only=True)
    kept["fingerprint"] = kept["fingerprint"].replace('"epochs":2', '"epochs":4')
    torch.save(kept, checkpoint)
    resumed = train_ranker(data, layout, CONFIG, seed=0, checkpoint=checkpoint)
    assert resumed.epochs == trained.epochs
    for name, value in trained.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, rtol=0, atol=0)


def test_a_checkpoint_of_another_run_is_left_alone(data: Data, layout: RankerLayout, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    one = CONFIG.model_copy(update={"epochs": 1})
    train_ranker(data, layout, one, seed=0, checkpoint=checkpoint)
    again = train_ranker(data, layout, one, seed=1, checkpoint=checkpoint)
    assert len(again.epochs) == 1


def test_a_non_finite_loss_stops_training_before_the_update(data: Data, layout: RankerLayout) -> None:
    broken = replace(data, label_NT=torch.full_like(data.label_NT, float("inf")))
    with pytest.raises(TrainingError, match="stopped before the update"):
        train_ranker(broken, layout, CONFIG, seed=0)


def test_rare_items_are_scored_as_unknown_ones(layout: RankerLayout) -> None:
    network = RankerNetwork(layout, CONFIG)
    network.forget_rare_items(np.arange(layout.items), 3)
    weight = network.item.weight
    assert all(torch.equal(weight[row], weight[OOV]) for row in (1, 2, 3))
    assert not torch.equal(weight[4], weight[OOV])


@pytest.mark.parametrize("mixture", ["mmoe", "ple"])
def test_the_exported_graph_equals_torch(
    mixture: Mixture, trained: Trained, data: Data, layout: RankerLayout, examples: Examples, tmp_path: Path
) -> None:
    if mixture == "ple":
        config = CONFIG.model_copy(update={"mixture": mixture, "epochs": 1})
        trained = train_ranker(data, layout, config, seed=0)
    path = tmp_path / "ranker.onnx"
    many = examples.inputs.take(np.arange(40))
    export(trained.network, path, [one_user(many), many])
    zeros = RankerInputs(**{name: np.zeros_like(array) for name, array in many.feed().items()})
    huge = replace(
        many,
        user_UF=np.full_like(many.user_UF, 3e9),
        candidate_CF=np.full_like(many.candidate_CF, -3e9),
        history_weight_UL=np.full_like(many.history_weight_UL, 10.0),
        history_age_ms_UL=np.full_like(many.history_age_ms_UL, 3e9),
        position_C=np.full_like(many.position_C, 9_999),
    )
    single = one_user(many.take(np.array([3])))
    for inputs in (many, one_user(many), zeros, one_user(huge), huge, single):
        assert difference(trained.network, path, inputs) <= 1e-5
    ranker = Ranker.load(path, layout, identity(len(HEADS)))
    np.testing.assert_allclose(ranker.logits(one_user(many))[0], ranker.logits(many)[0], atol=1e-5)
    assert {head: len(scores) for head, scores in ranker.score(many).items()} == dict.fromkeys(HEADS, 40)
    assert len(ranker.score(many.take(np.empty(0, np.int64)))["click"]) == 0


@pytest.mark.parametrize("stretch", [0.2, 2.0, 8.0])
def test_platt_scaling_undoes_a_stretch_and_a_shift(stretch: float) -> None:
    rng = np.random.default_rng(0)
    truth_N = rng.normal(-1, 1.5, 40_000)
    label_N = (rng.random(40_000) < 1 / (1 + np.exp(-truth_N))).astype(np.float32)
    slope, intercept = fit_platt(truth_N * stretch + 1, label_N)
    assert slope * stretch == pytest.approx(1, abs=0.05) and intercept + slope == pytest.approx(0, abs=0.06)


def test_platt_scaling_from_scores_that_are_far_from_logits_does_not_diverge() -> None:
    rng = np.random.default_rng(0)
    score_N = rng.uniform(1, 400, 600)
    label_N = (rng.random(600) < 1 / (1 + np.exp(-(score_N * 0.01 - 4)))).astype(np.float32)
    slope, intercept = fit_platt(score_N, label_N)
    got = log_loss(label_N, 1 / (1 + np.exp(-(score_N * slope + intercept))))
    assert got < log_loss(label_N, np.full(600, label_N.mean())) and 0.005 < slope < 0.015


@pytest.mark.parametrize(
    ("logit_N", "label_N"),
    [(np.zeros(10), np.zeros(10)), (np.linspace(-3, 3, 500), np.linspace(-3, 3, 500) < 0)],
)
def test_too_little_data_and_reversed_scores_leave_probabilities_as_they_are(
    logit_N: np.ndarray, label_N: np.ndarray
) -> None:
    assert fit_platt(logit_N, label_N.astype(float)) == (1.0, 0.0)


def test_calibration_survives_json_and_passes_non_finite_logits_on() -> None:
    made = Calibration(slope_T=np.array([0.5, 2.0]), intercept_T=np.array([0.1, -1.0]))
    again = Calibration.from_json(made.to_json())
    logit_CT = np.array([[0.0, 1.0], [np.nan, np.inf]])
    np.testing.assert_array_equal(made(logit_CT), again(logit_CT))
    assert np.isnan(again(logit_CT)[1]).all()


def test_unknown_settings_and_missing_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        RankerConfig(hidden=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="exactly"):
        RankerConfig(head_weights={"click": 1.0})


def test_history_lists_of_unlike_length_are_refused(
    lake: SyntheticLake, layout: RankerLayout, table: ItemTable
) -> None:
    rows = lake.examples.slice(0, 2)
    types = pa.array([["click"], ["click", "like"]], pa.list_(pa.string()))
    broken = rows.set_column(rows.schema.get_field_index("history_event_types"), "history_event_types", types)
    with pytest.raises(ValueError, match="history lists"):
        assemble(broken.to_batches(), broken.num_rows, layout, table)
