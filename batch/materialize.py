"""Materialises the daily views to Feast's online store: `python -m batch.materialize --feature-repo DIR`."""

import argparse
import datetime
import sys
import time
from pathlib import Path

from batch.command import fail
from features.daily import DAILY_VIEWS
from features.names import MS_PER_DAY
from features.repo import FeatureRepoError, store_location
from features.tiles import DAY_TILE_MS, tile_start


def materialize_daily(feature_repo: Path, now_ms: int) -> list[str]:
    """Sends the newest rows of the last two days' ends to the online store; returns the views' names.

    Raises `FeatureRepoError` when the directory is not a feature repo of this project.
    """
    store_location(feature_repo)
    from feast import FeatureStore  # seconds to import: not before the flags are known to be right

    names = [view.name for view in DAILY_VIEWS]
    start_ms = tile_start(now_ms, DAY_TILE_MS) - 2 * MS_PER_DAY
    FeatureStore(repo_path=str(feature_repo)).materialize(_instant(start_ms), _instant(now_ms), feature_views=names)
    return names


def _instant(time_ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time_ms / 1000, tz=datetime.UTC)


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m batch.materialize", description=__doc__)
    parser.add_argument("--feature-repo", type=Path, required=True)
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    given = parser.parse_args(arguments)
    try:
        materialize_daily(given.feature_repo, int(time.time() * 1000) if given.now_ms is None else given.now_ms)
    except FeatureRepoError as error:
        return fail("materialize", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
