"""The first step of an erasure: from here on the user is refused, and has no row in the online store.

`python -m batch.erase_door --lake DIR --feature-repo DIR --digest SHA256 [--report FILE]`
Lake and store are told of every erasure that either of them knows, so that a store that was made anew refuses the same.
"""

import argparse
import sys
import time
from pathlib import Path

from batch.command import fail, write_report
from batch.door import open_store, refuse_in_lake, refused_by_lake
from features.backends import StoreUnavailableError
from features.erasure import ErasureError, checked_digest
from features.repo import FeatureRepoError


def shut_door(lake: Path, feature_repo: Path, digest: str, now_ms: int) -> dict[str, object]:
    """Refuses the user and removes their rows from the store; says how many, and since when they are refused.

    Raises `FeatureRepoError` and `StoreUnavailableError`.
    """
    with open_store(feature_repo) as store:
        at_ms = min(
            (known[digest] for known in (store.erasures(), refused_by_lake(lake)) if digest in known), default=now_ms
        )
        rows = store.erase_digest(digest, at_ms)
        for known, since_ms in refused_by_lake(lake).items():
            store.refuse_user(known, since_ms)
        refuse_in_lake(lake, store.erasures())
    return {"requested_ms": at_ms, "store_rows_removed": rows}


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m batch.erase_door", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--feature-repo", type=Path, required=True)
    parser.add_argument("--digest", required=True, help="SHA-256 of the user_id, in hexadecimal digits")
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args(arguments)
    now_ms = int(time.time() * 1000) if given.now_ms is None else given.now_ms
    try:
        digest = checked_digest(given.digest)
        write_report(shut_door(given.lake.resolve(), given.feature_repo, digest, now_ms), given.report)
    except (ErasureError, FeatureRepoError, StoreUnavailableError) as error:
        return fail("erase_door", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
