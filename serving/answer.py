"""A finished request: what was returned, on what grounds, and the same as protobuf.

C candidates, S positions of the slate.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.user_state import UserState
from models.item_table import Int32s
from models.ranker_inputs import CANDIDATE_FEATURES, USER_FEATURES
from serving import ranking_pb2 as pb
from serving import wire_items
from serving.arms import Arm
from serving.filters import Exclusions
from serving.query import Query
from serving.rerank import Contenders, Move, RankedRows, by_score
from serving.retrieve import Retrieved
from serving.score import Scored
from serving.stages import STAGES, Progress
from serving.sunk_scores import finite
from serving.view import LiveView


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer with everything behind it. `rows` are rows of the candidates, which `item_index_C` names."""

    query: Query
    arm: Arm
    """The arm as it answered (`Arm.effective`)."""
    view: LiveView
    state: UserState
    progress: Progress
    served_at_ms: int
    newest_event_ms: int | None
    retrieved: Retrieved
    item_index_C: Int32s
    """The candidates that passed the filters, in the order of `scored`."""
    scored: Scored
    rows: RankedRows
    excluded: Exclusions | None = None
    """What was filtered out; None for Rank, which filters nothing."""
    contenders: Contenders | None = None
    """What the rerank stage read; None where it did not run, and the order is the score's."""
    unknown_item_ids: tuple[str, ...] = ()
    next_page_token: str = ""
    rules_version: str = ""
    """Of the rules file in use when it was answered."""

    @cached_property
    def encoded_items(self) -> bytes:
        """What is returned, by position, as it is answered and logged: `items` of a slate on the wire."""
        table, row_S = self.view.item_table, self.rows.row_S
        index_S = self.item_index_C[row_S]
        predicted = self.scored.probabilities
        probability_ST = np.empty((len(row_S), len(predicted)), np.float32)
        for t, p_C in enumerate(predicted.values()):
            probability_ST[:, t] = p_C[row_S]
        return wire_items.encode(
            wire_items.ItemColumns(
                item_index_S=index_S,
                item_ids=[table.item_ids[index] for index in index_S.tolist()],
                categories=[table.categories[code] for code in table.category_code[index_S].tolist()],
                creators=[table.creators[code] for code in table.creator_code[index_S].tolist()],
                score_S=finite(self.scored.score_C[row_S]),
                propensity_S=self.rows.propensity_S,
                heads=tuple(predicted),
                probability_ST=probability_ST,
                by_source={name: found.item_index for name, found in self.retrieved.by_source.items()},
            )
        )

    def item_id(self, row: int) -> str:
        """The id of the candidate in a row."""
        return self.view.item_table.item_ids[int(self.item_index_C[row])]

    def score(self, row: int) -> float:
        """The candidate's score as answered and logged: always finite."""
        return float(finite(self.scored.score_C[row : row + 1])[0])

    def probabilities(self, row: int) -> dict[str, float]:
        """The candidate's finite predictions by head."""
        predicted = ((head, float(p_C[row])) for head, p_C in self.scored.probabilities.items())
        return {head: p for head, p in predicted if np.isfinite(p)}

    def source_ranks(self, row: int) -> dict[str, int]:
        """The sources that proposed the candidate with its rank in each, best first."""
        return self.retrieved.source_ranks(int(self.item_index_C[row]))

    def features(self, row: int) -> dict[str, float]:
        """The windowed features of the candidate as the ranker read them; empty without the ranker."""
        if self.scored.inputs is None:
            return {}
        return dict(zip(CANDIDATE_FEATURES, self.scored.inputs.candidate_CF[row].tolist(), strict=True))

    def user_features(self) -> dict[str, float]:
        """The user's windowed features as the ranker read them; empty without the ranker."""
        if self.scored.inputs is None:
            return {}
        return dict(zip(USER_FEATURES, self.scored.inputs.user_UF[0].tolist(), strict=True))


def to_proto(answer: Answer) -> pb.Slate:
    """The answer on the wire."""
    slate = pb.Slate(
        request_id=answer.query.request_id,
        bundle_id=answer.view.bundle.bundle_id,
        experiment_arm=answer.arm.name,
        served_at_ms=answer.served_at_ms,
        item_snapshot_time_ms=answer.view.snapshot_instant_ms,
        candidates_retrieved=len(answer.retrieved.merged.item_index_C),
        candidates_scored=len(answer.item_index_C),
        unknown_item_ids=answer.unknown_item_ids,
        next_page_token=answer.next_page_token,
    )
    if answer.newest_event_ms is not None:
        slate.newest_event_time_ms = answer.newest_event_ms
        slate.newest_event_age_ms = max(answer.served_at_ms - answer.newest_event_ms, 0)
    for note in answer.progress.degraded:
        slate.degraded.add(stage=note.stage, reason=note.reason)
    for stage in STAGES:
        if stage in answer.progress.stage_ms:
            slate.stage_times.add(stage=stage, ms=answer.progress.stage_ms[stage])
    slate.MergeFromString(answer.encoded_items)
    if answer.query.explain:
        for item, explanation in zip(slate.items, _explanations(answer), strict=True):
            item.explanation.CopyFrom(explanation)
    return slate


def _explanations(answer: Answer) -> Iterator[pb.Explanation]:
    """Of each position."""
    ranked = by_score(answer.scored.score_C, len(answer.scored.score_C)).row_S
    rank_of = {int(row): rank for rank, row in enumerate(ranked)}
    user = answer.user_features()
    for position, row in enumerate(answer.rows.row_S.tolist()):
        yield pb.Explanation(
            rank_by_score=rank_of[row],
            contributions=contributions(answer.probabilities(row), answer.arm.value_weights),
            features={**user, **answer.features(row)},
            explored=bool(answer.rows.explored_S[position]),
            source_ranks=answer.source_ranks(row),
            moves=[proto_move(move) for move in answer.rows.moves if move.row == row],
        )


def proto_move(move: Move) -> pb.RerankMove:
    """The move on the wire."""
    return pb.RerankMove(
        step=move.step, from_position=move.from_position, to_position=move.to_position, reason=move.reason
    )


def contributions(probabilities: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """What each head adds to the score."""
    return {head: p * weights.get(head, 0.0) for head, p in probabilities.items()}
