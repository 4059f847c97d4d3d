"""The bundle: everything that was trained together, verified when it is read. `models.bundle_writer` makes it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from features import specs
from models.arrays import load_arrays
from models.item_table import ItemTable
from models.ranker.calibration import Calibration
from models.ranker.scorer import Ranker
from models.ranker_inputs import RankerLayout
from models.refusal import RefusalError
from models.sources import SOURCE_TYPES, Source
from models.sources.als import AlsSource
from models.value import checked_weights

MANIFEST = "manifest.json"
ITEMS = "items.npz"
RANKER = "ranker.onnx"
LAYOUT = "ranker_layout.json"
CALIBRATION = "calibration.json"
WEIGHTS = "weights.json"
CHAMPION = "champion.json"
"""Beside the bundles: `{"bundle_id": ...}` of the one to serve, replaced atomically (`models.champions`)."""
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

    @property
    def als(self) -> AlsSource | None:
        """The source whose factors the ranker and the rerank stage read, too; None in a bundle without it."""
        als = self.sources.get("als")
        return als if isinstance(als, AlsSource) else None

    @staticmethod
    def load(path: Path, threads: int = 1) -> "Bundle":
        """Reads and verifies a bundle's directory; `threads` is ONNX Runtime's.

        Raises `BundleError` with one sentence when the manifest is absent or does not fit its id, a file is missing,
        altered or not the manifest's, or the bundle was made for other features than this code's.
        """
        manifest = read_manifest(path)
        verify(path, manifest)
        if (other := feature_mismatch(path, manifest)) is not None:
            raise BundleError(f"bundle {path}: {other}; retrain with this code.")
        layout = read_layout(path)
        calibration = _part(path / CALIBRATION, lambda file: Calibration.from_json(json.loads(file.read_text())))
        return Bundle(
            bundle_id=str(manifest["bundle_id"]),
            path=path,
            manifest=manifest,
            item_table=_part(path / ITEMS, lambda file: ItemTable.from_arrays(load_arrays(file))),
            sources={name: _part(source_file(path, name), _source(name)) for name in manifest["sources"]},
            ranker=_part(path / RANKER, lambda file: Ranker.load(file, layout, calibration, threads)),
            value_weights=read_value_weights(path),
        )


def loaded(bundles_dir: Path, bundle_id: str, threads: int = 1) -> Bundle:
    """The verified bundle of this id. Raises `BundleError`, also when its directory is gone or holds another."""
    path = bundles_dir / bundle_id
    if not path.is_dir():
        raise BundleError(f"the directory of {bundle_id} is gone from {bundles_dir}; copy it back or train again.")
    bundle = Bundle.load(path, threads)
    if bundle.bundle_id != bundle_id:
        raise BundleError(f"bundle {path}: its manifest says {bundle.bundle_id}; copy the bundle again.")
    return bundle


def champion_id(bundles_dir: Path) -> str | None:
    """The promoted bundle's id; None before the first promotion. Raises `BundleError` on an unreadable file."""
    return None if (record := champion_record(bundles_dir)) is None else str(record["bundle_id"])


def champion_record(bundles_dir: Path) -> dict[str, Any] | None:
    """All that `champion.json` says; None before the first promotion. Raises `BundleError` on an unreadable file."""
    file = bundles_dir / CHAMPION
    if not file.exists():
        return None
    try:
        record = dict(json.loads(file.read_text()))
        if not isinstance(record["bundle_id"], str):
            raise TypeError(f"bundle_id is {record['bundle_id']!r}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{file} cannot be read: {error}; correct it, or remove it and promote a bundle.") from error
    return record


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
    if not isinstance(manifest["files"], dict) or not isinstance(manifest["sources"], list):
        raise BundleError(f"bundle {path}: {MANIFEST} lists no files or sources; rebuild the bundle.")
    unknown = sorted(set(manifest["sources"]) - set(SOURCE_TYPES))
    if unknown:
        raise BundleError(f"bundle {path}: unknown sources {', '.join(unknown)}; known: {', '.join(SOURCE_TYPES)}.")
    return dict(manifest)


def verify(path: Path, manifest: dict[str, Any]) -> None:
    """Checks the directory against the manifest: the id, the features, that it holds the manifest's files and no
    others, and every file's SHA-256. Raises `BundleError`.
    """
    if (other := _other_features(manifest)) is not None:
        raise BundleError(f"bundle {path}: {other}; retrain with this code.")
    files = manifest["files"]
    needed = [ITEMS, RANKER, LAYOUT, CALIBRATION, WEIGHTS, *(f"sources/{name}.npz" for name in manifest["sources"])]
    if absent := [name for name in needed if name not in files]:
        raise BundleError(f"bundle {path}: {MANIFEST} does not list {', '.join(absent)}; rebuild the bundle.")
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()} - {MANIFEST}
    if missing := sorted(set(files) - found):
        raise BundleError(f"bundle {path}: {', '.join(missing)} is missing; copy the bundle again or roll back.")
    if extra := sorted(found - set(files)):
        raise BundleError(f"bundle {path}: {', '.join(extra)} is not in its {MANIFEST}; remove what was put there.")
    for name, expected in files.items():
        if (got := sha256(path / name)) != expected:
            raise BundleError(
                f"bundle {path}: {name} is altered (SHA-256 {got[:12]}, the manifest says {expected[:12]}); "
                "copy the bundle again or roll back."
            )
    if (derived := derived_id(manifest["features_version"], files)) != manifest["bundle_id"]:
        raise BundleError(
            f"bundle {path}: {MANIFEST} says {manifest['bundle_id']}, its hashes make {derived}; "
            "copy the bundle again or roll back."
        )


def derived_id(features_version: str, files: Mapping[str, str]) -> str:
    """The id of the bundle with these hashes: equal parts are the same bundle."""
    identity = json.dumps([FORMAT, features_version, sorted(files.items())])
    return f"bundle-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def feature_mismatch(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """What differs between the features that the bundle was made for and this code's, as a clause; None: nothing.

    Raises `BundleError` when the ranker's layout cannot be read.
    """
    return _other_features(manifest) or read_layout(path).mismatch()


def read_layout(path: Path) -> RankerLayout:
    """The inputs that the bundle's ranker expects. Raises `BundleError`."""
    return _part(path / LAYOUT, lambda file: RankerLayout.from_json(json.loads(file.read_text())))


def source_file(path: Path, name: str) -> Path:
    """Where a source's arrays lie."""
    return path / "sources" / f"{name}.npz"


def sha256(file: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_value_weights(path: Path) -> dict[str, float]:
    """The bundle's value weights by head. Raises `BundleError`."""
    return _part(path / WEIGHTS, lambda file: checked_weights(json.loads(file.read_text())))


def _other_features(manifest: Mapping[str, Any]) -> str | None:
    built_for, ours = manifest["features_version"], specs.version()
    return f"made for features {built_for}, this code has {ours}" if built_for != ours else None


def _source(name: str) -> Callable[[Path], Source]:
    return lambda file: SOURCE_TYPES[name].from_arrays(load_arrays(file))


def _part(file: Path, read: Callable[[Path], Part]) -> Part:
    try:
        return read(file)
    except Exception as error:  # whatever the part's reader raises, the caller gets one sentence
        raise BundleError(f"bundle part {file} cannot be read: {error}; copy the bundle again or roll back.") from error
