"""A logged request run again: bit for bit where everything was logged, and never silently otherwise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.slates import SlateRecord, parse_slate
from models.bundle import Bundle
from models.ranker.calibration import Calibration
from models.ranker_inputs import CANDIDATE_FEATURES
from serving.answer import Answer
from serving.past_request import PastRequest, PastRequestError, past_request
from serving.replay import Check, Verdict, replay
from serving.rules import NO_RULES, Rules
from serving.view import LiveView
from tests.past_requests import QUERIES, answered, live_view, query, record_of, rules
from tests.serving_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles")))


@pytest.fixture(scope="module")
def view(bundle: Bundle) -> LiveView:
    return live_view(bundle)


@pytest.fixture(scope="module")
def some_rules(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    return rules(tmp_path_factory.mktemp("rules"))


def _logged(answer: Answer, *, full_features: bool = True) -> SlateRecord:
    record = record_of(answer, full_features=full_features)
    read = parse_slate(record.to_json())
    assert read.to_json() == record.to_json()
    return read


def _past(answer: Answer, **options: bool) -> PastRequest:
    return past_request(_logged(answer, **options), answer.view.bundle)


def _differing(checks: tuple[Check, ...]) -> list[str]:
    return [f"{check.part}: {check.said}" for check in checks if check.verdict is not Verdict.EQUAL]


@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize("ruled", [False, True])
def test_every_kind_of_request_replays_bit_for_bit(view: LiveView, some_rules: Rules, kind: str, ruled: bool) -> None:
    for request_id in ("r1", "r2", "r3"):
        answer = answered(view, query(request_id, **QUERIES[kind]), some_rules if ruled else NO_RULES)
        past = _past(answer)
        assert not _differing(replay(past))
        assert [past.item_id(row) for row in past.served.row_S.tolist()] == [
            answer.item_id(row) for row in answer.rows.row_S.tolist()
        ]


def test_all_that_the_ranker_read_is_made_again_of_the_record(view: LiveView) -> None:
    answer = answered(view, query(count=20))
    past, inputs = _past(answer), answer.scored.inputs
    assert inputs is not None and past.evidence.full_features
    logged, made = past.logged_inputs(), past.assembled_inputs()
    assert logged is not None
    for name, array in inputs.feed().items():
        for other in (logged.feed()[name], made.feed()[name]):
            assert other.dtype == array.dtype and other.tobytes() == array.tobytes(), name
    contenders = answer.contenders
    assert contenders is not None and past.contenders is not None
    for name in ("score_C", "age_ms_C", "explorable_C", "click_probability_C", "clicks_C", "impressions_C"):
        assert np.array_equal(getattr(past.contenders, name), getattr(contenders, name)), name
    assert {past.item_id(row) for row in range(len(past.item_index_C))} & {"new0", "new1", "new3"}


def test_of_the_returned_items_alone_their_scores_and_the_slate_are_made_again(view: LiveView) -> None:
    answer = answered(view, query(count=20))
    record = _logged(answer, full_features=False)
    assert record.evidence is not None and not record.evidence.full_features
    past = past_request(record, view.bundle)
    assert len(past.arrays["input_row_R"]) == 20 < len(past.item_index_C)
    checks = {check.part: check for check in replay(past)}
    assert Verdict.DIFFERENT not in {check.verdict for check in checks.values()}
    assert "only theirs were logged" in checks["features"].said
    assert checks["slate"].verdict is checks["propensities"].verdict is Verdict.EQUAL


def test_features_are_read_by_name_in_both_versions(view: LiveView) -> None:
    answer = answered(view, query(count=20))
    for full in (False, True):
        record = _logged(answer, full_features=full)
        for position, row in enumerate(answer.rows.row_S.tolist()):
            assert record.item_features(position) == answer.features(row)
    assert tuple(record.item_features(0)) == CANDIDATE_FEATURES
    old = (Path(__file__).parent.parent / "golden" / "slate_v1.json").read_bytes()
    first = parse_slate(old)
    assert first.schema_version == 1 and first.evidence is None
    assert first.item_features(1) == {"item_ctr_7d": 0.25}
    with pytest.raises(PastRequestError, match="logged as version 1; allowed: version 2"):
        past_request(first, view.bundle)


def test_without_the_ranker_the_slate_is_still_made_again(view: LiveView) -> None:
    class Broken:
        layout = view.bundle.ranker.layout

        def score(self, _: object) -> None:
            raise RuntimeError("broken")

    broken = replace(view, bundle=replace(view.bundle, ranker=Broken()))  # type: ignore[arg-type]
    answer = answered(broken, query())
    assert answer.scored.inputs is None and answer.progress.degraded
    past = _past(answer)
    assert not _differing(replay(past)) and not past.evidence.full_features
    assert dict(past.record.item_features(0)) == {}


def test_scores_that_are_not_finite_replay(tmp_path: Path) -> None:
    sick = live_view(Bundle.load(write_tiny_bundle(tmp_path, "sick", nan_scores=True)))
    past = _past(answered(sick, query()))
    assert not np.isfinite(past.score_C).any() and not _differing(replay(past))


def _damaged(record: SlateRecord, **changed: object) -> SlateRecord:
    assert record.evidence is not None
    return replace(record, evidence=replace(record.evidence, **changed))


def test_a_difference_is_found_in_each_part(view: LiveView, tmp_path: Path) -> None:
    answer = answered(view, query("r9", count=30))
    record = _logged(answer)
    assert record.evidence is not None
    settings = dict(record.evidence.settings)
    arm = settings["arm"]
    parts = {
        "features": _damaged(record, query={**record.evidence.query, "device": "tv"}),
        "scores": _damaged(record, settings={**settings, "arm": {**arm, "value_weights": {"click": 0.9}}}),
        "slate": _damaged(record, settings={**settings, "arm": {**arm, "rerank": {"category_penalty": 9}}}),
        "propensities": replace(record, items=tuple(replace(item, propensity=0.5) for item in record.items)),
    }
    for part, other in parts.items():
        found = {c.part: c.verdict for c in replay(past_request(other, view.bundle))}
        assert found[part] is Verdict.DIFFERENT, part
    another = Bundle.load(write_tiny_bundle(tmp_path, "another"))
    ranker = replace(another.ranker, calibration=_stretched(another.ranker.calibration))
    sharper = replace(another, ranker=ranker, bundle_id=record.bundle_id)
    found = {check.part: check.verdict for check in replay(past_request(record, sharper))}
    assert found["probabilities"] is found["scores"] is Verdict.DIFFERENT and found["slate"] is Verdict.EQUAL


def _stretched(calibration: Calibration) -> Calibration:
    return replace(calibration, slope_T=calibration.slope_T * 1.01)


def test_a_record_that_cannot_be_put_together_says_so(view: LiveView, tmp_path: Path) -> None:
    record = _logged(answered(view, query(), max_candidates=40))
    other = Bundle.load(write_tiny_bundle(tmp_path, "other"))
    with pytest.raises(PastRequestError, match=f"answered by {record.bundle_id}: got {other.bundle_id}; give its"):
        past_request(record, other)
    for damage in ({"arrays": "rubbish"}, {"arrays": "AAAA"}, {"sources": {"als": 3}}, {"user": {}}, {"unscored": ()}):
        with pytest.raises(PastRequestError, match=r"is damaged .* ask for another request"):
            past_request(_damaged(record, **damage), view.bundle)


def test_a_long_rank_is_logged_as_far_as_its_best(view: LiveView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.slate_draft.MAX_LOGGED", 20)
    ids = view.item_table.item_ids
    answer = answered(view, query(item_ids=ids, count=len(ids), explore=False))
    record = _logged(answer)
    assert [item.item_id for item in record.items] == [answer.item_id(row) for row in answer.rows.row_S[:20].tolist()]
    assert {item["item_id"] for item in record.candidates} == {item.item_id for item in record.items}
    assert record.evidence is not None and record.evidence.candidates_retrieved == len(ids)
    checks = replay(past_request(record, view.bundle))
    assert Verdict.DIFFERENT not in {check.verdict for check in checks} and not record.evidence.full_features
