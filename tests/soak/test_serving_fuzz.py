"""A hundred thousand random and damaged requests: no crash, no hang, no wrong status, no memory that grows."""

from pathlib import Path

import pytest

from features.names import Topics
from tests.fuzz_requests import fire
from tests.ranking_service import promoted, ranking_service

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3_600)]
WARM_UP, CALLS = 20_000, 100_000
MAX_GROWTH = 1.05
"""Of the resident memory between the warm-up and the end; an allocator's noise is below it."""


def test_a_hundred_thousand_requests(tmp_path: Path) -> None:
    request_log = ("--request-log", str(tmp_path / "requests"))
    with ranking_service(tmp_path, None, Topics(version="fuzz"), *request_log) as service:
        promoted(service)
        fire(service.address, seed=1, calls=WARM_UP)
        before = service.resident_bytes()
        fire(service.address, seed=2, calls=CALLS)
        after = service.resident_bytes()
        assert service.process.poll() is None
        assert "Traceback" not in service.log.read_text()
    assert after < before * MAX_GROWTH, f"{before / 1e6:.0f} MB after the warm-up, {after / 1e6:.0f} MB at the end"
