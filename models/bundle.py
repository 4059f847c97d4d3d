"""The bundle: everything that was trained together, verified when it is read. `models.bundle_writer` makes it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from features import specs
from models.item_table import ItemTable
from models.ranker.calibration import Calibration
from models.ranker.scorer import Ranker
from models.ranker_inputs import RankerLayout
from models.refusal import RefusalError
from models.sources import SOURCE_TYPES, Source
from models.value import checked_weights

MANIFEST = "manifest.json"
ITEMS = "items.npz"
RANKER = "ranker.onnx"
LAYOUT = "ranker_layout.json"
CALIBRATION = "calibration.json"
WEIGHTS = "weights.json"
CHAMPION = "champion.json"
"""Beside the bundles: `{"bundle_id": ...}` of the one to serve, replaced atomically."""
FORMAT = 1

Part = TypeVar("Part")


class BundleError(RefusalError):
    """A bundle that cannot be served: the message names the part, what was got and what to do."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle, ready to serve."""

    bundle_id: str
    path: Path
    manifest: dict[str, Any]
    item_table: ItemTable
    sources: dict[str, Source]
    ranker: Ranker
    value_weights: dict[str, float]

    @staticmethod
    def load(path: Path, threads: int = 1) -> "Bundle":
        """Reads and verifies a bundle's directory; `threads` is ONNX Runtime's.

        Raises `BundleError` with one sentence when the manifest is absent, a file is missing or altered, or the
        bundle was made for other features than this code's.
        """
        manifest = read_manifest(path)
        verify(path, manifest)
        layout = _part(path / LAYOUT, lambda file: RankerLayout.from_json(json.loads(file.read_text())))
        if (mismatch := layout.mismatch()) is not None:
            raise BundleError(f"bundle {path}: {mismatch}; retrain with this code.")
        calibration = _part(path / CALIBRATION, lambda file: Calibration.from_json(json.loads(file.read_text())))
        return Bundle(
            bundle_id=str(manifest["bundle_id"]),
            path=path,
            manifest=manifest,
            item_table=_part(path / ITEMS, lambda file: ItemTable.from_arrays(_arrays(file))),
            sources={name: _part(source_file(path, name), _source(name)) for name in manifest["sources"]},
            ranker=_part(path / RANKER, lambda file: Ranker.load(file, layout, calibration, threads)),
            value_weights=_part(path / WEIGHTS, lambda file: checked_weights(json.loads(file.read_text()))),
        )


def champion_id(bundles_dir: Path) -> str | None:
    """The promoted bundle's id; None before the first promotion. Raises `BundleError` on an unreadable file."""
    file = bundles_dir / CHAMPION
    if not file.exists():
        return None
    return str(_part(file, lambda found: json.loads(found.read_text())["bundle_id"]))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, with the fields that every reader needs. Raises `BundleError`."""
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(f"bundle {path}: no {MANIFEST} there; give the directory of a built bundle.")
    manifest = _part(file, lambda found: json.loads(found.read_text()))
    needed = ("format", "bundle_id", "files", "features_version", "sources")
    missing = [name for name in needed if not isinstance(manifest, dict) or name not in manifest]
    if missing:
        raise BundleError(f"bundle {path}: {MANIFEST} lacks {', '.join(missing)}; rebuild the bundle.")
    if manifest["format"] != FORMAT:
        raise BundleError(f"bundle {path}: got format {manifest['format']}, this code reads {FORMAT}; rebuild it.")
    unknown = sorted(set(manifest["sources"]) - set(SOURCE_TYPES))
    if unknown:
        raise BundleError(f"bundle {path}: unknown sources {', '.join(unknown)}; known: {', '.join(SOURCE_TYPES)}.")
    return dict(manifest)


def verify(path: Path, manifest: dict[str, Any]) -> None:
    """Checks the features' version and every file's SHA-256 against the manifest. Raises `BundleError`."""
    built_for, ours = manifest["features_version"], specs.version()
    if built_for != ours:
        raise BundleError(
            f"bundle {path}: made for features {built_for}, this code has {ours}; retrain with this code."
        )
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"bundle {path}: {name} is missing; copy the bundle again or roll back.")
        got = sha256(file)
        if got != expected:
            raise BundleError(
                f"bundle {path}: {name} is altered (SHA-256 {got[:12]}, the manifest says {expected[:12]}); "
                "copy the bundle again or roll back."
            )
    needed = [ITEMS, RANKER, LAYOUT, CALIBRATION, WEIGHTS, *(f"sources/{name}.npz" for name in manifest["sources"])]
    absent = [name for name in needed if name not in manifest["files"]]
    if absent:
        raise BundleError(f"bundle {path}: {MANIFEST} does not list {', '.join(absent)}; rebuild the bundle.")


def source_file(path: Path, name: str) -> Path:
    """Where a source's arrays lie."""
    return path / "sources" / f"{name}.npz"


def sha256(file: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _source(name: str) -> Callable[[Path], Source]:
    return lambda file: SOURCE_TYPES[name].from_arrays(_arrays(file))


def _arrays(file: Path) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def _part(file: Path, read: Callable[[Path], Part]) -> Part:
    try:
        return read(file)
    except Exception as error:  # whatever the part's reader raises, the caller gets one sentence
        raise BundleError(f"bundle part {file} cannot be read: {error}; copy the bundle again or roll back.") from error
