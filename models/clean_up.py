"""`python -m models.clean_up`: removes bundles and training runs that nobody can ask for again.

Never goes: the champion, the champions before it that a roll-back may reach, whatever an alias of the registry points
at (the challenger among them), and whatever a file of `--named-in` mentions, such as the experiments'. A bundle that
went stays in the registry, with its metrics and gates; `millrace models list` says that its directory is not there.
"""

import argparse
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from features.names import MS_PER_DAY
from features.retention import Retention, RetentionError
from models import refusal
from models.bundle import MANIFEST
from models.champions import promotion_lock, read_champions
from models.registry import Registry
from models.workspace import CANDIDATES, LATEST, RANKER, atomic_json, latest_run

log = logging.getLogger(__name__)

_BUNDLE_ID = re.compile(r"bundle-[0-9a-f]{12}")
DRAFT_DAYS = 1
"""Age at which a directory that was never finished belongs to a process that has died."""


def clean_bundles(
    bundles_dir: Path, registry: Registry, retention: Retention, named_in: Sequence[Path], now_ms: int, *, dry_run: bool
) -> list[Path]:
    """Removes what may go, oldest first, and names it. Raises `RefusalError` while a promotion is under way."""
    with promotion_lock(bundles_dir):
        kept = protected(bundles_dir, registry, retention, named_in)
        unused = [
            path
            for path in _by_age(bundles_dir, f"*/{MANIFEST}")
            if path.name not in kept and _age_days(path, now_ms) >= retention.bundle_days
        ]
        gone = [*unused, *_abandoned(bundles_dir, now_ms)]
        if not dry_run:
            for path in gone:
                _remove(path)
    return gone


def protected(bundles_dir: Path, registry: Registry, retention: Retention, named_in: Sequence[Path]) -> set[str]:
    """The bundles that must stay, whatever their age. Raises `RefusalError` when that cannot be found out."""
    champions = read_champions(bundles_dir)
    kept = {*champions.before[-retention.bundles_kept :], *registry.aliases().values()}
    kept |= {champions.bundle_id} if champions.bundle_id is not None else set()
    for file in named_in:
        kept |= set(_BUNDLE_ID.findall(file.read_text())) if file.exists() else set()
    return kept


def clean_runs(workspace: Path, retention: Retention, now_ms: int, *, dry_run: bool) -> list[Path]:
    """Removes the training runs that are past their time, but the latest of each kind, and names them."""
    gone = []
    for kind in (CANDIDATES, RANKER):
        folder = workspace / kind
        if not (folder / LATEST).exists():
            continue
        latest = latest_run(workspace, kind)
        runs = [path for path in _by_age(workspace, f"{kind}/[!.]*/*") if path != latest]
        gone += [path for path in runs if _age_days(path, now_ms) >= retention.training_runs_days]
        gone += _abandoned(folder, now_ms)
    if not dry_run:
        for path in gone:
            _remove(path)
    return gone


def _by_age(root: Path, files: str) -> list[Path]:
    """The directories of these files, oldest first."""
    found = {file.parent for file in root.glob(files)}
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def _abandoned(folder: Path, now_ms: int) -> Iterator[Path]:
    for path in sorted([*folder.glob(".*.draft-*"), *folder.glob(".*.removed")]):
        if path.is_dir() and _age_days(path, now_ms) >= DRAFT_DAYS:
            yield path


def _age_days(path: Path, now_ms: int) -> float:
    return (now_ms - path.stat().st_mtime * 1000) / MS_PER_DAY


def _remove(path: Path) -> None:
    """Out of sight in one step, so that nobody sees a part of it."""
    hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.removed")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def clean_up(
    bundles_dir: Path,
    workspace: Path,
    tracking_uri: str,
    retention: Retention,
    named_in: Sequence[Path],
    now_ms: int,
    *,
    dry_run: bool,
) -> dict[str, Any]:
    """Both; says what went, with the bytes before and after."""
    before = _bytes(bundles_dir) + _bytes(workspace)
    bundles: list[Path] = []
    if bundles_dir.is_dir():
        bundles = clean_bundles(bundles_dir, Registry(tracking_uri), retention, named_in, now_ms, dry_run=dry_run)
    runs = clean_runs(workspace, retention, now_ms, dry_run=dry_run)
    return {
        "dry_run": dry_run,
        "bundles_removed": [path.name for path in bundles],
        "training_runs_removed": [f"{path.parent.name}/{path.name}" for path in runs],
        "bytes_before": before,
        "bytes_after": _bytes(bundles_dir) + _bytes(workspace),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, required=True, help="where bundles and champion.json are")
    parser.add_argument("--workspace", type=Path, required=True, help="where the training runs are")
    parser.add_argument("--tracking-uri", required=True, help="MLflow's")
    parser.add_argument("--retention", type=Path, help="TOML of features.retention; absent: its defaults")
    parser.add_argument("--named-in", type=Path, action="append", default=[], help="a file that names bundles to keep")
    parser.add_argument("--dry-run", choices=("true", "false"), default="false", type=str.lower)
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    parser.add_argument("--report", type=Path, help="also write the report there")
    flags = parser.parse_args()
    now_ms = flags.now_ms if flags.now_ms is not None else time.time_ns() // 1_000_000
    try:
        retention = Retention.read(flags.retention)
    except RetentionError as error:
        raise refusal.RefusalError(str(error)) from None
    places = (flags.bundles, flags.workspace, flags.tracking_uri)
    report = clean_up(*places, retention, flags.named_in, now_ms, dry_run=flags.dry_run == "true")
    log.info("%s", json.dumps(report))
    if flags.report:
        atomic_json(flags.report, report)


if __name__ == "__main__":
    refusal.run(main)
