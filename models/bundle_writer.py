"""Making bundles: one immutable directory from a ranker's run and the candidates' run that it was trained with."""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features import specs
from models.bundle import (
    CALIBRATION,
    FORMAT,
    ITEMS,
    LAYOUT,
    MANIFEST,
    RANKER,
    WEIGHTS,
    derived_id,
    read_manifest,
    sha256,
    verify,
)
from models.refusal import RefusalError
from models.sources import SOURCE_TYPES
from models.value import checked_weights
from models.workspace import CANDIDATES, WorkspaceError, atomic_directory, atomic_json


class BuildError(RefusalError):
    """Parts that do not make a bundle together."""


def build_bundle(
    workspace: Path, ranker_run: Path, bundles_dir: Path, weights: Mapping[str, float], created_at_ms: int
) -> Path:
    """Writes the bundle as a whole and returns its directory; equal parts give the same bundle, which is kept.

    Raises `BuildError` when the ranker was trained for other features than this code's, and `WorkspaceError` when
    its candidates' run is gone.
    """
    ranker_report = json.loads((ranker_run / "report.json").read_text())
    candidates_run = workspace / CANDIDATES / str(ranker_report["candidates_run_id"])
    if not candidates_run.is_dir():
        raise WorkspaceError(f"candidates run {candidates_run} of ranker {ranker_run.name} is gone; train both again.")
    if ranker_report["features_version"] != specs.version():
        raise BuildError(
            f"ranker run {ranker_run.name} was trained for features {ranker_report['features_version']}, "
            f"this code has {specs.version()}; run python -m models.train_ranker again."
        )
    candidates_report = json.loads((candidates_run / "report.json").read_text())
    parts = {name: ranker_run / name for name in (RANKER, LAYOUT, CALIBRATION)}
    parts[ITEMS] = candidates_run / ITEMS
    parts |= {f"sources/{name}.npz": candidates_run / "sources" / f"{name}.npz" for name in SOURCE_TYPES}
    facts = {
        "features_version": specs.version(),
        "sources": sorted(SOURCE_TYPES),
        "seeds": {"ranker": ranker_report["seed"], "candidates": candidates_report["seed"]},
        "runs": {"ranker": ranker_run.name, "candidates": candidates_run.name},
        "configuration": {
            "ranker": ranker_report.get("config", {}),
            "candidates": candidates_report.get("config", {}),
        },
        "delta_versions": {**candidates_report["delta_versions"], **ranker_report["delta_versions"]},
        "metrics": _headline(ranker_report, candidates_report),
        "created_at_ms": created_at_ms,
    }
    return _write(parts, checked_weights(weights), facts, bundles_dir)


def reweighted(bundle_dir: Path, weights: Mapping[str, float], created_at_ms: int) -> Path:
    """A bundle beside this one that differs in its value weights alone; this one is verified first.

    Raises `ValueError` for unknown heads, and `BundleError`.
    """
    manifest = read_manifest(bundle_dir)
    verify(bundle_dir, manifest)
    parts = {name: bundle_dir / name for name in manifest["files"] if name != WEIGHTS}
    derived = ("format", "bundle_id", "files", "code_version")
    facts = {name: fact for name, fact in manifest.items() if name not in derived}
    facts |= {"created_at_ms": created_at_ms, "reweighted_from": manifest["bundle_id"]}
    return _write(parts, checked_weights(weights), facts, bundle_dir.parent)


def _write(parts: Mapping[str, Path], weights: dict[str, float], facts: dict[str, Any], bundles_dir: Path) -> Path:
    weights_text = json.dumps(weights, indent=1, sort_keys=True) + "\n"
    hashes = {name: sha256(file) for name, file in parts.items()}
    hashes[WEIGHTS] = hashlib.sha256(weights_text.encode()).hexdigest()
    bundle_id = derived_id(facts["features_version"], hashes)
    path = bundles_dir / bundle_id
    if path.is_dir():
        return path
    with atomic_directory(path) as draft:
        for name, file in parts.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, draft / name)
        (draft / WEIGHTS).write_text(weights_text)
        code_version = importlib.metadata.version("millrace")
        manifest = {"format": FORMAT, "bundle_id": bundle_id, "code_version": code_version, "files": hashes, **facts}
        atomic_json(draft / MANIFEST, manifest)
    return path


def _headline(ranker_report: Mapping[str, Any], candidates_report: Mapping[str, Any]) -> dict[str, Any]:
    heads = {
        head: {name: metrics[name] for name in ("auc", "gauc", "log_loss", "ece")}
        for head, metrics in ranker_report["heads"].items()
    }
    sources = {
        name: {key: metrics[key] for key in ("recall@100", "ndcg@10", "recall")}
        for name, metrics in candidates_report["sources"].items()
    }
    return {"heads": heads, "sources": sources, "slate_ndcg": ranker_report["slate_ndcg"]}
