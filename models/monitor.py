"""`python -m models.monitor`: what is served, judged against what was before; a broken guardrail rolls back.

One report: drift of features and labels (of the examples), drift and calibration of scores, freshness, coverage by
source, and the guardrails of the champion against the bundle before. Each thing that is wrong is one alert, which
`python -m models.monitor_alerts` tells.
"""

import argparse
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.names import MS_PER_HOUR
from models import refusal
from models.automatic_rollback import carry_out, decide, promoted_at, serves, told
from models.champions import Champions, read_champions
from models.drift import population_stability
from models.example_drift import feature_drift, judged, label_changes, read_sides
from models.guardrails import Comparison, compare_served
from models.metrics.bootstrap import bootstrap
from models.monitor_limits import MonitorLimits
from models.served_log import ServedLog, read_served, stale_answers
from models.workspace import atomic_json

log = logging.getLogger(__name__)

VANISHED = 0.1
"""A source with less than this part of its former share has vanished."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One thing that is wrong."""

    check: str
    subject: str
    """Which feature, head, source or guardrail; empty where the check has one subject."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """One run."""

    lake: Path
    bundles_dir: Path
    workspace: Path
    tracking_uri: str
    now_ms: int
    limits: MonitorLimits
    dry_run: bool = False
    """Says what would be rolled back to, and leaves the champion."""

    @property
    def window_ms(self) -> int:
        """The beginning of what is judged."""
        return self.now_ms - int(self.limits.window_h * MS_PER_HOUR)

    @property
    def reference_ms(self) -> int:
        """The beginning of what it is compared with."""
        return self.window_ms - int(self.limits.reference_h * MS_PER_HOUR)


def watch(monitor: Monitor) -> dict[str, Any]:
    """Judges everything, rolls back where that is decided, and returns the report."""
    limits, champions = monitor.limits, read_champions(monitor.bundles_dir)
    now = read_served(monitor.lake, monitor.window_ms, monitor.now_ms, limits.max_slates)
    before = read_served(monitor.lake, monitor.reference_ms, monitor.window_ms, limits.max_slates)
    sides = read_sides(monitor.lake, monitor.reference_ms, monitor.window_ms, monitor.now_ms, limits.max_rows)
    checks: dict[str, dict[str, Any]] = {
        "features": feature_drift(sides, limits),
        "labels": label_changes(sides, limits),
        "scores": score_drift(now, before, champions.bundle_id, limits),
        "calibration": calibration(now, limits),
        "freshness": freshness(monitor.lake, now, limits),
        "sources": source_shares(now, before, limits),
    }
    comparison = _compared(monitor, champions)
    decision = decide(champions, comparison, monitor.now_ms, limits, lambda target: serves(monitor.bundles_dir, target))
    went_to = None
    if not monitor.dry_run and champions.bundle_id is not None:
        places = (monitor.tracking_uri, monitor.workspace, monitor.bundles_dir)
        went_to = carry_out(decision, champions.bundle_id, *places, monitor.now_ms)
    alerts = [*_alerts(checks), *(Alert(check="guardrail", subject=g.name, detail=told(g)) for g in comparison.broken)]
    return {
        "now_ms": monitor.now_ms,
        "window_from_ms": monitor.window_ms,
        "reference_from_ms": monitor.reference_ms,
        "bundle_id": champions.bundle_id,
        "checks": checks,
        "guardrails": asdict(comparison),
        "rollback": {"would_go_to": decision.target, "went_to": went_to, "reason": decision.reason},
        "alerts": [asdict(alert) for alert in alerts],
    }


def _compared(monitor: Monitor, champions: Champions) -> Comparison:
    """The champion since its promotion against the champion before it, each for at most the reference's hours."""
    at_ms = promoted_at(champions)
    replaced = champions.history[-1].replaced if champions.history else None
    if at_ms is None or replaced is None or champions.bundle_id is None:
        return Comparison(not_compared="there is no bundle before the champion, or the champion came by a roll-back")
    reach_ms, slates = int(monitor.limits.reference_h * MS_PER_HOUR), monitor.limits.max_slates
    now = read_served(monitor.lake, at_ms, min(monitor.now_ms, at_ms + reach_ms), slates)
    before = read_served(monitor.lake, at_ms - reach_ms, at_ms, slates)
    return compare_served(now, before, champions.bundle_id, replaced, monitor.limits)


def score_drift(now: ServedLog, before: ServedLog, bundle_id: str | None, limits: MonitorLimits) -> dict[str, Any]:
    """PSI of the champion's scores in the window against its own before it: scores of two bundles do not compare."""
    ours, theirs = now.score_N[now.bundle_N == bundle_id], before.score_N[before.bundle_N == bundle_id]
    record: dict[str, Any] = {"rows": len(ours), "reference_rows": len(theirs), "found": []}
    if min(len(ours), len(theirs)) < limits.min_rows:
        return {**record, "not_judged": "too few slots of the champion on one side"}
    users = [len(set(log.user_N[log.bundle_N == bundle_id].tolist())) for log in (before, now)]
    found = judged("the scores", population_stability(theirs, ours), users[0], users[1], limits.max_score_psi)
    return {**record, "found": [{**found, "subject": ""}]}


def calibration(now: ServedLog, limits: MonitorLimits) -> dict[str, Any]:
    """Predicted against observed clicks, of impressions at the top: predictions are as if for that position."""
    chosen_N = now.shown_N & (now.position_N == 0) & np.isfinite(now.click_probability_N)
    top = now.take(chosen_N)
    if len(top) < limits.min_rows:
        return {"rows": len(top), "found": [], "not_judged": "too few impressions at the top"}
    gap_N = top.click_probability_N - top.clicked_N
    _, user_N = np.unique(top.user_N.astype(str), return_inverse=True)
    gap = bootstrap(lambda rows: float(gap_N[rows].mean()), user_N.astype(np.int64), np.random.default_rng(SEED))
    limit = limits.max_calibration_gap
    predicted, observed = float(top.click_probability_N.mean()), float(top.clicked_N.mean())
    detail = f"clicks at the top: predicted {predicted:.3f}, observed {observed:.3f}, allowed: {limit:g} apart"
    wrong = gap.low > limit or gap.high < -limit
    found = {"subject": "click", "predicted": predicted, "observed": observed, **asdict(gap)}
    return {"rows": len(top), "found": [{**found, "wrong": wrong, "detail": detail}]}


def freshness(lake: Path, now: ServedLog, limits: MonitorLimits) -> dict[str, Any]:
    """How many answers lacked an event that had arrived in time, and how old the newest events behind answers were."""
    stale, judged = stale_answers(lake, now, limits.freshness_grace_ms)
    age_S = (now.slate_served_ms_S - now.slate_newest_ms_S)[np.isfinite(now.slate_newest_ms_S)]
    ages = {f"age_ms_p{p}": float(np.percentile(age_S, p)) if len(age_S) else None for p in (50, 95)}
    if judged < limits.min_rows:
        return {"rows": judged, **ages, "found": [], "not_judged": "too few answers to users with events"}
    share = stale / judged
    detail = f"{stale} of {judged} answers lacked an event that had arrived {limits.freshness_grace_ms} ms before"
    wrong = share > limits.max_stale_share
    detail = f"{detail}, allowed: a share of {limits.max_stale_share:g}"
    return {"rows": judged, **ages, "found": [{"subject": "", "share": share, "wrong": wrong, "detail": detail}]}


def source_shares(now: ServedLog, before: ServedLog, limits: MonitorLimits) -> dict[str, Any]:
    """The share of slots by the source that ranked the item best, and sources that have vanished."""
    if min(len(now), len(before)) < limits.min_rows:
        return {"rows": len(now), "reference_rows": len(before), "found": [], "not_judged": "too few slots on one side"}
    shares, former = _shares(now), _shares(before)
    found = []
    for source in sorted(shares.keys() | former.keys()):
        share, was = shares.get(source, 0.0), former.get(source, 0.0)
        wrong = was >= limits.min_source_share and share < VANISHED * was
        detail = f"{source or 'no source'} has {share:.2%} of the slots, {was:.2%} before"
        found.append({"subject": source, "share": share, "share_before": was, "wrong": wrong, "detail": detail})
    return {"rows": len(now), "reference_rows": len(before), "found": found}


def _shares(served: ServedLog) -> dict[str, float]:
    return {source: slots / len(served) for source, slots in Counter(served.source_N.tolist()).items()}


def _alerts(checks: Mapping[str, Mapping[str, Any]]) -> Iterator[Alert]:
    for check, record in checks.items():
        for found in record["found"]:
            if found["wrong"]:
                yield Alert(check=check, subject=found["subject"], detail=found["detail"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, required=True, help="root of the Delta tables")
    parser.add_argument("--workspace", type=Path, required=True, help="where the training runs are")
    parser.add_argument("--bundles", type=Path, required=True, help="where bundles and champion.json are")
    parser.add_argument("--tracking-uri", required=True, help="MLflow's")
    parser.add_argument("--monitor-limits", type=Path, help="file of models.monitor_limits.MonitorLimits' fields")
    parser.add_argument("--monitor-report", type=Path, required=True, help="JSON, replaced at once")
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    parser.add_argument("--dry-run", action="store_true", help="never roll back")
    flags = parser.parse_args()
    monitor = Monitor(
        lake=flags.lake,
        bundles_dir=flags.bundles,
        workspace=flags.workspace,
        tracking_uri=flags.tracking_uri,
        now_ms=flags.now_ms if flags.now_ms is not None else time.time_ns() // 1_000_000,
        limits=MonitorLimits.read(flags.monitor_limits),
        dry_run=flags.dry_run,
    )
    report = watch(monitor)
    atomic_json(flags.monitor_report, report)
    log.info("%d alerts; roll-back: %s", len(report["alerts"]), report["rollback"]["reason"])


if __name__ == "__main__":
    refusal.run(main)
