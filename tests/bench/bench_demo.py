"""The demo as a benchmark: its scalars and the seconds of its phases."""

import json
from typing import Any

from rich.console import Console

from infra.demo.options import DemoOptions
from infra.demo.run import REPORT_DIR, run_demo
from tests.bench.report import BenchError, Row

DEMO_FIGURES: dict[str, str] = {
    "events_produced": "events",
    "events_lost": "events",
    "event_to_slate_ms_p50": "ms",
    "event_to_slate_ms_p99": "ms",
    "recommend_ms_p50": "ms",
    "recommend_ms_p99": "ms",
    "memory_peak_mb": "MB",
}
"""Scalars of the demo's report and their units; its phases are added as seconds."""


def run(console: Console) -> list[Row]:
    """Runs the demo once. Raises `BenchError` when it ends with an error."""
    if code := run_demo(DemoOptions(), console):
        raise BenchError(f"the demo ended with status {code}; its last lines say why.")
    return demo_rows(json.loads((REPORT_DIR / "report.json").read_text()))


def demo_rows(report: dict[str, Any]) -> list[Row]:
    """The figures of a demo report."""
    settings = {"data": report.get("data"), "seed": report.get("seed")}
    scalars = [
        Row(name=name, value=report.get(name), unit=unit, settings=settings) for name, unit in DEMO_FIGURES.items()
    ]
    phases = report.get("seconds", {})
    return [*scalars, *(Row(name=f"phase: {key}", value=s, unit="s", settings=settings) for key, s in phases.items())]
