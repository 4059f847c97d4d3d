"""A past request put together again from its log record and its bundle, and its stages run again.

Retrieval is not run again: sources read all items' features of that moment, which nobody keeps. What they proposed is
in the record.

C candidates, R of them with inputs, S positions, N proposals.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from features.events import EventType
from features.items import Item
from features.slates import SlateError, SlateEvidence, SlateRecord
from features.specs import Entity, features_of
from features.user_state import Interaction, UserState
from models.bundle import Bundle
from models.history import user_history
from models.item_table import UNKNOWN, Int32s, ItemTable
from models.ranker_inputs import CANDIDATE_FEATURES, RankerInputs
from models.refusal import RefusalError
from models.sources import Candidates
from models.sources.merge import merge
from serving.arms import Arm
from serving.pipeline import uniform
from serving.rerank import (
    Boost,
    Contenders,
    Move,
    Pin,
    RankedRows,
    RerankConfig,
    RuleEffects,
    by_score,
    draw_rng,
    rerank,
)
from serving.rerank_inputs import contenders
from serving.retrieve import Retrieved
from serving.score import Scored, assemble
from serving.slate_record import unpacked
from serving.users import unknown_user
from serving.view import AlignedFeatures, LiveView

Arrays = Mapping[str, npt.NDArray[Any]]
Float64s = npt.NDArray[np.float64]


class PastRequestError(RefusalError):
    """Why a request cannot be put together again: what was got, what is allowed, what to do."""


@dataclass(frozen=True, kw_only=True)
class PastRequest:
    """One request as it was answered, on the bundle that answered it."""

    record: SlateRecord
    evidence: SlateEvidence
    arrays: Arrays
    view: LiveView
    """The bundle, the catalogue as far as the request read it, and the features of the items with logged inputs."""
    arm: Arm
    """As it answered (`Arm.effective`)."""
    state: UserState
    item_index_C: Int32s
    score_C: Float64s
    served: RankedRows
    retrieved: Retrieved
    contenders: Contenders | None
    """None where the rerank stage did not run."""

    @property
    def count(self) -> int:
        """How many items were asked for."""
        return int(self.evidence.query["count"])

    def item_id(self, row: int) -> str:
        """The id of the candidate in a row."""
        return self.view.item_table.item_ids[int(self.item_index_C[row])]

    def logged_inputs(self) -> RankerInputs | None:
        """The ranker's inputs as they were logged, for the rows `input_row_R`; None where it did not score."""
        if "input_row_R" not in self.arrays:
            return None
        return RankerInputs(**{each.name: self.arrays[each.name] for each in fields(RankerInputs)})

    def assembled_inputs(self) -> RankerInputs:
        """The same made again of the user's state, the history, the catalogue and the items' windowed features."""
        history = user_history(self.state.history, self.view.item_table)
        item_index_R = self.item_index_C[self.arrays["input_row_R"]]
        return assemble(self.view, self.state, history, item_index_R, str(self.evidence.query["device"]))

    def inputs_at(self, row: int) -> int | None:
        """Where a candidate's inputs and probabilities stand among the logged ones; None where they were not logged."""
        at = np.flatnonzero(self.arrays.get("input_row_R", np.empty(0, np.int32)) == row)
        return int(at[0]) if at.size else None

    def moves(self) -> tuple[Move, ...]:
        """What moved the slate's items, by running the rerank stage again; empty where it comes out otherwise."""
        again = self.reranked(explain=True)
        return again.moves if np.array_equal(again.row_S[: len(self.served.row_S)], self.served.row_S) else ()

    def reranked(self, score_C: Float64s | None = None, *, explain: bool = False) -> RankedRows:
        """The slate of the logged scores, or of others, by the settings, the rules and the draws of the request."""
        scores = self.score_C if score_C is None else score_C
        settings = self.evidence.settings
        if self.contenders is None:
            rows = by_score(scores, self.count)
            return rows if settings["drawn_from"] is None else uniform(rows, int(settings["drawn_from"]))
        return rerank(
            replace(self.contenders, score_C=scores),
            self.count,
            self.arm.rerank or RerankConfig(),
            draw_rng(self.record.request_id) if self.evidence.query["explore"] else None,
            explain=explain,
        )


def past_request(record: SlateRecord, bundle: Bundle) -> PastRequest:
    """Puts the request together. Raises `PastRequestError` for a record of version 1, one that is damaged, or one of
    another bundle.
    """
    if record.evidence is None:
        raise PastRequestError(
            f"request {record.request_id} was logged as version {record.schema_version}; allowed: version 2, which "
            "holds what a replay needs; ask for a newer request."
        )
    if record.bundle_id != bundle.bundle_id:
        raise PastRequestError(
            f"request {record.request_id} was answered by {record.bundle_id}: got {bundle.bundle_id}; give its bundle."
        )
    try:
        return _put_together(record, record.evidence, bundle)
    except (SlateError, KeyError, ValueError, TypeError, IndexError) as error:
        raise PastRequestError(
            f"the record of request {record.request_id} is damaged ({type(error).__name__}: {error}); "
            "ask for another request."
        ) from error


def _put_together(record: SlateRecord, evidence: SlateEvidence, bundle: Bundle) -> PastRequest:
    arrays = unpacked(evidence)
    table = bundle.item_table.with_items(Item(**row) for row in evidence.catalogue)
    item_index_C = table.indices([candidate["item_id"] for candidate in record.candidates])
    if (item_index_C == UNKNOWN).any():
        raise ValueError("a candidate is neither in the bundle's catalogue nor in the record's")
    score_C = arrays["score_C"].astype(np.float64)
    retrieved = _retrieved(evidence, arrays, np.concatenate([item_index_C, table.indices(evidence.unscored)]))
    state = _state(record, evidence, arrays)
    view = _view(record, bundle, table, arrays, item_index_C)
    return PastRequest(
        record=record,
        evidence=evidence,
        arrays=arrays,
        view=view,
        arm=Arm.from_json(evidence.settings["arm"]),
        state=state,
        item_index_C=item_index_C,
        score_C=score_C,
        served=RankedRows(
            row_S=arrays["row_S"].astype(np.int64),
            propensity_S=np.array([item.propensity for item in record.items]),
            explored_S=arrays["explored_S"],
        ),
        retrieved=retrieved,
        contenders=_contenders(view, evidence, arrays, item_index_C, score_C, retrieved, state.instant_ms),
    )


def _retrieved(evidence: SlateEvidence, arrays: Arrays, known: Int32s) -> Retrieved:
    proposed_N = known[arrays["source_item_N"]]
    ends = np.cumsum(list(evidence.sources.values()), dtype=np.int64)
    if len(proposed_N) != (ends[-1] if len(ends) else 0):
        raise ValueError(f"got {len(proposed_N)} proposals of sources with {dict(evidence.sources)}")
    parts = np.split(proposed_N, ends[:-1]) if len(ends) else []
    by_source = {
        name: Candidates(item_index=part, score=np.zeros(len(part), np.float32))
        for name, part in zip(evidence.sources, parts, strict=True)
    }
    return Retrieved(merged=merge(by_source), by_source=by_source)


def _state(record: SlateRecord, evidence: SlateEvidence, arrays: Arrays) -> UserState:
    """The user's state as far as features are made of it."""
    user = evidence.user
    events = zip(user["history_item_ids"], user["history_types"], arrays["history_time_ms_H"].tolist(), strict=True)
    return replace(
        unknown_user(record.user_id, int(user["instant_ms"])),
        features_F=arrays["user_F"],
        categories=tuple(user["categories"]),
        category_features_KF=arrays["user_category_KF"],
        history=tuple(
            Interaction(
                event_id="",
                event_type=EventType(event_type),
                event_time_ms=time_ms,
                user_id=record.user_id,
                item_id=item_id,
                category="",
                creator_id="",
            )
            for item_id, event_type, time_ms in events
        ),
        newest_event_ms=record.newest_event_ms,
    )


def _view(record: SlateRecord, bundle: Bundle, table: ItemTable, arrays: Arrays, item_index_C: Int32s) -> LiveView:
    """Features stand where the request read them and are 0 elsewhere."""
    names = {entity: [feature.name for feature in features_of(entity)] for entity in Entity}
    sizes = {Entity.ITEM: len(table), Entity.CREATOR: len(table.creators), Entity.CATEGORY: len(table.categories)}
    values = {entity: np.zeros((size, len(names[entity]))) for entity, size in sizes.items()}
    if "candidate_CF" in arrays:
        item_index_R = item_index_C[arrays["input_row_R"]]
        code_R = {
            Entity.ITEM: item_index_R,
            Entity.CREATOR: table.creator_code[item_index_R],
            Entity.CATEGORY: table.category_code[item_index_R],
        }
        for entity, row_R in code_R.items():
            values[entity][row_R] = arrays["candidate_CF"][:, [CANDIDATE_FEATURES.index(n) for n in names[entity]]]
    for name, feature in (("clicks_C", "item_clicks_7d"), ("impressions_C", "item_impressions_7d")):
        if name in arrays:  # as they were before they were rounded to the ranker's float32
            values[Entity.ITEM][item_index_C, names[Entity.ITEM].index(feature)] = arrays[name]
    aligned = {
        entity: AlignedFeatures(values_XF=values_XF, row_N=np.arange(len(values_XF)))
        for entity, values_XF in values.items()
    }
    return LiveView(
        bundle=bundle,
        item_table=table,
        snapshot_instant_ms=record.snapshot_instant_ms,
        items=aligned[Entity.ITEM],
        creators=aligned[Entity.CREATOR],
        categories=aligned[Entity.CATEGORY],
        trending_score_I=None,
        impressions_I=None,
    )


def _contenders(
    view: LiveView,
    evidence: SlateEvidence,
    arrays: Arrays,
    item_index_C: Int32s,
    score_C: Float64s,
    retrieved: Retrieved,
    instant_ms: int,
) -> Contenders | None:
    settings = evidence.settings
    if "click_C" not in arrays:
        return None
    rules = RuleEffects(
        boosts=tuple(
            Boost(boosted_C=boosted_C, **boost)
            for boost, boosted_C in zip(settings["boosts"], arrays.get("boosted_BC", ()), strict=True)
        ),
        pins=tuple(Pin(**pin) for pin in settings["pins"]),
        version_C=arrays.get("version_C"),
    )
    scored = Scored(score_C=score_C, probabilities={"click": arrays["click_C"]}, inputs=None)
    language = evidence.query["language"]
    return contenders(view, item_index_C, scored, retrieved, rules, instant_ms, language)
