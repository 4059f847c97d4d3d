"""Served values as arrays of a record, beside the record's own accessors and what the ranker was fed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from batch.slate_values import ITEM_NAMES, USER_NAMES, Degraded, item_values, served_history, user_values
from features import specs
from features.packed import PackedArray, pack
from features.slates import SlateError, SlateItem, SlateRecord, parse_slate
from models.bundle import Bundle
from models.ranker_inputs import CANDIDATE_FEATURES, USER_FEATURES
from serving.answer import Answer
from serving.slate_record import to_json
from tests.past_requests import QUERIES, answered, live_view, query, record_of
from tests.serving_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """One of every kind of request, by the real pipeline."""
    view = live_view(Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles"))))
    return {kind: answered(view, query(kind, **fields)) for kind, fields in QUERIES.items()}


def with_arrays(record: SlateRecord, changed: Mapping[str, PackedArray | None]) -> SlateRecord:
    assert record.evidence is not None
    arrays = {name: array for name, array in {**record.evidence.unpacked, **changed}.items() if array is not None}
    return replace(record, evidence=replace(record.evidence, arrays=pack(arrays)))


@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize("full", [False, True])
def test_the_arrays_are_what_the_ranker_was_fed(answers: dict[str, Answer], kind: str, full: bool) -> None:
    answer = answers[kind]
    record = parse_slate(to_json(record_of(answer, full_features=full)))
    assert record.spec_version == specs.version()
    position_N, values_NG = item_values(record)
    inputs = answer.scored.inputs
    if inputs is None:
        assert not len(position_N) and values_NG.shape == (0, len(ITEM_NAMES))
        return
    assert position_N.tolist() == [item.position for item in record.items]
    column = [CANDIDATE_FEATURES.index(name) for name in ITEM_NAMES]
    np.testing.assert_array_equal(values_NG, inputs.candidate_CF[answer.rows.row_S][:, column])
    for position, values_G in zip(position_N.tolist(), values_NG, strict=True):
        assert dict(zip(ITEM_NAMES, values_G.tolist(), strict=True)) == record.item_features(position)
    user = [USER_FEATURES.index(name) for name in USER_NAMES]
    np.testing.assert_array_equal(user_values(record), inputs.user_UF[0][user])
    assert record.evidence is not None
    history, read = served_history(record.evidence), answer.state.history
    assert history.item_ids == [each.item_id for each in read]
    assert history.event_types == [str(each.event_type) for each in read]
    assert history.event_time_ms_H.tolist() == [each.event_time_ms for each in read]


def broken(record: SlateRecord) -> dict[str, Any]:
    evidence = record.evidence
    assert evidence is not None
    arrays = evidence.unpacked
    rows = arrays["row_S"]
    shorter = PackedArray(dtype=rows.dtype, shape=(rows.shape[0] - 1,), data=rows.data[4:])
    values = arrays["candidate_CF"]
    wide = PackedArray(dtype="<f8", shape=values.shape, data=values.data * 2)
    names = evidence.candidate_features
    return {
        "array candidate_CF of the slate record: got none": with_arrays(record, {"candidate_CF": None}),
        "got <f8; allowed: <f4": with_arrays(record, {"candidate_CF": wide}),
        "rows for": with_arrays(record, {"row_S": shorter}),
        f"lacks the features {names[0]}": replace(
            record, evidence=replace(evidence, candidate_features=("other", *names[1:]))
        ),
        "cannot be read": replace(record, evidence=replace(evidence, arrays="broken")),
    }


def test_a_record_that_does_not_hold_together_is_refused_by_what_is_wrong(answers: dict[str, Answer]) -> None:
    record = record_of(next(answer for answer in answers.values() if answer.scored.inputs is not None))
    for said, wrong in broken(record).items():
        with pytest.raises(SlateError, match=said):
            item_values(wrong)
    with pytest.raises(SlateError, match=f"lacks the features {USER_NAMES[0]}"):
        user_values(replace(record, user_features={"other": 1.0}))
    evidence = record.evidence
    assert evidence is not None
    for user in ({}, {"history_item_ids": ["a"], "history_types": ["dance"]}):
        with pytest.raises(SlateError, match="has no history"):
            served_history(replace(evidence, user=user))
    with pytest.raises(SlateError, match="1 items, 1 types and"):
        served_history(replace(evidence, user={"history_item_ids": ["a"], "history_types": ["click"]}))


def test_features_of_some_positions_only(answers: dict[str, Answer]) -> None:
    """Of a record whose inputs are of the second item alone, and of version 1."""
    record = record_of(next(answer for answer in answers.values() if answer.scored.inputs is not None))
    assert record.evidence is not None
    arrays = record.evidence.unpacked
    second = np.frombuffer(arrays["row_S"].data, "<i4")[1:2]
    rows = np.frombuffer(arrays["input_row_R"].data, "<i4")
    values_RF = np.frombuffer(arrays["candidate_CF"].data, "<f4").reshape(arrays["candidate_CF"].shape)
    at = rows.tolist().index(second[0])
    one = {
        "input_row_R": PackedArray(dtype="<i4", shape=(1,), data=second.tobytes()),
        "candidate_CF": PackedArray(dtype="<f4", shape=(1, values_RF.shape[1]), data=values_RF[at : at + 1].tobytes()),
    }
    position_N, values_NG = item_values(with_arrays(record, one))
    assert position_N.tolist() == [1] and values_NG.shape == (1, len(ITEM_NAMES))
    none = {
        "input_row_R": PackedArray(dtype="<i4", shape=(0,), data=b""),
        "candidate_CF": PackedArray(dtype="<f4", shape=(0, values_RF.shape[1]), data=b""),
    }
    assert not len(item_values(with_arrays(record, none))[0])
    bare = SlateItem(item_id="i", position=0, score=0.0, propensity=1.0, sources=(), probabilities={})
    told = replace(bare, position=1, features=dict.fromkeys(ITEM_NAMES, 2.0))
    position_N, values_NG = item_values(replace(record, evidence=None, items=(bare, told)))
    assert position_N.tolist() == [1] and values_NG.tolist() == [[2.0] * len(ITEM_NAMES)]


@pytest.mark.parametrize(
    ("note", "user", "items"),
    [
        ("hydrate: the store failed", True, False),
        ("retrieve: no item features yet", False, True),
        ("score: item features are 70 s old", False, True),
        ("score: no time left", False, False),
    ],
)
def test_what_the_service_did_not_have(answers: dict[str, Answer], note: str, user: bool, items: bool) -> None:
    record = replace(record_of(next(iter(answers.values()))), degraded=(note,))
    assert Degraded.of(record) == Degraded(user=user, items=items)
