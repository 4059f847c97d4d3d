"""Judging a bundle, making it the champion, and going back to an earlier one.

`champion.json` is what is served, so it is written first and is the truth; MLflow's aliases follow it. A process that
is killed between the two leaves them apart, which `disagreement` tells and every promotion and roll-back mends first.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.bundle import Bundle, BundleError, champion_id, loaded, read_manifest
from models.champions import Action, read_champions, set_champion
from models.evaluate_bundle import BundleQuality, evaluate_bundle
from models.gates import (
    NOT_OVERRIDABLE,
    GateLimits,
    GateResult,
    features_gate,
    ndcg_gate,
    run_gates,
    serving_gates,
)
from models.refusal import RefusalError
from models.registry import CHALLENGER, CHAMPION, Registry
from models.workspace import CANDIDATES, RANKER, REPORT

log = logging.getLogger(__name__)

GATES = "gates"
"""Tag of a version: `passed`, `refused: <gates>` or `overridden: <gates>`, by the last verdict."""
GATES_DETAIL = "gates_detail"
"""Tag of a version: the last verdict's gates as JSON, in one tag so that two verdicts never mix."""
OVERRIDE = "override"
"""Tags `override.<instant>`: who promoted against which gates, and why. They are never replaced."""
NO_EXAMPLES = "there are no test examples to judge it on; train a ranker, or give examples"


@dataclass(frozen=True, kw_only=True)
class Override:
    """Somebody's decision to promote against gates."""

    by: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gates said of a bundle, and what it was compared with."""

    gates: list[GateResult]
    quality: BundleQuality | None = None
    champion: str | None = None
    """The champion that the metrics are of; None when there is none that can be read."""
    champion_quality: BundleQuality | None = None

    @property
    def missed(self) -> list[str]:
        """The gates that refuse."""
        return [gate.gate for gate in self.gates if not gate.passed]


def disagreement(registry: Registry, bundles_dir: Path) -> str | None:
    """How MLflow's aliases differ from `champion.json`, as a sentence; None when they agree. Raises `BundleError`."""
    served, aliases = champion_id(bundles_dir), registry.aliases()
    said = aliases.get(CHAMPION)
    if served != said:
        return (
            f"champion.json names {served or 'no bundle'}, MLflow's alias {said or 'no bundle'}; what is served is "
            "champion.json's, and the next promotion or roll-back sets the alias to it."
        )
    if served is not None and aliases.get(CHALLENGER) == served:
        return f"{served} is champion and challenger at once; the next promotion or roll-back removes the latter."
    return None


def align(registry: Registry, workspace: Path, bundles_dir: Path) -> str | None:
    """Makes the aliases follow `champion.json`; returns how they differed before. Raises `BundleError`."""
    said = disagreement(registry, bundles_dir)
    if said is None:
        return None
    served = champion_id(bundles_dir)
    if served is None:
        registry.drop_alias(CHAMPION)
        return said
    if registry.bundle_of(CHAMPION) != served:
        version = registry.version_of(served) or ensure_registered(registry, workspace, bundles_dir / served)
        registry.set_alias(CHAMPION, version)
    if registry.bundle_of(CHALLENGER) == served:
        registry.drop_alias(CHALLENGER)
    return said


def mend(registry: Registry, workspace: Path, bundles_dir: Path) -> str | None:
    """`align` at the start of a command: a champion whose directory is gone is left to that command to replace."""
    try:
        said = align(registry, workspace, bundles_dir)
    except BundleError as error:
        log.warning("MLflow's alias is not mended: %s", error)
        return None
    if said is not None:
        log.warning("mended: %s", said)
    return said


def ensure_registered(registry: Registry, workspace: Path, path: Path) -> str:
    """The version of the bundle in the directory, registered with its training runs where that was not done yet."""
    manifest = read_manifest(path)
    bundle_id = str(manifest["bundle_id"])
    versions = {made.bundle_id: made for made in registry.versions()}
    if bundle_id in versions:
        return versions[bundle_id].version
    origin = manifest.get("reweighted_from")
    tags = {"origin": f"weights of {origin}" if origin else "training", **_headline(manifest)}
    run_id = versions[origin].run_id if origin in versions else _log_runs(registry, workspace, manifest)
    return registry.register(bundle_id, path, run_id or None, tags)


def judge(
    bundles_dir: Path, path: Path, rows: pa.Table | None, limits: GateLimits, known: Sequence[GateResult] = ()
) -> Verdict:
    """Puts the bundle in the directory to every gate, beside the champion on the same rows; `known` are verdicts that
    were found elsewhere.

    Gains of slates are by the challenger's own value weights: they say what is wanted from now on. Raises
    `BundleError` when the bundle does not verify.
    """
    gate = features_gate(path, read_manifest(path))
    if not gate.passed:
        return Verdict(gates=[gate], champion=champion_id(bundles_dir))
    bundle = Bundle.load(path)
    if rows is None:
        missing = GateResult(gate="examples", passed=False, detail=NO_EXAMPLES)
        return Verdict(gates=[*serving_gates(bundle, limits), missing, *known], champion=champion_id(bundles_dir))
    quality = evaluate_bundle(bundle, rows, bundle.value_weights)
    champion, champions, why = _champion(bundles_dir, rows, bundle.value_weights)
    gates = [*run_gates(bundle, quality, champions, limits, why), *known]
    return Verdict(gates=gates, quality=quality, champion=champion, champion_quality=champions)


def judge_weights(bundles_dir: Path, path: Path, rows: pa.Table | None, limits: GateLimits) -> Verdict:
    """The gates that make sense where nothing was retrained: what serving needs, and the order of logged slates."""
    bundle = Bundle.load(path)
    gates = serving_gates(bundle, limits)
    if rows is None:
        gates.append(GateResult(gate="champion_ndcg", passed=True, detail=f"not compared: {NO_EXAMPLES}"))
        return Verdict(gates=gates, champion=champion_id(bundles_dir))
    quality = evaluate_bundle(bundle, rows, bundle.value_weights)
    champion, champions, why = _champion(bundles_dir, rows, bundle.value_weights)
    if champions is None:
        gates.append(GateResult(gate="champion_ndcg", passed=True, detail=f"not compared: {why}"))
    else:
        gates.append(ndcg_gate(quality.slate_ndcg, champions.slate_ndcg, limits))
    return Verdict(gates=gates, quality=quality, champion=champion, champion_quality=champions)


def decide(
    registry: Registry,
    workspace: Path,
    path: Path,
    verdict: Verdict,
    now_ms: int,
    action: Action = "promote",
    override: Override | None = None,
) -> dict[str, Any]:
    """Notes the verdict in the registry and makes the bundle champion or challenger; `promoted` says which.

    An override beats every gate but the `NOT_OVERRIDABLE` ones, since the service would refuse the bundle.
    """
    bundles_dir, manifest = path.parent, read_manifest(path)
    bundle_id = str(manifest["bundle_id"])
    version = ensure_registered(registry, workspace, path)
    missed = verdict.missed
    forced = bool(missed) and override is not None and not NOT_OVERRIDABLE & set(missed)
    registry.tag(version, _verdict_tags(verdict.gates, override if forced else None, now_ms))
    promoted = forced or not missed
    if promoted:
        set_champion(bundles_dir, bundle_id, "force" if forced else action, now_ms)
        align(registry, workspace, bundles_dir)
    elif bundle_id != champion_id(bundles_dir):
        registry.set_alias(CHALLENGER, version)
    return {
        "bundle_id": bundle_id,
        "version": version,
        "promoted": promoted,
        "overridden": missed if forced else [],
        "previous_champion": verdict.champion,
        "gates": [asdict(gate) for gate in verdict.gates],
        "quality": asdict(verdict.quality) if verdict.quality else None,
        "champion_quality": asdict(verdict.champion_quality) if verdict.champion_quality else None,
        "metrics": manifest.get("metrics", {}),
    }


def roll_back(
    registry: Registry, workspace: Path, bundles_dir: Path, bundle_id: str | None, now_ms: int, reason: str = ""
) -> str:
    """Makes an earlier champion the champion again, by default the one before this one; returns its id. The reason is
    kept with the switch in `champion.json` and, with the registry's version of the bundle that is left, in its tags.

    Raises `RefusalError` when there is none or it was never champion, and `BundleError` when it does not verify.
    """
    mend(registry, workspace, bundles_dir)
    known = read_champions(bundles_dir)
    target = bundle_id or next(iter(known.before[::-1]), None)
    if target is None:
        raise RefusalError(f"no champion came before {known.bundle_id or 'the first one'}; promote a bundle instead.")
    if target == known.bundle_id:
        raise RefusalError(f"{target} is the champion already; name an earlier one, or none for the one before it.")
    if target not in known.were():
        raise RefusalError(f"{target} was never champion; promote it, so that it passes the gates.")
    loaded(bundles_dir, target)
    version = ensure_registered(registry, workspace, bundles_dir / target)
    set_champion(bundles_dir, target, "rollback", now_ms, reason)
    align(registry, workspace, bundles_dir)
    registry.tag(version, {"rolled_back_to_at_ms": str(now_ms)})
    if reason and known.bundle_id is not None and (left := registry.version_of(known.bundle_id)) is not None:
        registry.tag(left, {"rolled_back_from_at_ms": str(now_ms), "rolled_back_because": reason})
    return target


def _champion(
    bundles_dir: Path, rows: pa.Table, gain_weights: Mapping[str, float]
) -> tuple[str | None, BundleQuality | None, str]:
    """The champion and its metrics; without metrics, why there are none."""
    current = champion_id(bundles_dir)
    if current is None:
        return None, None, "there is no champion"
    try:
        return current, evaluate_bundle(Bundle.load(bundles_dir / current), rows, gain_weights), ""
    except BundleError as error:
        log.warning("the champion is not compared with: %s", error)
        return current, None, str(error)


def _verdict_tags(gates: Sequence[GateResult], override: Override | None, now_ms: int) -> dict[str, str]:
    missed = ", ".join(gate.gate for gate in gates if not gate.passed)
    tags = {GATES_DETAIL: json.dumps([asdict(gate) for gate in gates])}
    if override is None:
        return {**tags, GATES: f"refused: {missed}" if missed else "passed"}
    said = f"{override.by} overrode {missed}: {override.reason}"
    return {**tags, GATES: f"overridden: {missed}", f"{OVERRIDE}.{now_ms}": said}


def gates_of(tags: Mapping[str, str]) -> list[GateResult]:
    """The last verdict that a version's tags hold; empty before the first."""
    return [GateResult(**gate) for gate in json.loads(tags.get(GATES_DETAIL, "[]"))]


def _headline(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What the list shows of a bundle whose directory is gone."""
    metrics = manifest.get("metrics", {})
    found = {
        "made_at_ms": manifest.get("created_at_ms"),
        "click_auc": metrics.get("heads", {}).get("click", {}).get("auc"),
        "slate_ndcg": metrics.get("slate_ndcg", {}).get("millrace"),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _log_runs(registry: Registry, workspace: Path, manifest: Mapping[str, Any]) -> str | None:
    """Logs the training runs that the workspace still has; MLflow's id of the ranker's, if that is one of them."""
    run_id = None
    for kind in (CANDIDATES, RANKER):
        file = workspace / kind / str(manifest.get("runs", {}).get(kind)) / REPORT
        if file.is_file():
            report = json.loads(file.read_text())
            taken = {name: report.pop(name, {}) for name in ("config", "delta_versions")}
            parameters = {"seed": report.pop("seed", None), **taken["config"], **taken["delta_versions"]}
            run_id = registry.log_run(file.parent.name, parameters, report)
    return run_id
