"""`python -m models.promote`: builds the latest runs' bundle, registers it, and promotes it if it passes the gates.

A refused bundle stays registered as the challenger, with the reasons; the champion stays as it is.
"""

import argparse
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from models import refusal
from models.bundle import Bundle, BundleError, champion_id
from models.bundle_writer import build_bundle, set_champion
from models.evaluate_bundle import BundleQuality, evaluate_bundle, read_test_examples
from models.gates import GateResult, refusal_of, run_gates
from models.registry import CHALLENGER, CHAMPION, Registry
from models.value import DEFAULT_WEIGHTS, checked_weights
from models.workspace import CANDIDATES, RANKER, REPORT, TEST_EXAMPLES, atomic_json, latest_run

log = logging.getLogger(__name__)


def champion_quality(bundles_dir: Path, rows: pa.Table) -> tuple[str | None, BundleQuality | None]:
    """The champion and its metrics on the rows; no metrics when there is none or it cannot be read any more."""
    try:
        current = champion_id(bundles_dir)
        if current is None:
            return None, None
        return current, evaluate_bundle(Bundle.load(bundles_dir / current), rows)
    except BundleError as error:
        log.warning("the champion is not compared with: %s", error)
        return None, None


def promote(
    workspace: Path, bundles_dir: Path, tracking_uri: str, weights: dict[str, float], now_ms: int
) -> dict[str, Any]:
    """Builds, registers, judges and promotes; returns the report, whose `promoted` says how it ended."""
    started = time.monotonic()
    ranker_run = latest_run(workspace, RANKER)
    bundle = Bundle.load(build_bundle(workspace, ranker_run, bundles_dir, weights, now_ms))
    rows = read_test_examples(ranker_run / TEST_EXAMPLES)
    quality = evaluate_bundle(bundle, rows)
    champion, champions = champion_quality(bundles_dir, rows)
    gates = run_gates(bundle, quality, champions)
    passed = all(gate.passed for gate in gates)
    version = record(Registry(tracking_uri), workspace, bundle, gates, passed)
    if passed:
        set_champion(bundles_dir, bundle.bundle_id)
    return {
        "bundle_id": bundle.bundle_id,
        "version": version,
        "promoted": passed,
        "previous_champion": champion,
        "gates": [asdict(gate) for gate in gates],
        "quality": asdict(quality),
        "champion_quality": asdict(champions) if champions else None,
        "metrics": bundle.manifest["metrics"],
        "seconds": time.monotonic() - started,
    }


def record(registry: Registry, workspace: Path, bundle: Bundle, gates: list[GateResult], passed: bool) -> str:
    """Logs the bundle's runs once, registers it, notes the verdict and sets the aliases; returns the version."""
    version = registry.version_of(bundle.bundle_id)
    if version is None:
        runs = bundle.manifest["runs"]
        for kind in (CANDIDATES, RANKER):
            report = json.loads((workspace / kind / runs[kind] / REPORT).read_text())
            parameters = {"seed": report.pop("seed"), **report.pop("config"), **report.pop("delta_versions")}
            run_id = registry.log_run(runs[kind], parameters, report)
        version = registry.register(bundle, run_id)
    for gate in gates:
        registry.tag(version, f"gate.{gate.gate}", f"{'passed' if gate.passed else 'refused'}: {gate.detail}")
    registry.set_alias(CHAMPION if passed else CHALLENGER, version)
    return version


def read_weights(file: Path | None) -> dict[str, float]:
    """Value weights from a JSON file, or the default ones. Raises `RefusalError` that names what is wrong."""
    if file is None:
        return dict(DEFAULT_WEIGHTS)
    try:
        return checked_weights(json.loads(file.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise refusal.RefusalError(f"value weights {file}: {error}") from error


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="where the training runs are")
    parser.add_argument("--bundles", type=Path, required=True, help="where bundles and champion.json are")
    parser.add_argument("--tracking-uri", required=True, help="MLflow's, such as sqlite:////var/mlflow.db")
    parser.add_argument("--weights", type=Path, help="JSON file of value weights by head (default: models.value)")
    parser.add_argument("--now-ms", type=int, help="when the bundle is made (default: the wall clock)")
    parser.add_argument("--report", type=Path, help="also write the report there")
    flags = parser.parse_args()
    now_ms = flags.now_ms if flags.now_ms is not None else time.time_ns() // 1_000_000
    report = promote(flags.workspace, flags.bundles, flags.tracking_uri, read_weights(flags.weights), now_ms)
    if flags.report:
        atomic_json(flags.report, report)
    if not report["promoted"]:
        gates = [GateResult(**gate) for gate in report["gates"]]
        raise refusal_of(report["bundle_id"], report["previous_champion"], gates)
    log.info("promoted %s as version %s in %.1f s", report["bundle_id"], report["version"], report["seconds"])


if __name__ == "__main__":
    refusal.run(main)
