"""The last step of an erasure: a scan that confirms it, and the report.

`python -m batch.erase_report --lake DIR --feature-repo DIR --digest SHA256 --reports DIR [--also DIR …]`
It writes `DIGEST.json`, for programs, and `DIGEST.md`, for people, and fails while anything is left.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batch.command import fail, write_report
from batch.door import open_store, refused_by_lake
from batch.user_traces import files_that_mention
from features.backends import StoreUnavailableError
from features.erasure import ErasureError, ages_out, checked_digest, digest_of
from features.repo import FeatureRepoError


def confirm(lake: Path, feature_repo: Path, digest: str, also: list[Path], now_ms: int) -> dict[str, Any]:
    """What a scan of store and files finds of the user, and what ages out when.

    Raises `ErasureError` where nobody has asked for the erasure, `FeatureRepoError` and `StoreUnavailableError`.
    """
    with open_store(feature_repo) as store:
        requested_ms = store.erasures().get(digest)
        in_store = any(digest_of(user_id) == digest for user_id in store.user_ids())
    if requested_ms is None or digest not in refused_by_lake(lake):
        raise ErasureError(f"no erasure of {digest} is known to store and lake: run erase_door first.")
    roots = [root for root in (lake, *also) if root.is_dir()]
    return {
        "digest": digest,
        "requested_ms": requested_ms,
        "confirmed_ms": now_ms,
        "in_the_store": in_store,
        "files_that_mention_the_user": [str(file) for file in files_that_mention(roots, digest)],
        "scanned": [str(root) for root in roots],
        "ages_out": [asdict(each) for each in ages_out(requested_ms)],
        "stays": "aggregates of items, creators and categories, in which nobody can be told apart",
    }


def is_clean(report: dict[str, Any]) -> bool:
    """Whether the scan has found nothing."""
    return not report["in_the_store"] and not report["files_that_mention_the_user"]


def readable(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    found = [f"- {file}" for file in report["files_that_mention_the_user"]]
    found += ["- the online store"] if report["in_the_store"] else []
    aging = [f"| {each['what']} | {each['until']} | {each['how']} |" for each in report["ages_out"]]
    lines = [
        f"# Erasure of {report['digest']}",
        f"Asked for at {_instant(report['requested_ms'])}, confirmed at {_instant(report['confirmed_ms'])}. "
        "Refused since the first of the two.",
        "## The scan found",
        *(found or ["Nothing, in the online store and below:", *(f"- {root}" for root in report["scanned"])]),
        "## What ages out",
        "\n".join(["| what | gone after | how |", "|---|---|---|", *aging]),
        f"What stays: {report['stays']}.",
    ]
    return "\n\n".join(lines) + "\n"


def _instant(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, tz=UTC).isoformat(timespec="seconds")


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0; 1 with one sentence where something is left or the scan cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m batch.erase_report", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--feature-repo", type=Path, required=True)
    parser.add_argument("--digest", required=True, help="SHA-256 of the user_id, in hexadecimal digits")
    parser.add_argument("--also", type=Path, action="append", default=[], help="one more directory to scan")
    parser.add_argument("--docs", type=Path, help="Data Docs of the quality gates; default: LAKE/../data_docs")
    parser.add_argument("--reports", type=Path, required=True, help="directory of the reports")
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    given = parser.parse_args(arguments)
    now_ms = int(time.time() * 1000) if given.now_ms is None else given.now_ms
    try:
        digest = checked_digest(given.digest)
        lake = given.lake.resolve()
        roots = [*given.also, given.docs or lake.parent / "data_docs"]
        report = confirm(lake, given.feature_repo, digest, roots, now_ms)
    except (ErasureError, FeatureRepoError, StoreUnavailableError) as error:
        return fail("erase_report", error)
    write_report(report, given.reports / f"{digest}.json")
    (given.reports / f"{digest}.md").write_text(readable(report))
    if not is_clean(report):
        left = json.dumps(report["files_that_mention_the_user"])
        return fail("erase_report", ErasureError(f"data of the user is left: {left}; run erase_lake again."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
