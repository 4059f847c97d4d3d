"""What became of one item in a past request: where it stood, or the stage that dropped it and what it would have taken.

C candidates, M retrieved items, S positions of the slate.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from serving.filters import REASONS
from serving.past_request import PastRequest
from serving.retrieve import REQUEST
from serving.stages import FILTER, RERANK, RETRIEVE, SCORE
from serving.sunk_scores import SUNK_SCORE

_DOUBLINGS, _HALVINGS = 6, 24
"""Of the search for a needed score: up to 32 times the range of scores above the best, and to a millionth of it."""
_EXCLUDED = "excluded_"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One item in one request; the fields are those of `ItemTrace` in ranking.proto."""

    item_id: str
    dropped_by: str
    """The stage; empty when shown."""
    reason: str
    position: int | None = None
    """Where it was shown."""
    score: float | None = None
    needed_score: float | None = None
    source_ranks: dict[str, int]


def trace(past: PastRequest, item_id: str, may_search: Callable[[], bool] = lambda: True) -> Trace:
    """Follows the item through the stages. A needed score is searched for while `may_search` allows."""
    row_of = {candidate["item_id"]: row for row, candidate in enumerate(past.record.candidates)}
    ranks = past.retrieved.source_ranks(past.view.item_table.index.get(item_id, -1))
    if (row := row_of.get(item_id)) is not None:
        return _scored(past, item_id, row, ranks, may_search)
    if reasons := excluded_for(past, item_id):
        said = "; ".join(REASONS.get(reason, reason) for reason in reasons)
        return Trace(item_id=item_id, dropped_by=FILTER, reason=said, source_ranks=ranks)
    if ranks:
        return Trace(item_id=item_id, dropped_by=SCORE, reason=_beyond_limit(past, item_id), source_ranks=ranks)
    return Trace(item_id=item_id, dropped_by=RETRIEVE, reason=_not_proposed(past, item_id), source_ranks={})


def excluded_for(past: PastRequest, item_id: str) -> tuple[str, ...]:
    """Why the item was filtered out, as keys of `serving.filters.REASONS`; empty for one that was eligible, or unknown.

    Of an item that came after the bundle only the ids that a reason names are logged: one that no source proposed and
    that the catalogue may not have known yet counts as eligible.
    """
    at = past.view.bundle.item_table.index.get(item_id)
    reasons = [name.removeprefix(_EXCLUDED) for name in past.arrays if name.startswith(_EXCLUDED)]
    if at is not None:
        return tuple(reason for reason in reasons if past.arrays[_EXCLUDED + reason][at >> 3] >> (7 - (at & 7)) & 1)
    later = item_id in past.view.item_table.index
    named = {reason: item_id in since["ids"] for reason, since in past.evidence.excluded_since.items()}
    return tuple(
        reason
        for reason, since in past.evidence.excluded_since.items()
        if (later and not named[reason] if since["but"] else named[reason])
    )


def needed_score(past: PastRequest, row: int) -> float | None:
    """The least score with which the candidate would have been in the slate, all else equal; None where none would do.

    The rerank stage is run again with other scores, with the draws of the request. A higher score is taken never to
    harm, which draws and deduplication may break where others stand in between: then it is one such score.
    """

    def shown_with(score: float) -> bool:
        score_C = past.score_C.copy()
        score_C[row] = score
        return row in past.reranked(score_C).row_S

    finite = past.score_C[np.isfinite(past.score_C)]
    if not past.count or not finite.size:
        return None
    best, spread = float(finite.max()), max(float(finite.max() - finite.min()), 1e-6)
    enough = (best + spread * 2**k for k in range(_DOUBLINGS))
    high: float | None = next((score for score in enough if shown_with(score)), None)
    if high is None:
        return None
    low = float(past.score_C[row])
    low = low if np.isfinite(low) else float(finite.min()) - spread
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if shown_with(middle) else (middle, high)
    return high


def _scored(past: PastRequest, item_id: str, row: int, ranks: dict[str, int], may_search: Callable[[], bool]) -> Trace:
    score = past.record.candidates[row]["score"]
    at = np.flatnonzero(past.served.row_S == row)
    if at.size:
        said = f"shown at position {int(at[0])}"
        return Trace(item_id=item_id, dropped_by="", reason=said, position=int(at[0]), score=score, source_ranks=ranks)
    needed = needed_score(past, row) if may_search() else None
    stood = int((past.score_C > past.score_C[row]).sum())
    said = f"others took the {len(past.served.row_S)} positions: by score it stood at {stood}, from 0"
    if score == SUNK_SCORE:
        said += "; its score was not finite and sank"
    if needed is not None:
        said += f"; a score of {needed:.6g} would have shown it, it had {score:.6g}"
    return Trace(item_id=item_id, dropped_by=RERANK, reason=said, score=score, needed_score=needed, source_ranks=ranks)


def _beyond_limit(past: PastRequest, item_id: str) -> str:
    merged = past.retrieved.merged
    index = past.view.item_table.index[item_id]
    at = int(np.flatnonzero(merged.item_index_C == index)[0])
    last = np.flatnonzero(np.isin(merged.item_index_C, past.item_index_C))
    said = (
        f"by retrieval it stood at {at} of {len(merged.item_index_C)}, from 0, and {len(past.item_index_C)} were scored"
    )
    if last.size:
        had, needed = float(merged.score_C[at]), float(merged.score_C[last[-1]])
        said += f"; a retrieval score above {needed:.5g} would have had it scored, it had {had:.5g}"
    return said


def _not_proposed(past: PastRequest, item_id: str) -> str:
    if past.evidence.method == "Rank":
        if item_id in past.evidence.unknown_item_ids:
            return "the catalogue did not know it"
        return "the request did not name it"
    known = past.view.bundle.item_table.index
    whence = "" if item_id in known else "the bundle's catalogue does not hold it, and "
    asked = past.arm.quotas if past.evidence.method == "Recommend" else {}
    proposed = {name: count for name, count in past.evidence.sources.items() if name != REQUEST}
    each = ", ".join(f"{name} {count}" for name, count in (dict.fromkeys(asked, 0) | proposed).items())
    return f"{whence}it was not among the best of any source ({each or 'none answered'})"
