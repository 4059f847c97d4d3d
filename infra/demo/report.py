"""What the demo found out, as `report.json` and a self-contained `report.html`."""

import json
from pathlib import Path
from typing import Any

from infra.demo.page import render_page

REQUIRED_KEYS = (
    "data",
    "seed",
    "events_produced",
    "events_in_lake",
    "duplicates_sent",
    "duplicates_removed",
    "malformed_sent",
    "dead_letters",
    "late_sent",
    "too_late",
    "events_lost",
    "event_to_slate_ms_p50",
    "event_to_slate_ms_p99",
    "recommend_ms_p50",
    "recommend_ms_p99",
    "dag_runs",
    "bundle_id",
    "models",
    "click_rate",
    "taste_change",
    "hr_at_10",
    "ndcg_at_10",
    "seconds",
    "memory_peak_mb",
)
"""Every report has these keys; one that does not apply is null, with its reason under `absent`."""


class Report:
    """Collects the demo's findings; `write` refuses a report with a key that was neither found nor explained."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._absent: dict[str, str] = {}

    def add(self, **values: Any) -> None:
        """Adds findings by key."""
        self._values.update(values)

    def absent(self, reason: str, *keys: str) -> None:
        """Says why these keys do not apply to this run."""
        self._absent.update(dict.fromkeys(keys, reason))

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def as_dict(self) -> dict[str, Any]:
        """The report in the order of `REQUIRED_KEYS`, other findings after them. Raises `KeyError` by name."""
        missing = [key for key in REQUIRED_KEYS if key not in self._values and key not in self._absent]
        if missing:
            raise KeyError(f"the report lacks {missing}: add a value, or say why it is absent")
        required = {key: self._values.get(key) for key in REQUIRED_KEYS}
        return {**required, **self._values, "absent": self._absent}

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Writes both files whole or not at all, and returns their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        found = self.as_dict()
        json_path, html_path = directory / "report.json", directory / "report.html"
        _replace(json_path, json.dumps(found, indent=2) + "\n")
        _replace(html_path, render_page(found))
        return json_path, html_path


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
