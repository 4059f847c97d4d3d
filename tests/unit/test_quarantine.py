"""The register of refused partitions: what one judgement says of a day, another of other days does not take back."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import deltalake
import pytest

from features import quarantine
from features.quarantine import ALL, Failure, Judgement, held_partitions, register


def judgement(judged: Collection[str], failed: Collection[str] = (), suite: str = "events") -> Judgement:
    failures = [Failure(partition=each, expectation="rule", column="c", observed="{}") for each in failed]
    return Judgement(suite=suite, table_version=1, judged_at_ms=1, partitions=judged, failures=failures)


def held(lake: Path, suite: str = "events") -> list[str]:
    return list(held_partitions(lake, suite))


def test_a_partition_is_shut_until_it_is_judged_sound(tmp_path: Path) -> None:
    register(tmp_path, judgement(["d1"]))
    assert not any(tmp_path.iterdir()), "nothing was ever shut"
    register(tmp_path, judgement(["d1", "d2"], ["d1", "d2"]))
    register(tmp_path, judgement(["i1"], ["i1"], "items"))
    register(tmp_path, judgement(["d1", "d3"], ["d3"]))
    assert held(tmp_path) == ["d2", "d3"], "d2 was not looked at"
    register(tmp_path, judgement(["d2", "d3"]))
    assert (held(tmp_path), held(tmp_path, "items")) == ([], ["i1"])


def test_the_table_as_a_whole_is_judged_by_every_run(tmp_path: Path) -> None:
    register(tmp_path, judgement(["d1"], [ALL]))
    register(tmp_path, judgement(["d2"]))
    assert held(tmp_path) == []


def test_judgements_that_end_at_the_same_time_all_count(tmp_path: Path) -> None:
    days = [f"d{n}" for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda day: register(tmp_path, judgement([day], [day])), days))
    assert held(tmp_path) == days
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda day: register(tmp_path, judgement([day])), days[:-1]))
    assert held(tmp_path) == days[-1:]


def test_a_day_that_another_run_shuts_meanwhile_stays_shut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between what this run has read of the register and its commit."""
    register(tmp_path, judgement(["d1"], ["d1"]))
    write, others = deltalake.write_deltalake, [judgement(["d9"], ["d9"])]

    def beaten(*given: object, **named: object) -> None:
        if others:
            register(tmp_path, others.pop())
        write(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(quarantine, "write_deltalake", beaten)
    register(tmp_path, judgement(["d1", "d2"], ["d2"]))
    assert held(tmp_path) == ["d2", "d9"]
