"""An answer as its log record: what was returned, and the evidence that runs the request again.

Arrays of the evidence; those of the ranker bear the names of `RankerInputs`:

| array | what |
|---|---|
| `row_S`, `explored_S` | the slate as rows of the candidates, and which of them were drawn |
| `score_C` | the candidates' scores, -inf where they sank |
| `input_row_R` | whose ranker inputs are there: the returned rows, or all |
| `user_UF` … `position_C` | the ranker's inputs, the candidates' side for those rows |
| `probability_RT` | what the heads predicted of them |
| `click_C`, `clicks_C`, `impressions_C` | what the rerank stage read beside scores and catalogue |
| `boosted_BC`, `version_C` | whom each boost of the rules raised, and who are versions of one item |
| `source_item_N` | what each source proposed, best first: positions in the candidates' ids and `unscored` after them |
| `user_F`, `user_category_KF`, `history_time_ms_H` | the user's state before it became inputs |
| `excluded_REASON` | bits of the bundle's items that were filtered out |

C candidates, R of them with inputs, S positions, T heads, B boosts, N proposals, H events, K categories, I items.
"""

import base64
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from features import specs
from features.items import Item
from features.packed import PackedArray, pack
from features.slates import SlateCandidate, SlateEvidence, SlateRecord
from models.history import HISTORY_EVENTS
from models.item_table import UNKNOWN, Int32s, ItemTable
from models.ranker_inputs import CANDIDATE_FEATURES
from serving.answer import Answer, finite
from serving.query import Query

MAX_LOGGED = 1_000
"""Of a Rank with more items the best so many are logged, so that a record stays within what Kafka takes."""
MAX_NAMED = 1_000
"""Of the items that came after the bundle and that a reason excludes, as many are named at least."""
SPEC_VERSION = specs.version()
CANDIDATE_SUFFIXES = ("_C", "_CF", "_CS")
"""Inputs of the ranker with a row a candidate."""

Arrays = dict[str, npt.NDArray[Any]]


def to_record(answer: Answer, *, full_features: bool = False) -> SlateRecord:
    """The answer as it is logged, with the ranker's inputs of the returned items or of every candidate."""
    row_C = _logged_rows(answer)
    item_ids = answer.view.item_table.item_ids
    indices = answer.item_index_C[row_C].tolist()
    sources, scores = _source_names(answer, indices), finite(answer.scored.score_C[row_C])
    candidates = tuple(
        SlateCandidate(item_id=item_ids[index], score=score, sources=names)
        for index, score, names in zip(indices, scores, sources, strict=True)
    )
    return SlateRecord(
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
        items=answer.items[:MAX_LOGGED],
        candidates=candidates,
        evidence=_evidence(answer, row_C, full_features),
        spec_version=SPEC_VERSION,
    )


def to_json(record: SlateRecord) -> bytes:
    """The record as it stands on the wire, in a tenth of the time that `SlateRecord.to_json` takes. Raises
    `ValueError` for a score, propensity, probability or feature that is not finite.
    """
    if not all(map(math.isfinite, _numbers(record))):
        raise ValueError(f"slate {record.request_id}: got a number that is not finite; JSON has none")
    return orjson.dumps(record.to_fields())


def _numbers(record: SlateRecord) -> Iterator[float]:
    yield from record.user_features.values()
    yield from [candidate["score"] for candidate in record.candidates]
    for item in record.items:
        yield from (item.score, item.propensity, *item.probabilities.values())


def _logged_rows(answer: Answer) -> npt.NDArray[np.int64]:
    """Rows of the candidates, ascending: all, or the best of a long Rank, whose other rows nothing depends on."""
    if answer.contenders is not None or len(answer.item_index_C) <= MAX_LOGGED:
        return np.arange(len(answer.item_index_C))
    return np.sort(answer.rows.row_S[:MAX_LOGGED])


def _source_names(answer: Answer, indices: list[int]) -> list[tuple[str, ...]]:
    """Who proposed each item, in the order of the sources. Few sets of sources occur, so each is named once."""
    merged = answer.retrieved.merged
    bits_M = merged.from_source_CP @ (1 << np.arange(len(merged.source_names)))
    names = {
        bits: tuple(name for p, name in enumerate(merged.source_names) if bits >> p & 1)
        for bits in np.unique(bits_M).tolist()
    }
    bits_of = dict(zip(merged.item_index_C.tolist(), bits_M.tolist(), strict=True))
    return [names[bits_of[index]] for index in indices]


def _evidence(answer: Answer, row_C: npt.NDArray[np.int64], full_features: bool) -> SlateEvidence:
    query, table = answer.query, answer.view.item_table
    candidate_C = answer.item_index_C[row_C]
    merged_M = answer.retrieved.merged.item_index_C
    cut = len(row_C) < len(answer.item_index_C)
    unscored = merged_M[:0] if cut else merged_M[~np.isin(merged_M, candidate_C)]
    known = np.concatenate([candidate_C, unscored])
    proposed = _proposed(answer, known)
    history_ids = [interaction.item_id for interaction in answer.state.history[:HISTORY_EVENTS]]
    history_H = table.indices(history_ids)
    excluded, excluded_since = _exclusions(answer)
    arrays = {
        **_slate_arrays(answer, row_C),
        **_input_arrays(answer, row_C, full_features),
        **_rerank_arrays(answer),
        **_state_arrays(answer),
        "source_item_N": np.concatenate([*proposed.values(), np.empty(0, np.int32)]).astype(np.int32),
        **excluded,
    }
    read = np.concatenate([known, history_H[history_H != UNKNOWN]])
    return SlateEvidence(
        method=method_of(query),
        query=_query(query),
        settings=_settings(answer),
        user={
            "instant_ms": answer.state.instant_ms,
            "categories": answer.state.categories,
            "history_item_ids": history_ids,
            "history_types": [str(interaction.event_type) for interaction in answer.state.history[:HISTORY_EVENTS]],
        },
        catalogue=tuple(asdict(item) for item in _changed_since(table, answer.view.bundle.item_table, read)),
        unscored=tuple(table.item_ids[index] for index in unscored.tolist()),
        sources={name: len(found) for name, found in proposed.items()},
        excluded_since=excluded_since,
        candidates_retrieved=len(merged_M),
        stage_ms=dict(answer.progress.stage_ms),
        unknown_item_ids=answer.unknown_item_ids,
        next_page_token=answer.next_page_token,
        candidate_features=() if answer.scored.inputs is None else CANDIDATE_FEATURES,
        full_features=len(arrays.get("input_row_R", ())) == len(answer.item_index_C) > 0,
        arrays=pack({name: packed(array) for name, array in arrays.items()}),
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
        "score_C": _narrow(answer.scored.score_C[row_C]),
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
        "click_C": _narrow(contenders.click_probability_C),
        "clicks_C": _narrow(contenders.clicks_C),
        "impressions_C": _narrow(contenders.impressions_C),
    }
    if rules.boosts:
        found["boosted_BC"] = np.stack([boost.boosted_C for boost in rules.boosts])
    if rules.version_C is not None:
        found["version_C"] = rules.version_C
    return found


def _state_arrays(answer: Answer) -> Arrays:
    state = answer.state
    times = [interaction.event_time_ms for interaction in state.history[:HISTORY_EVENTS]]
    return {
        "user_F": state.features_F,
        "user_category_KF": state.category_features_KF,
        "history_time_ms_H": np.array(times, np.int64),
    }


def _proposed(answer: Answer, known: Int32s) -> dict[str, Int32s]:
    """What each source proposed as positions in the known items; what is not among them is left out."""
    order = np.argsort(known, kind="stable")
    found = {}
    for name, candidates in answer.retrieved.by_source.items():
        at = np.searchsorted(known, candidates.item_index, sorter=order)
        at = order[np.minimum(at, len(known) - 1)] if len(known) else at[:0]
        found[name] = at[known[at] == candidates.item_index[: len(at)]].astype(np.int32)
    return found


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


def _changed_since(table: ItemTable, bundled: ItemTable, index_N: Int32s) -> Iterable[Item]:
    """The rows of some items that the bundle's table does not hold, or holds otherwise."""
    if table is bundled:
        return []
    index_N = np.unique(index_N)
    old_N = index_N[index_N < len(bundled)]
    changed_N = np.zeros(len(old_N), np.bool_)
    for name in ("category_code", "creator_code", "language_code", "duration_ms", "published_at_ms"):
        changed_N |= getattr(table, name)[old_N] != getattr(bundled, name)[old_N]
    wanted = np.concatenate([old_N[changed_N], index_N[index_N >= len(bundled)]])
    return [_item(table, index) for index in wanted.tolist()]


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


def packed(array: npt.NDArray[Any]) -> PackedArray:
    """The array in little-endian byte order."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return PackedArray(dtype=little.dtype.str, shape=array.shape, data=little.tobytes())


def unpacked(evidence: SlateEvidence) -> Mapping[str, npt.NDArray[Any]]:
    """The evidence's arrays. Raises `SlateError` when they cannot be read."""
    found = evidence.unpacked
    return {name: np.frombuffer(each.data, each.dtype).reshape(each.shape) for name, each in found.items()}


def _narrow(values: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """As float32 where that loses nothing, which holds for scores and counts."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(np.float64), values, equal_nan=True) else values
