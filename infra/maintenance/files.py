"""Checkpoints that nothing would be restored from, and logs past their time."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from features.names import MS_PER_DAY, MS_PER_HOUR
from features.retention import Retention
from infra.settings import Settings
from streaming.flink_checkpoints import newest_checkpoint


def old_checkpoints(root: Path, retention: Retention, now_ms: int) -> Iterator[Path]:
    """Directories of checkpoints and savepoints, of every version, that are past their time.

    The newest complete checkpoint of a version is what its job would start from; its run's other files may be part of
    it. So these stay: that run, but checkpoints in it that were never finished; and any run that has written lately.
    A version's own directory stays, too: `millrace reprocess --retire` finds by it what else is the version's.
    """
    before_ms = now_ms - retention.checkpoint_hours * MS_PER_HOUR
    for version in sorted(path for path in root.glob("*") if path.is_dir()):
        newest = newest_checkpoint(version)
        used = newest.path.parent if newest is not None else None
        runs = {path.parent for path in (*version.glob("*/shared"), *version.glob("*/chk-*"))}
        unused = [*(runs - {used}), *version.glob("savepoint-*")]
        if newest is not None and used is not None:
            unfinished = (path for path in used.glob("chk-*") if not (path / "_metadata").is_file())
            unused += [path for path in unfinished if _written_ms(path) < newest.completed_ms]
        yield from (path for path in sorted(unused) if _written_ms(path) < before_ms)


def old_logs(settings: Settings, retention: Retention, now_ms: int) -> Iterator[Path]:
    """Files of task logs and of the service's request log that were last written before their time."""
    kept_days = {
        settings.airflow_home / "logs": retention.task_log_days,
        settings.request_log_dir: retention.request_log_days,
    }
    for root, days in kept_days.items():
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            if file.stat().st_mtime * 1000 < now_ms - days * MS_PER_DAY:
                yield file


def _written_ms(path: Path) -> float:
    """When the newest file below the path was written."""
    times = [file.stat().st_mtime for file in (path, *path.rglob("*"))]
    return max(times) * 1000


def size(path: Path) -> int:
    """Bytes of the file, or of all files below the directory."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def remove(path: Path) -> None:
    """A file, or a directory with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
