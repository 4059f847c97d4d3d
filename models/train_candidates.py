"""`python -m models.train_candidates`: trains every candidate source from the lake and reports their recall.

Hyper-parameters of ALS are chosen on validation, the report is of test, and what is kept is trained on everything, but
for ALS, which leaves out the users who judge the ranker that reads its factors (`models.affinity`). Where one machine
does not hold the interactions, `--als-factors` takes the factors that Spark made (`batch/als.py`).
"""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from features.names import LakeTables
from models import refusal
from models.affinity import without_fold
from models.als.spark_factors import SparkFactors, read_factors
from models.arrays import save_arrays
from models.evaluate_sources import evaluate_sources, index_recall, questions
from models.item_table import ItemTable, train_item_table
from models.lake import EventLog, read_events, read_items
from models.sources.merge import DEFAULT_QUOTAS
from models.splits import time_split
from models.train_sources import SourcesConfig, feedback, train_als, train_sources
from models.workspace import CANDIDATES, REPORT, atomic_json, new_run

log = logging.getLogger(__name__)

TUNING_GRID: tuple[dict[str, float], ...] = (
    {"regularization": 1.0, "alpha": 2.0},
    {"regularization": 30.0, "alpha": 5.0},
    {"regularization": 100.0, "alpha": 5.0},
    {"regularization": 100.0, "alpha": 20.0},
    {"regularization": 300.0, "alpha": 40.0},
    {"regularization": 1000.0, "alpha": 100.0},
    {"regularization": 1000.0, "alpha": 300.0},
)
"""What ALS chooses from by recall on validation: little to strong shrinkage, weak to strong confidence."""


def tune(events: EventLog, item_table: ItemTable, config: SourcesConfig, seed: int) -> SourcesConfig:
    """The configuration of the grid with the best ALS recall on the validation part. Never looks at test."""
    split = time_split(events.time_ms_N)
    start_ms = split.validation_start_ms
    before, after = (events.where(part(events.time_ms_N)) for part in (split.train, split.validation))
    asked = questions(before, after, item_table, start_ms, seed)
    matrix = feedback(before, len(item_table))
    tried = []
    for choice in TUNING_GRID:
        candidate = config.model_copy(update={"als": config.als.model_copy(update=choice)})
        metrics = evaluate_sources({"als": train_als(matrix, candidate.als, seed)}, asked)["als"]
        log.info("tuning als %s: recall@100 %.4f", choice, metrics["recall@100"])
        tried.append(((metrics["recall@100"], metrics["mrr"]), candidate))
    return max(tried, key=lambda pair: pair[0])[1]


def evaluate_on_test(
    events: EventLog, item_table: ItemTable, config: SourcesConfig, seed: int, given: SparkFactors | None = None
) -> dict[str, Any]:
    """Sources trained on all that is before the test part, asked at its start.

    ALS factors that are `given` and know the test part are left out, since their recall would be none.
    """
    split = time_split(events.time_ms_N)
    instant_ms = split.test_start_ms
    is_test_N = split.test(events.time_ms_N)
    before, after = events.where(~is_test_N), events.where(is_test_N)
    sources = train_sources(before, item_table, config, seed, given.source if given else None)
    asked = questions(before, after, item_table, instant_ms, seed)
    found = index_recall(sources["als"], asked)
    if given and given.newest_event_ms >= instant_ms:
        log.warning(
            "the ALS factors know the test part, so their recall is not reported: for that, "
            "make others by batch/als.py --before-ms %d",
            instant_ms,
        )
        del sources["als"]
    return {
        "sources": evaluate_sources(sources, asked),
        "index_recall": found,
        "test_users": len(asked),
        "test_start_ms": instant_ms,
        "quotas": DEFAULT_QUOTAS,
    }


def train(lake: Path, workspace: Path, seed: int, run_id: str, als_factors: Path | None = None) -> dict[str, Any]:
    """Runs the whole training and leaves a run of candidates in the workspace; returns its report.

    `als_factors` is a directory that `batch.als` wrote, in place of an ALS that is tuned and trained here.
    """
    started = time.monotonic()
    items, items_version = read_items(lake)
    item_table = train_item_table(items)
    events, events_version = read_events(lake, item_table)
    log.info("%d events of %d users, %d items", len(events), len(events.user_ids), len(item_table))
    given = read_factors(als_factors, item_table.item_ids) if als_factors else None
    config = SourcesConfig() if given else tune(events, item_table, SourcesConfig(), seed)
    report = evaluate_on_test(events, item_table, config, seed, given)
    als = given.source if given else train_als(feedback(without_fold(events, 0), len(item_table)), config.als, seed)
    sources = train_sources(events, item_table, config, seed, als)
    report |= {
        "run_id": run_id,
        "seed": seed,
        "config": config.model_dump() | ({"als": given.config} if given else {}),
        "als_knows_judges": given is not None,
        "events": len(events),
        "items": len(item_table),
        "delta_versions": {LakeTables().items: items_version, LakeTables().silver_events: events_version},
        "seconds": time.monotonic() - started,
    }
    with new_run(workspace, CANDIDATES, run_id) as draft:
        save_arrays(draft / "items.npz", item_table.to_arrays())
        for name, source in sources.items():
            save_arrays(draft / "sources" / f"{name}.npz", source.to_arrays())
        atomic_json(draft / REPORT, report)
    log.info("run %s: merged recall %.3f in %.1f s", run_id, report["sources"]["merged"]["recall"], report["seconds"])
    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, required=True, help="root of the Delta tables")
    parser.add_argument("--workspace", type=Path, required=True, help="where the run is left")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--now-ms", type=int, help="names the run (default: the wall clock)")
    parser.add_argument("--run-id", help="name of the run (default: from the instant)")
    parser.add_argument(
        "--als-factors",
        type=Path,
        help="factors by batch/als.py, in place of training ALS here; the ranker then does without them",
    )
    parser.add_argument("--report", type=Path, help="also write the report there")
    flags = parser.parse_args()
    now_ms = flags.now_ms if flags.now_ms is not None else time.time_ns() // 1_000_000
    run_id = flags.run_id or f"{CANDIDATES}-{now_ms}"
    report = train(flags.lake, flags.workspace, flags.seed, run_id, flags.als_factors)
    if flags.report:
        atomic_json(flags.report, report)


if __name__ == "__main__":
    refusal.run(main)
