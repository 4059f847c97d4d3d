"""`millrace bench`: each benchmark gives rows of figures, kept in `var/bench/NAME.json` with machine and commit."""

import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from infra.settings import ROOT

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


class BenchError(RuntimeError):
    """One sentence: an unknown name, or a benchmark that failed."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. `value` is None where it does not apply; `settings` say under which conditions it was taken."""

    name: str
    value: float | None
    unit: str
    settings: dict[str, Any] = field(default_factory=dict)


def run_bench(name: str | None, console: Console) -> list[Table]:
    """Runs one benchmark or all, writes their files and returns their tables. Raises `BenchError`."""
    if name is not None and name not in BENCHMARKS:
        raise BenchError(f"unknown benchmark {name!r}; allowed: {', '.join(BENCHMARKS)}.")
    chosen = BENCHMARKS if name is None else {name: BENCHMARKS[name]}
    return [_table(each, _kept(each, benchmark(console))) for each, benchmark in chosen.items()]


def _demo(console: Console) -> list[Row]:
    from infra.demo.options import DemoOptions
    from infra.demo.run import REPORT_DIR, run_demo

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


BENCHMARKS: dict[str, Callable[[Console], list[Row]]] = {"demo": _demo}
"""Every benchmark by the name after `make bench-`."""


def _kept(name: str, rows: list[Row]) -> list[Row]:
    path = ROOT / "var" / "bench" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {"machine": machine(), "commit": commit(), "taken_at": datetime.now(UTC).isoformat(timespec="seconds")}
    path.write_text(json.dumps({**described, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return rows


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cpus": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """The checkout's commit, with `+` when files differ from it; None outside a git checkout."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode:
        return None
    changes = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _table(name: str, rows: list[Row]) -> Table:
    table = Table(name, "value", "unit", box=None)
    for row in rows:
        table.add_row(row.name, "–" if row.value is None else f"{row.value:,.6g}", row.unit)
    return table
