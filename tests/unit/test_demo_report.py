import json
from pathlib import Path
from typing import Any

import pytest

from infra.demo.report import REQUIRED_KEYS, Report


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value * 0.9, "high": value * 1.1}


def world_findings() -> dict[str, Any]:
    """Findings of a run on the synthetic world, smaller than life."""
    counts = dict.fromkeys((key for key in REQUIRED_KEYS if key.startswith(("events_", "dup", "malf", "dead"))), 7)
    item = {"item_id": "i1", "category": "music"}
    return {
        **counts,
        "data": "world",
        "seed": 7,
        "late_sent": 3,
        "too_late": 1,
        "event_to_slate_ms": [40.0, 60.0, 90.0],
        "event_to_slate_ms_p50": 60.0,
        "event_to_slate_ms_p99": 90.0,
        "recommend_ms": [5.0, 6.0, 9.0],
        "recommend_ms_p50": 6.0,
        "recommend_ms_p99": 9.0,
        "dag_runs": [{"dag_id": "lake_ingest", "run_id": "r", "state": "success", "seconds": 20.0, "start_s": 30.0}],
        "phases": [{"name": "seed", "start_s": 0.0, "seconds": 30.0}],
        "bundle_id": "b-1",
        "models": {"heads": {"click": {"auc": 0.7}, "like": {"auc": 0.6}}, "sources": {"als": {"recall@100": 0.4}}},
        "click_rate": {"millrace": interval(0.2), "popular": interval(0.1)},
        "click_rate_by_round": {"millrace": [0.1, 0.2], "popular": [0.1, 0.1]},
        "closed_loop": [
            {
                "bundle_ids": ["b-<1>"],
                "arms": {
                    arm: {"click_rate": interval(0.1), "watch_s_per_slate": 61.0, "age_days": 2.5, "coverage": 0.25}
                    for arm in ("millrace", "popular", "random", "oracle")
                },
                "gap_share": {"clicks": interval(0.6), "watch": interval(0.5), "few_events": None},
            }
        ],
        "taste_change": {
            "user_id": "u<1>",
            "category": "music",
            "events": 5,
            "before": [{"item_id": "i2", "category": "news"}],
            "after": [item],
            "before_share": 0.0,
            "after_share": 1.0,
        },
        "seconds": {"seed": 30.0},
        "memory_peak_mb": 4096.0,
    }


def test_a_report_is_written_whole_with_reasons_for_what_is_absent(tmp_path: Path) -> None:
    report = Report()
    report.add(**world_findings())
    report.absent("no ratings are held out in a synthetic world", "hr_at_10", "ndcg_at_10")
    json_path, html_path = report.write(tmp_path)
    found = json.loads(json_path.read_text())
    assert set(REQUIRED_KEYS) <= set(found)
    assert found["hr_at_10"] is None
    assert "held out" in found["absent"]["hr_at_10"]
    page = html_path.read_text()
    assert page.count("<svg") == 3
    assert "60% [54%, 66%]" in page and "61 s, 2.5 days, 25%" in page and "b-&lt;1&gt;" in page
    assert "u&lt;1&gt;" in page
    assert "src=" not in page
    assert not list(tmp_path.glob("*.partial"))


def test_a_key_that_is_neither_found_nor_explained_is_refused_by_name(tmp_path: Path) -> None:
    report = Report()
    report.add(**world_findings())
    with pytest.raises(KeyError, match="hr_at_10"):
        report.write(tmp_path)
    assert not list(tmp_path.iterdir())
