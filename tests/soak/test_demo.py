"""The README's commands as a user types them, on the real thing and with the default sizes."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "var" / "demo" / "report.json"
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1_800)]


def stack_processes() -> list[psutil.Process]:
    """Processes whose command line names the demo's folder."""
    folder = str(ROOT / "var" / "demo" / "stack")
    return [p for p in psutil.process_iter(["cmdline"]) if folder in " ".join(p.info["cmdline"] or [])]


def test_the_demo_on_the_synthetic_world() -> None:
    subprocess.run(["make", "demo"], cwd=ROOT, check=True)
    found = json.loads(REPORT.read_text())
    assert found["events_lost"] == 0
    assert found["duplicates_removed"] == found["duplicates_sent"]
    assert found["click_rate"]["millrace"]["low"] > found["click_rate"]["popular"]["high"]
    assert found["taste_change"]["after_share"] > found["taste_change"]["before_share"]
    assert {run["state"] for run in found["dag_runs"]} == {"success"}
    assert not stack_processes()


def test_the_demo_on_movielens() -> None:
    subprocess.run(["make", "demo", "DATA=movielens"], cwd=ROOT, check=True)
    found = json.loads(REPORT.read_text())
    assert found["events_lost"] == 0
    assert found["hr_at_10"]["millrace"]["value"] > 0
    assert set(found["absent"]) >= {"click_rate", "taste_change"}
    assert not stack_processes()


def test_ctrl_c_ends_every_process() -> None:
    demo = subprocess.Popen(["make", "demo"], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(stack_processes()) < 5 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(stack_processes()) >= 5
    for process in psutil.Process(demo.pid).children(recursive=True):
        if "millrace" in " ".join(process.cmdline()) and "demo" in process.cmdline():
            process.send_signal(signal.SIGINT)
            break
    assert demo.wait(60) != 0
    assert not stack_processes()
