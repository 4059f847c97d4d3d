"""Where training leaves its intermediate artefacts: whole directories, each written once, the latest named in a file.

`WORKSPACE/<kind>/<run id>/...` and `WORKSPACE/<kind>/latest.json`; a run that fails leaves nothing behind.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.refusal import RefusalError

CANDIDATES = "candidates"
"""Runs of `models.train_candidates`: the item table, the sources' arrays and the report."""
RANKER = "ranker"
"""Runs of `models.train_ranker`: the graph, its layout and calibration, the test examples and the report."""
REPORT = "report.json"
TEST_EXAMPLES = "test_examples.parquet"
"""The newest examples of users on whom no ranker is trained, as rows of the lake, so that promotion can put any bundle
to the same questions."""
LATEST = "latest.json"
RUNS_KEPT = 5


class WorkspaceError(RefusalError):
    """A workspace without the run that is asked for."""


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A new directory to fill, which becomes `path` as a whole, on disk, when the block ends well.

    Raises `WorkspaceError` when `path` exists already.
    """
    if path.exists():
        raise WorkspaceError(f"{path} exists already; give another run id or remove it.")
    draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for file in sorted(draft.rglob("*")):
            _fsync(file)
        _fsync(draft)
        draft.rename(path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def atomic_json(path: Path, value: Any) -> None:
    """Replaces the file in one step, on disk before it is seen. Non-finite numbers become null."""
    draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text(json.dumps(finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n")
    _fsync(draft)
    draft.replace(path)
    _fsync(path.parent)


def finite(value: Any) -> Any:
    """The value with non-finite numbers as null, as JSON needs it."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def new_run(workspace: Path, kind: str, run_id: str) -> Iterator[Path]:
    """A run's directory to fill; afterwards it is the latest of its kind, and the oldest runs are removed."""
    with atomic_directory(workspace / kind / run_id) as draft:
        yield draft
    atomic_json(workspace / kind / LATEST, {"run_id": run_id})
    runs = sorted(
        (path for path in (workspace / kind).iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime
    )
    for old in runs[:-RUNS_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def latest_run(workspace: Path, kind: str) -> Path:
    """The directory of the latest whole run. Raises `WorkspaceError` when there is none."""
    file = workspace / kind / LATEST
    try:
        path = workspace / kind / str(json.loads(file.read_text())["run_id"])
    except FileNotFoundError as error:
        raise WorkspaceError(f"no {kind} run in {workspace}; run python -m models.train_{kind} first.") from error
    except (ValueError, KeyError) as error:
        raise WorkspaceError(f"{file} is unreadable ({error}); run python -m models.train_{kind} again.") from error
    if not path.is_dir():
        raise WorkspaceError(f"{file} names {path.name}, which is gone; run python -m models.train_{kind} again.")
    return path


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
