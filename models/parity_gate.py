"""The gate on feature parity: what the service read must be what point-in-time recomputation gives for training.

`python -m models.parity_gate --parity-report FILE [--limits FILE]` judges the newest report of `feature_parity`.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

from features import specs
from features.names import MS_PER_HOUR
from models import refusal
from models.gates import DEFAULT_LIMITS, GateLimits, GateResult

log = logging.getLogger(__name__)

FEATURE_PARITY = "feature_parity"


class ParityError(refusal.RefusalError):
    """Features whose served values are not the ones that training would see."""


def parity_gate(report: Path | None, now_ms: int, limits: GateLimits = DEFAULT_LIMITS) -> GateResult:
    """The verdict on the newest report; it names each feature whose share of mismatches is above the limit.

    No report yet is no objection, nor is one of another version of the features. One that is too old or unreadable is:
    the job has not succeeded since.
    """
    if report is None or not report.is_file():
        return _passed("not judged: feature_parity has not run yet")
    try:
        record: dict[str, Any] = json.loads(report.read_text())
        if record["spec_version"] != specs.version():
            return _passed(f"not judged: the report is of features {record['spec_version']}")
        age_h = (now_ms - record["run_ms"]) / MS_PER_HOUR
        if age_h > limits.parity_max_age_h:
            return _missed(
                f"the report is {age_h:.0f} h old, allowed: {limits.parity_max_age_h:g}; run the DAG feature_parity"
            )
        return _judged(record["features"], limits)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _missed(f"{report} cannot be read ({type(error).__name__}: {error}); run the DAG feature_parity")


def _judged(features: list[dict[str, Any]], limits: GateLimits) -> GateResult:
    enough = [found for found in features if found["rows"] >= limits.parity_min_rows]
    wrong = [found for found in enough if found["share"] > limits.parity_max_share]
    if wrong:
        told = (f"{found['feature']} {found['mismatches']} of {found['rows']}" for found in _worst_first(wrong))
        said = f"served values differ from the recomputed ones: {', '.join(told)}"
        return _missed(f"{said}; allowed: a share of {limits.parity_max_share:g}")
    detail = f"{len(enough)} of {len(features)} features have the {limits.parity_min_rows} rows to be judged"
    return _passed(f"{detail}, each at most {limits.parity_max_share:g} apart")


def _worst_first(wrong: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(wrong, key=lambda found: (-found["share"], found["feature"]))


def _passed(detail: str) -> GateResult:
    return GateResult(gate=FEATURE_PARITY, passed=True, detail=detail)


def _missed(detail: str) -> GateResult:
    return GateResult(gate=FEATURE_PARITY, passed=False, detail=detail)


def main() -> None:
    """The command line: one sentence and exit status 1 when the gate refuses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parity-report", type=Path, required=True, help="what batch/feature_parity.py wrote")
    parser.add_argument("--limits", type=Path, help="file of models.gates.GateLimits' fields")
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    flags = parser.parse_args()
    now_ms = flags.now_ms if flags.now_ms is not None else time.time_ns() // 1_000_000
    verdict = parity_gate(flags.parity_report, now_ms, GateLimits.read(flags.limits))
    if not verdict.passed:
        raise ParityError(f"{verdict.gate}: {verdict.detail}")
    log.info("%s: %s", verdict.gate, verdict.detail)


if __name__ == "__main__":
    refusal.run(main)
