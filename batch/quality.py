"""The quality gates: `python -m batch.quality --lake DIR --suite events [--suite items …] [--limits FILE]`.

Reads the tables without a JVM, holds them against their suites, builds Data Docs, and exits with 1 naming the
expectations that failed. The partitions they failed in stand in the lake's quarantine (`features.quarantine`) until a
run finds them repaired; until then whatever reads the table refuses to start.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from great_expectations.core.expectation_validation_result import ExpectationValidationResult

from batch.command import fail, write_report
from batch.data_docs import Judge
from batch.day_profile import Date
from batch.gates import GATES, MissingTableError, Request
from features.quality_limits import LimitsError, QualityLimits, SuiteLimits
from features.quarantine import ALL, Failure, Judgement, held_partitions, register

MAX_ROWS = 500_000
_SHOWN = ("observed_value", "unexpected_count", "element_count", "partial_unexpected_list")


@dataclass(frozen=True, kw_only=True)
class QualityRun:
    """One run of one or more gates."""

    lake: Path
    suites: tuple[str, ...]
    docs: Path
    """The site of this run's Data Docs."""
    run_name: str
    """Names the run's page in it."""
    now_ms: int
    limits: QualityLimits
    max_rows: int = MAX_ROWS
    asked: frozenset[Date] = frozenset()


def judge(run: QualityRun) -> dict[str, object]:
    """Runs the gates. A suite's `failures` are empty when its gate is open; otherwise they are in quarantine.

    Raises `MissingTableError` when a table does not exist; then no gate is judged.
    """
    judge = Judge(run.now_ms)
    suites = [_judge_suite(run, suite, judge) for suite in run.suites]
    page = judge.publish(run.docs, run.run_name)
    return {"suites": suites, "docs": str(page), "site": str(run.docs / "index.html")}


def _judge_suite(run: QualityRun, suite: str, judge: Judge) -> dict[str, object]:
    limits: SuiteLimits = getattr(run.limits, suite)
    before = held_partitions(run.lake, suite)
    request = Request(
        lake=run.lake,
        now_ms=run.now_ms,
        limits=limits,
        held=frozenset(before),
        max_rows=run.max_rows,
        asked=run.asked,
    )
    judged = GATES[suite](request)
    failures: list[Failure] = []
    expectations = 0
    for check in judged.checks:
        result = judge.validate(check.rows, check.suite)
        expectations += len(result.results)
        failures += _failures((each for each in result.results if not each.success), check.rows)
    rows = judged.checks[0].rows
    read = map(str, rows["event_date"].unique()) if "event_date" in rows else ()
    register(
        run.lake,
        Judgement(
            suite=suite,
            table_version=judged.version,
            judged_at_ms=run.now_ms,
            partitions={*before, *read},
            failures=failures,
        ),
    )
    return {
        "suite": suite,
        "version": judged.version,
        "rows": len(rows),
        "expectations": expectations,
        "failures": [vars(failure) for failure in failures],
        "released": sorted(before.keys() - {failure.partition for failure in failures}),
    }


def _failures(broken: Iterable[ExpectationValidationResult], rows: pd.DataFrame) -> Iterator[Failure]:
    """Names the partitions: the event dates of the rows that break the expectation, else the table as a whole."""
    for result in broken:
        at = result.result.get("unexpected_index_list") or ()
        per_date = rows.loc[list(at), "event_date"].value_counts() if "event_date" in rows else pd.Series(dtype="int64")
        mostly = _kwargs(result).get("mostly", 1)
        allowed = (
            {date: (1 - mostly) * n for date, n in rows["event_date"].value_counts().items()} if mostly < 1 else {}
        )
        dates = [(date, n) for date, n in per_date.items() if n > allowed.get(date, 0)]
        for date, count in dates:
            yield _failure(str(date), result, {"unexpected_count": int(count)})
        if not dates:
            yield _failure(ALL, result, {})


def _kwargs(result: ExpectationValidationResult) -> dict[str, Any]:
    assert result.expectation_config is not None  # Great Expectations always says what it judged
    return dict(result.expectation_config.kwargs)


def _failure(partition: str, result: ExpectationValidationResult, of_partition: dict[str, object]) -> Failure:
    assert result.expectation_config is not None  # as above
    kwargs = _kwargs(result)
    shown = {key: result.result[key] for key in _SHOWN if key in result.result}
    return Failure(
        partition=partition,
        expectation=result.expectation_config.type,
        column=",".join(kwargs.get("column_list") or [kwargs.get("column", "")]),
        observed=json.dumps({**shown, **of_partition}, default=str) if shown else str(result.exception_info)[:300],
    )


def _given_run(given: argparse.Namespace, now_ms: int) -> QualityRun:
    """The run that the flags describe. Raises `LimitsError`."""
    lake = given.lake.absolute()
    limits = QualityLimits.read(given.limits)
    flags = {name: got for name in ("min_rows", "max_age_ms") if (got := getattr(given, name)) is not None}
    of_suites = {suite: getattr(limits, suite).model_copy(update=flags) for suite in given.suite}
    return QualityRun(
        lake=lake,
        suites=tuple(given.suite),
        docs=given.docs or lake.parent / "data_docs" / given.suite[0],
        run_name=given.run_name or str(now_ms),
        now_ms=now_ms,
        limits=limits.model_copy(update=of_suites),
        max_rows=given.max_rows,
        asked=frozenset(given.date),
    )


def _say(report: dict[str, object], docs_url: str | None) -> bool:
    """Writes one line a shut gate and one on where the docs are; whether every gate is open."""
    suites = report["suites"]
    assert isinstance(suites, list)  # judge builds it
    for suite in suites:
        broken = sorted({f"{each['expectation']}({each['column']})" for each in suite["failures"]})
        if broken:
            where = ", ".join(sorted({each["partition"] for each in suite["failures"]}))
            sys.stderr.write(f"quality: the gate {suite['suite']} is closed for {where}: {', '.join(broken)}.\n")
        if suite["released"]:
            sys.stderr.write(f"quality: {suite['suite']}: out of quarantine: {', '.join(suite['released'])}.\n")
    page = Path(str(report["docs"]))
    url = f"{docs_url}/{quote(page.parent.name)}/{quote(page.name)}" if docs_url else page.as_uri()
    sys.stderr.write(f"quality: Data Docs: {url}\n")
    return not any(suite["failures"] for suite in suites)


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0 when every gate is open; 1 with a sentence a gate that is closed or cannot judge."""
    parser = argparse.ArgumentParser(prog="python -m batch.quality", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--suite", choices=sorted(GATES), action="append", required=True)
    parser.add_argument("--limits", type=Path, help="TOML of `features.quality_limits`; default: its defaults")
    parser.add_argument("--docs", type=Path, help="folder of the Data Docs; default: LAKE/../data_docs/SUITE")
    parser.add_argument("--docs-url", help="where the folder of the docs' folder is served, to say it in the log")
    parser.add_argument("--run-name", help="name of the run's page; default: now in milliseconds")
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    parser.add_argument("--date", type=Date.fromisoformat, action="append", default=[], help="one more day to judge")
    parser.add_argument("--min-rows", type=int)
    parser.add_argument("--max-age-ms", type=int)
    parser.add_argument("--max-rows", type=int, default=MAX_ROWS, help="rows judged, in whole partitions")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args(arguments)
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    try:
        report = judge(_given_run(given, int(time.time() * 1000) if given.now_ms is None else given.now_ms))
    except (MissingTableError, LimitsError) as error:
        return fail("quality", error)
    write_report(report, given.report)
    return 0 if _say(report, given.docs_url) else 1


if __name__ == "__main__":
    sys.exit(main())
