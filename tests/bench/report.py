"""Rows of figures and the file that keeps them: `var/bench/NAME.json`, with machine and commit."""

import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import psutil
from rich.table import Table

from infra.settings import ROOT


class BenchError(RuntimeError):
    """One sentence: an unknown name, or a benchmark that failed."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. `value` is None where it does not apply; `settings` say under which conditions it was taken."""

    name: str
    value: float | None
    unit: str
    settings: dict[str, Any] = field(default_factory=dict)


def keep(name: str, rows: list[Row]) -> None:
    """Writes `var/bench/NAME.json`."""
    path = ROOT / "var" / "bench" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {"machine": machine(), "commit": commit(), "taken_at": datetime.now(UTC).isoformat(timespec="seconds")}
    path.write_text(json.dumps({**described, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


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


def table(name: str, rows: list[Row]) -> Table:
    """The rows as a person reads them."""
    shown = Table(name, "value", "unit", box=None)
    for row in rows:
        shown.add_row(row.name, "–" if row.value is None else f"{row.value:,.6g}", row.unit)
    return shown
