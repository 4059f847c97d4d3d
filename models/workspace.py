"""Where training leaves its intermediate artefacts: whole directories, each written once, the latest named in a file.

`WORKSPACE/<kind>/<run id>/...` and `WORKSPACE/<kind>/latest.json`; a run that fails leaves nothing behind.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.refusal import RefusalError

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
    """Replaces the file in one step, on disk before it is seen."""
    draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    _fsync(draft)
    draft.replace(path)
    _fsync(path.parent)


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes arrays as one `.npz` file, so that equal arrays give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # mypy takes the names for allow_pickle


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
