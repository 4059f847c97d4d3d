"""What became of each item, judged by the live pipeline's own objects and by trying scores one by one."""

import numpy as np
import pytest

from features.slates import parse_slate
from models.bundle import Bundle
from serving.answer import Answer
from serving.past_request import PastRequest, past_request
from serving.rules import NO_RULES, Rules
from serving.trace import Trace, trace
from serving.view import LiveView
from tests.past_requests import QUERIES, answered, live_view, query, record_of, rules
from tests.serving_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> LiveView:
    return live_view(Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles"))))


@pytest.fixture(scope="module")
def some_rules(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    return rules(tmp_path_factory.mktemp("rules"))


def _past(answer: Answer) -> PastRequest:
    return past_request(parse_slate(record_of(answer).to_json()), answer.view.bundle)


def _really_dropped_by(answer: Answer, item_id: str) -> str:
    """The oracle: reads the masks and lists of the answer itself."""
    index = answer.view.item_table.index.get(item_id)
    if index is None:
        return "retrieve"
    candidates = answer.item_index_C.tolist()
    if index in [candidates[row] for row in answer.rows.row_S]:
        return ""
    if index in candidates:
        return "rerank"
    if answer.excluded is not None and any(mask_I[index] for mask_I in answer.excluded.masks.values()):
        return "filter"
    return "score" if index in answer.retrieved.merged.item_index_C.tolist() else "retrieve"


@pytest.mark.parametrize("kind", QUERIES)
def test_each_item_of_the_catalogue_is_said_to_be_where_it_was(view: LiveView, some_rules: Rules, kind: str) -> None:
    for known, limit in ((NO_RULES, 60), (some_rules, 40)):
        answer = answered(view, query("r4", **QUERIES[kind]), known, max_candidates=limit)
        past = _past(answer)
        for item_id in (*view.item_table.item_ids, "nowhere"):
            found = trace(past, item_id, may_search=lambda: False)
            assert found.dropped_by == _really_dropped_by(answer, item_id), (item_id, found)
            assert found.reason and found.needed_score is None


def test_every_stage_can_drop_an_item_and_says_what_it_would_have_taken(view: LiveView, some_rules: Rules) -> None:
    past = _past(answered(view, query("r4", count=10), some_rules, max_candidates=40))
    by_stage: dict[str, list[Trace]] = {}
    for item_id in (*view.item_table.item_ids, "nowhere"):
        found = trace(past, item_id, may_search=lambda: False)
        by_stage.setdefault(found.dropped_by, []).append(found)
    assert set(by_stage) == {"", "rerank", "filter", "score", "retrieve"}
    filtered = {found.item_id: found.reason for found in by_stage["filter"]}
    assert filtered["art02"] == filtered["new2"] == "the user has seen it"
    assert filtered["sport05"] == "the user has hidden it" and "a rule of the rules file" in filtered["sport00"]
    assert filtered["art01"] == "it is not available"
    assert "a retrieval score above" in by_stage["score"][0].reason and by_stage["score"][0].source_ranks
    assert "the best of any source (als " in by_stage["retrieve"][0].reason
    assert "does not hold it" in next(found.reason for found in by_stage["retrieve"] if found.item_id == "nowhere")


@pytest.mark.parametrize("count", [1, 10, 25])
def test_the_needed_score_is_the_one_at_which_trying_finds_the_item_in_the_slate(view: LiveView, count: int) -> None:
    for request_id in ("a", "b"):
        past = _past(answered(view, query(request_id, count=count)))
        left_out = [row for row in range(len(past.item_index_C)) if row not in past.served.row_S]
        for row in left_out[:: max(len(left_out) // 3, 1)]:
            needed = trace(past, past.item_id(row)).needed_score
            assert needed is not None
            step = (past.score_C.max() - past.score_C.min()) / 100
            tried = np.arange(past.score_C[row], past.score_C.max() + 100 * step, step)
            first = next(score for score in tried if _shown_with(past, row, score))
            assert first - step - 1e-6 <= needed <= first + 1e-6, (row, needed, first)


def _shown_with(past: PastRequest, row: int, score: float) -> bool:
    score_C = past.score_C.copy()
    score_C[row] = score
    return row in past.reranked(score_C).row_S


def test_of_many_later_items_that_are_excluded_the_others_are_named(
    view: LiveView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.slate_draft.MAX_NAMED", 2)
    past = _past(answered(view, query(**QUERIES["allowed"])))
    assert past.evidence.excluded_since["not_allowed"] == {"but": True, "ids": ["new0"]}
    assert trace(past, "new0").dropped_by == "" and trace(past, "new1").dropped_by == "filter"
    assert trace(past, "nowhere").dropped_by == "retrieve", "whether it is in the catalogue is not known"


def test_where_no_score_would_do_none_is_named(view: LiveView, some_rules: Rules) -> None:
    empty = _past(answered(view, query(count=0)))
    found = trace(empty, empty.item_id(0))
    assert (found.dropped_by, found.needed_score) == ("rerank", None)
    pinned = _past(answered(view, query(count=4, explore=False), some_rules))
    version = next(i for i in ("art00", "cats00") if i in {pinned.item_id(r) for r in range(len(pinned.item_index_C))})
    assert trace(pinned, version).score is not None


def test_of_a_rank_it_says_what_the_catalogue_and_the_request_did_not_know(view: LiveView) -> None:
    past = _past(answered(view, query(**QUERIES["rank"])))
    assert trace(past, "nowhere").reason == "the catalogue did not know it"
    assert trace(past, "cats09").reason == "the request did not name it"
    assert trace(past, "cats03").position is not None
