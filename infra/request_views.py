"""What the command shows of past requests."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table

from serving.past_request import PastRequest
from serving.replay import Check
from serving.trace import Trace, trace


def replay_view(past: PastRequest, checks: Sequence[Check]) -> Group:
    """How each part came out."""
    table = Table("part", "is", "what", box=None)
    for check in checks:
        table.add_row(check.part, check.verdict, check.said)
    return Group(_head(past), table)


def why_view(past: PastRequest, item_id: str) -> Group:
    """Why the item was shown, or what dropped it: sources, scores by head, moves and features."""
    found = trace(past, item_id)
    shown: list[RenderableType] = [_head(past), _verdict(found)]
    if found.source_ranks:
        ranks = ", ".join(f"{name} (rank {rank})" for name, rank in found.source_ranks.items())
        shown.append(f"proposed by {ranks}")
    row = next((row for row, got in enumerate(past.record.candidates) if got["item_id"] == item_id), None)
    if row is not None:
        shown += [view for view in (_heads(past, row), _moves(past, row), _features(past, row)) if view is not None]
    return Group(*shown)


def _head(past: PastRequest) -> str:
    record = past.record
    at = datetime.fromtimestamp(record.served_at_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")
    return (
        f"request {record.request_id}: {past.evidence.method} for {record.user_id or 'nobody'} at {at}, "
        f"bundle {record.bundle_id}, arm {record.arm}"
    )


def _verdict(found: Trace) -> str:
    if found.position is not None:
        return f"{found.item_id} was shown at position {found.position + 1} with the score {found.score:.6g}"
    return f"{found.item_id} was not shown: dropped by {found.dropped_by}: {found.reason}"


def _heads(past: PastRequest, row: int) -> Table | None:
    """Each head's probability times its weight, where the row's prediction was logged."""
    if (at := past.inputs_at(row)) is None:
        return None
    table = Table("head", "probability", "weight", "adds", box=None)
    for head, p in zip(past.evidence.settings["heads"], past.arrays["probability_RT"][at].tolist(), strict=True):
        weight = past.arm.value_weights.get(head, 0.0)
        table.add_row(head, f"{p:.6f}", f"{weight:g}", f"{p * weight:+.6f}")
    score = past.record.candidates[row]["score"]
    table.add_row("score", "", "", f"{score:+.6f}")
    return table


def _moves(past: PastRequest, row: int) -> Table | None:
    moves = [move for move in past.moves() if move.row == row]
    if not moves:
        return None
    table = Table("step", "from", "to", "why", box=None)
    for move in moves:
        table.add_row(move.step, str(move.from_position + 1), str(move.to_position + 1), move.reason)
    return table


def _features(past: PastRequest, row: int) -> Table | None:
    if (at := past.inputs_at(row)) is None:
        return None
    table = Table("feature", "value", box=None)
    values = past.arrays["candidate_CF"][at].tolist()
    for name, value in (
        *past.record.user_features.items(),
        *zip(past.evidence.candidate_features, values, strict=True),
    ):
        table.add_row(name, f"{value:.6g}")
    return table
