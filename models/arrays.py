"""Arrays without Python objects as `.npz` files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes arrays as one file, so that equal arrays give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # mypy takes the names for allow_pickle


def load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Reads what `save_arrays` wrote. Raises `OSError` or `ValueError` for anything else."""
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)
