"""`python -m models.promote`: builds the latest runs' bundle, registers it, and promotes it if it passes the gates.

A refused bundle stays registered as the challenger, with the reasons; the champion stays as it is. Without `--weights`
the value weights are the champion's, so that retraining does not undo what `millrace weights set` changed.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

from models import refusal
from models.bundle import BundleError, champion_id, read_value_weights
from models.bundle_writer import build_bundle
from models.champions import promotion_lock
from models.evaluate_bundle import read_test_examples
from models.gates import DEFAULT_LIMITS, GateLimits, GateResult, refusal_of
from models.parity_gate import parity_gate
from models.promotion import decide, judge, mend
from models.registry import Registry
from models.value import DEFAULT_WEIGHTS, checked_weights
from models.workspace import RANKER, TEST_EXAMPLES, atomic_json, latest_run

log = logging.getLogger(__name__)


def promote(
    workspace: Path,
    bundles_dir: Path,
    tracking_uri: str,
    weights: dict[str, float] | None,
    now_ms: int,
    limits: GateLimits = DEFAULT_LIMITS,
    parity_report: Path | None = None,
) -> dict[str, Any]:
    """Builds, registers, judges and promotes; returns the report, whose `promoted` says how it ended."""
    started = time.monotonic()
    ranker_run = latest_run(workspace, RANKER)
    rows = read_test_examples(ranker_run / TEST_EXAMPLES)
    with promotion_lock(bundles_dir):
        chosen = present_weights(bundles_dir) if weights is None else weights
        path = build_bundle(workspace, ranker_run, bundles_dir, chosen, now_ms)
        verdict = judge(bundles_dir, path, rows, limits, [parity_gate(parity_report, now_ms, limits)])
        registry = Registry(tracking_uri)
        mend(registry, workspace, bundles_dir)
        report = decide(registry, workspace, path, verdict, now_ms)
    return {**report, "seconds": time.monotonic() - started}


def present_weights(bundles_dir: Path) -> dict[str, float]:
    """The champion's value weights; the default ones when there is no champion that can be read."""
    try:
        champion = champion_id(bundles_dir)
        return dict(DEFAULT_WEIGHTS) if champion is None else read_value_weights(bundles_dir / champion)
    except BundleError as error:
        log.warning("the default value weights are used: %s", error)
        return dict(DEFAULT_WEIGHTS)


def read_weights(file: Path) -> dict[str, float]:
    """Value weights from a JSON file. Raises `RefusalError` that names what is wrong."""
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
    parser.add_argument("--weights", type=Path, help="JSON file of value weights by head (default: the champion's)")
    parser.add_argument("--limits", type=Path, help="JSON file of models.gates.GateLimits' fields")
    parser.add_argument("--parity-report", type=Path, help="the newest report of batch/feature_parity.py")
    parser.add_argument("--now-ms", type=int, help="when the bundle is made (default: the wall clock)")
    parser.add_argument("--report", type=Path, help="also write the report there")
    flags = parser.parse_args()
    now_ms = flags.now_ms if flags.now_ms is not None else time.time_ns() // 1_000_000
    weights = read_weights(flags.weights) if flags.weights else None
    limits = GateLimits.read(flags.limits)
    report = promote(flags.workspace, flags.bundles, flags.tracking_uri, weights, now_ms, limits, flags.parity_report)
    if flags.report:
        atomic_json(flags.report, report)
    if not report["promoted"]:
        gates = [GateResult(**gate) for gate in report["gates"]]
        raise refusal_of(report["bundle_id"], report["previous_champion"], gates)
    log.info("promoted %s as version %s in %.1f s", report["bundle_id"], report["version"], report["seconds"])


if __name__ == "__main__":
    refusal.run(main)
