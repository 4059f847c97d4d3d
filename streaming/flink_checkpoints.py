"""Which checkpoint the stream job starts from, and which it refuses.

Layout: `<root>/<topics version>/<job id>/chk-<n>/_metadata`, written by Flink, and `<root>/<topics version>/plan`,
the hash of the SQL whose state lies there. Flink writes `_metadata` last and renames it into place, so a checkpoint
that has one is complete.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from features.names import MS_PER_HOUR

TOLERATED_OUTAGE_MS = 72 * MS_PER_HOUR
"""State expires by the wall clock, so a checkpoint older than this has begun to forget."""
PLAN_FILE = "plan"


class CheckpointError(RuntimeError):
    """State that must not be continued; the sentence says why, and to run reprocess."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint and when it was finished."""

    path: Path
    completed_ms: int


def newest_checkpoint(directory: Path) -> Checkpoint | None:
    """The most recently completed checkpoint of any run in `<root>/<version>`; None where there is none."""
    found = [
        Checkpoint(path=metadata.parent, completed_ms=metadata.stat().st_mtime_ns // 1_000_000)
        for metadata in directory.glob("*/chk-*/_metadata")
        if metadata.stat().st_size > 0
    ]
    return max(found, key=lambda checkpoint: (checkpoint.completed_ms, checkpoint.path.name), default=None)


def checkpoint_to_restore(directory: Path, plan_hash: str, now_ms: int) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a first start.

    Raises `CheckpointError` where the newest is older than the tolerated outage or another plan wrote it.
    """
    newest = newest_checkpoint(directory)
    if newest is None:
        return None
    plan = directory / PLAN_FILE
    wrote = plan.read_text().strip() if plan.is_file() else "none"
    if wrote != plan_hash:
        raise CheckpointError(
            f"the checkpoint {newest.path} belongs to another version of the job's SQL (got plan {wrote[:12]}, "
            f"allowed {plan_hash[:12]}): run reprocess to rebuild the features, or give another --checkpoint-dir"
        )
    age_ms = now_ms - newest.completed_ms
    if age_ms > TOLERATED_OUTAGE_MS:
        raise CheckpointError(
            f"the checkpoint {newest.path} is {age_ms / MS_PER_HOUR:.1f} hours old (allowed "
            f"{TOLERATED_OUTAGE_MS // MS_PER_HOUR}) and its state has begun to expire: run reprocess to rebuild the "
            "features, or give another --checkpoint-dir"
        )
    return newest


def record_plan(directory: Path, plan_hash: str) -> None:
    """Notes whose state the directory holds."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PLAN_FILE).write_text(f"{plan_hash}\n")


def forget_other_runs(directory: Path, restored: Checkpoint | None) -> None:
    """Deletes the checkpoints of all runs but the one that is restored, so that the disk holds two runs at most.

    A run's first checkpoint is whole, so no checkpoint reads another run's files.
    """
    kept = restored.path.parent if restored else None
    for run in {path.parent for path in directory.glob("*/shared")} - {kept}:
        shutil.rmtree(run, ignore_errors=True)
