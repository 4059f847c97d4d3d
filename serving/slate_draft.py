"""An answer as the draft of its log record: what the record is made of, without the catalogue and the bundle.

C candidates, R of them with the ranker's inputs, S positions of the slate, N items.
"""

import base64
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from features import specs
from features.events import EVENT_TYPES
from features.items import Item
from features.keyed_sets import columns_of
from features.slates import SlateEvidence, SlateRecord
from models.history import HISTORY_EVENTS
from models.item_table import UNKNOWN, Bools, Int32s, ItemTable
from models.ranker_inputs import CANDIDATE_FEATURES
from models.sources.kept import Kept
from serving.answer import Answer
from serving.query import Query
from serving.slate_record import Arrays, SlateDraft

MAX_LOGGED = 1_000
"""Of a Rank with more items the best so many are logged, so that a record stays within what Kafka takes."""
MAX_NAMED = 1_000
"""Of the items that came after the bundle and that a reason excludes, as many are named at least."""
SPEC_VERSION = specs.version()
CANDIDATE_SUFFIXES = ("_C", "_CF", "_CS", "_CA")
"""Inputs of the ranker with a row a candidate."""


def draft_of(answer: Answer, *, full_features: bool = False) -> SlateDraft:
    """The answer's draft, with the ranker's inputs of the returned items or of every candidate."""
    row_C = _logged_rows(answer)
    merged = answer.retrieved.merged
    item_index_C = answer.item_index_C[row_C]
    cut = len(row_C) < len(answer.item_index_C)
    excluded, excluded_since = _exclusions(answer)
    arrays = {
        **_slate_arrays(answer, row_C),
        **_input_arrays(answer, row_C, full_features),
        **_rerank_arrays(answer),
        **_state_arrays(answer),
        **excluded,
    }
    full = len(arrays.get("input_row_R", ())) == len(answer.item_index_C) > 0
    read_N = item_index_C if cut else merged.item_index_C
    record = SlateRecord(
        request_id=answer.query.request_id,
        user_id=answer.query.user_id,
        served_at_ms=answer.served_at_ms,
        surface=answer.query.surface,
        bundle_id=answer.view.bundle.bundle_id,
        arm=answer.arm.name,
        degraded=tuple(f"{note.stage}: {note.reason}" for note in answer.progress.degraded),
        snapshot_instant_ms=answer.view.snapshot_instant_ms,
        newest_event_ms=answer.newest_event_ms,
        user_features=answer.user_features(),
        items=(),
        candidates=(),
        evidence=_evidence(answer, read_N, full_features=full, excluded_since=excluded_since),
        spec_version=SPEC_VERSION,
    )
    return SlateDraft(
        record=record,
        items=answer.encoded_items,
        arrays=arrays,
        item_index_C=item_index_C,
        cut=cut,
        item_index_M=merged.item_index_C,
        item_ids_M=answer.view.item_table.encoded_ids_I[merged.item_index_C],
        source_names_P=merged.source_names,
        from_source_MP=merged.from_source_CP,
        by_source={name: found.item_index for name, found in answer.retrieved.by_source.items()},
    )


def _logged_rows(answer: Answer) -> npt.NDArray[np.int64]:
    """Rows of the candidates, ascending: all, or the best of a long Rank, whose other rows nothing depends on."""
    if answer.contenders is not None or len(answer.item_index_C) <= MAX_LOGGED:
        return np.arange(len(answer.item_index_C))
    return np.sort(answer.rows.row_S[:MAX_LOGGED])


def _evidence(
    answer: Answer, read_N: Int32s, *, full_features: bool, excluded_since: dict[str, dict[str, Any]]
) -> SlateEvidence:
    table, columns = answer.view.item_table, columns_of(answer.state.history)
    history_H = table.indices_of_hashes(columns.item_hash_N[:HISTORY_EVENTS])
    read_N = np.concatenate([read_N, history_H[history_H != UNKNOWN]])
    return SlateEvidence(
        method=method_of(answer.query),
        query=_query(answer.query),
        settings=_settings(answer),
        user={
            "instant_ms": answer.state.instant_ms,
            "categories": answer.state.categories,
            "history_item_ids": [interaction.item_id for interaction in answer.state.history[:HISTORY_EVENTS]],
            "history_types": [str(EVENT_TYPES[code]) for code in columns.type_code_N[:HISTORY_EVENTS].tolist()],
        },
        catalogue=tuple(asdict(item) for item in _changed_since(table, answer.view.bundle.item_table, read_N)),
        unscored=(),
        sources={},
        excluded_since=excluded_since,
        candidates_retrieved=len(answer.retrieved.merged.item_index_C),
        stage_ms=dict(answer.progress.stage_ms),
        unknown_item_ids=answer.unknown_item_ids,
        next_page_token=answer.next_page_token,
        candidate_features=() if answer.scored.inputs is None else CANDIDATE_FEATURES,
        full_features=full_features,
        arrays="",
    )


def method_of(query: Query) -> str:
    """The method that a query is of."""
    if query.similar_to is not None:
        return "Similar"
    return "Recommend" if query.item_ids is None else "Rank"


def _query(query: Query) -> dict[str, Any]:
    """The request's fields but for those that stand elsewhere in the record."""
    rules = {name: sorted(got) if isinstance(got, frozenset) else got for name, got in vars(query.rules).items()}
    return {
        "device": query.device,
        "language": query.language,
        "count": query.count,
        "explore": query.explore,
        "explain": query.explain,
        "similar_to": query.similar_to,
        "filter": {name: got for name, got in rules.items() if got},
        "scrolled": base64.b64encode(query.scroll.shown).decode(),
    }


def _settings(answer: Answer) -> dict[str, Any]:
    rules = None if answer.contenders is None else answer.contenders.rules
    return {
        "arm": answer.arm.to_json(),
        "rules_version": answer.rules_version,
        "boosts": []
        if rules is None
        else [{"rule": b.rule, "add": b.add, "multiply": b.multiply} for b in rules.boosts],
        "pins": [] if rules is None else [asdict(pin) for pin in rules.pins],
        "drawn_from": answer.excluded.eligible if answer.excluded is not None and answer.arm.uniform else None,
        "heads": list(answer.scored.probabilities),
    }


def _slate_arrays(answer: Answer, row_C: npt.NDArray[np.int64]) -> Arrays:
    row_S = answer.rows.row_S[:MAX_LOGGED]
    return {
        "row_S": np.searchsorted(row_C, row_S).astype(np.int32),
        "explored_S": answer.rows.explored_S[:MAX_LOGGED],
        "score_C": answer.scored.score_C[row_C],
    }


def _input_arrays(answer: Answer, row_C: npt.NDArray[np.int64], full_features: bool) -> Arrays:
    """The ranker's inputs, the candidates' side of the logged rows only; nothing where it did not score."""
    inputs = answer.scored.inputs
    if inputs is None:
        return {}
    row_R = row_C if full_features else np.sort(answer.rows.row_S[:MAX_LOGGED])
    rows = {"input_row_R": np.searchsorted(row_C, row_R).astype(np.int32)}
    fed = {name: of[row_R] if name.endswith(CANDIDATE_SUFFIXES) else of for name, of in inputs.feed().items()}
    return {**rows, **fed, "probability_RT": np.stack([p_C[row_R] for p_C in answer.scored.probabilities.values()], 1)}


def _rerank_arrays(answer: Answer) -> Arrays:
    contenders = answer.contenders
    if contenders is None:
        return {}
    rules = contenders.rules
    found: Arrays = {
        "click_C": contenders.click_probability_C,
        "clicks_C": contenders.clicks_C,
        "impressions_C": contenders.impressions_C,
    }
    if rules.boosts:
        found["boosted_BC"] = np.stack([boost.boosted_C for boost in rules.boosts])
    if rules.version_C is not None:
        found["version_C"] = rules.version_C
    return found


def _state_arrays(answer: Answer) -> Arrays:
    state = answer.state
    return {
        "user_F": state.features_F,
        "user_category_KF": state.category_features_KF,
        "history_time_ms_H": columns_of(state.history).time_ms_N[:HISTORY_EVENTS],
    }


def _exclusions(answer: Answer) -> tuple[Arrays, dict[str, dict[str, Any]]]:
    """Each reason's bits over the bundle's items, and the ids of later items that it named; beyond `MAX_NAMED` those
    that it did not name, if they are fewer.
    """
    if answer.excluded is None:
        return {}, {}
    bits: Arrays = {}
    since: dict[str, dict[str, Any]] = {}
    item_ids, bundled = answer.view.item_table.item_ids, len(answer.view.bundle.item_table)
    for reason, mask_I in answer.excluded.masks.items():
        bits[f"excluded_{reason}"] = np.packbits(mask_I[:bundled])
        later = mask_I[bundled:]
        marked = int(np.count_nonzero(later))
        if marked:
            but = marked > max(MAX_NAMED, len(later) // 2)
            index = np.flatnonzero(later != but) + bundled
            since[reason] = {"but": but, "ids": [item_ids[i] for i in index.tolist()]}
    return bits, since


_CHANGED: Kept[Bools] = Kept()


def _changed_since(table: ItemTable, bundled: ItemTable, index_N: Int32s) -> Iterable[Item]:
    """The rows of some items that the bundle's table does not hold, or holds otherwise."""
    if table is bundled:
        return []
    is_changed_I = _CHANGED.of((table, bundled), lambda: _changed(table, bundled))
    return [_item(table, index) for index in np.unique(index_N[is_changed_I[index_N]]).tolist()]


def _changed(table: ItemTable, bundled: ItemTable) -> Bools:
    is_changed_I = np.ones(len(table), np.bool_)
    old = is_changed_I[: len(bundled)]
    old[:] = False
    for name in ("category_code", "creator_code", "language_code", "duration_ms", "published_at_ms"):
        old |= getattr(table, name)[: len(bundled)] != getattr(bundled, name)
    return is_changed_I


def _item(table: ItemTable, index: int) -> Item:
    return Item(
        item_id=table.item_ids[index],
        category=table.categories[table.category_code[index]],
        creator_id=table.creators[table.creator_code[index]],
        language=table.languages[table.language_code[index]],
        duration_ms=int(table.duration_ms[index]),
        published_at_ms=int(table.published_at_ms[index]),
        available=bool(table.available[index]),
    )
