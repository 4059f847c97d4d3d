"""ALS by Spark MLlib, for what one machine's memory does not hold: the lake's events into factors as Parquet.

    spark-submit batch/als.py --lake LAKE --out DIR
    python -m models.train_candidates --lake LAKE --workspace W --als-factors DIR

The loss is that of `models.als` with the unobserved weight 1, but MLlib scales a row's regularisation by the number of
its observed pairs alone (the weighted-lambda of Zhou et al., AAIM 2008). `models.als.spark_factors` reads the result.
Training reports the recall of factors that know nothing of its test part: those made with `--before-ms` at its start.
The ranker, which reads factors that do not know its judges (`models.affinity`), does without these.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql.functions import expr, row_number

from batch.command import fail, write_report
from batch.lake import TABLES, read_table
from batch.session import open_session
from features.interest import EVENT_WEIGHTS, MAX_ITEM_WEIGHT

ITEM_FACTORS, USER_FACTORS, CONFIG = "item_factors", "user_factors", "als.json"
SIDES = {"user_id": "user", "item_id": "item"}
"""The ids of an interest and the columns of their numbers."""


class AlsInputError(ValueError):
    """Interests that cannot be factorised."""


@dataclass(frozen=True, kw_only=True)
class AlsRun:
    """Hyper-parameters, as `models.als.AlsConfig` names them."""

    embedding_dim: int = 64
    regularization: float = 0.05
    """Times the number of a row's observed pairs."""
    alpha: float = 2.0
    """Confidence of an observed pair is alpha times its weight, and must be above 1, that of every other pair."""
    epochs: int = 15
    seed: int = 0
    blocks: int = 10
    """Parts of the work on each side."""


def interests(events: DataFrame) -> DataFrame:
    """`user_id, item_id, weight` of the pairs of positive weight, by the same rule as `models.history.collapse`."""
    weights = " ".join(f"WHEN '{kind.value}' THEN {weight}D" for kind, weight in EVENT_WEIGHTS.items())
    total = expr(f"least(sum(CASE event_type {weights} END), {MAX_ITEM_WEIGHT}D)").alias("weight")
    return events.groupBy("user_id", "item_id").agg(total).where("weight > 0")


def factorise(pairs: DataFrame, run: AlsRun) -> tuple[DataFrame, DataFrame]:
    """`user_id, factors` and `item_id, factors` of the interests. Rows without interests have none.

    Raises `AlsInputError` when there are no interests, or when some are no more confident than a pair not observed.
    """
    least = pairs.agg({"weight": "min"}).first()
    if least is None or least[0] is None:
        raise AlsInputError("ALS: the events hold no pair of positive weight; let users act on items first.")
    if run.alpha * least[0] <= 1:
        raise AlsInputError(
            f"ALS: alpha {run.alpha} times the least weight {least[0]} is not above 1, the confidence of a pair that "
            f"was not observed; take alpha above {1 / least[0]}."
        )
    numbered = pairs
    numbers = {name: _numbers(pairs, name, column).persist() for name, column in SIDES.items()}
    for name, of_side in numbers.items():
        numbered = numbered.join(of_side, name)
    # MLlib's confidence is 1 + alpha * rating.
    model = ALS(
        rank=run.embedding_dim,
        maxIter=run.epochs,
        regParam=run.regularization,
        alpha=1.0,
        implicitPrefs=True,
        seed=run.seed,
        numUserBlocks=run.blocks,
        numItemBlocks=run.blocks,
        userCol="user",
        itemCol="item",
        ratingCol="rating",
    ).fit(numbered.selectExpr("user", "item", f"CAST({run.alpha}D * weight - 1 AS FLOAT) AS rating"))
    users, items = (
        numbers[name].join(found.selectExpr(f"id AS {column}", "features AS factors"), column).select(name, "factors")
        for (name, column), found in zip(SIDES.items(), (model.userFactors, model.itemFactors), strict=True)
    )
    return users, items


def _numbers(pairs: DataFrame, name: str, column: str) -> DataFrame:
    """MLlib wants whole numbers for ids: their places in order."""
    return pairs.select(name).distinct().withColumn(column, row_number().over(Window.orderBy(name)))


def run_als(spark: SparkSession, lake: Path, out: Path, run: AlsRun, before_ms: int | None = None) -> dict[str, object]:
    """Factorises the lake's events, or those before an instant, and puts `out` in place as a whole.

    Returns what it is made of.
    """
    events = read_table(spark, lake, TABLES.silver_events)
    if before_ms is not None:
        events = events.where(f"event_time_ms < {before_ms}")
    pairs = interests(events).persist()
    users, items = factorise(pairs, run)
    draft = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    users.write.parquet(str(draft / USER_FACTORS))
    items.write.parquet(str(draft / ITEM_FACTORS))
    newest = events.agg({"event_time_ms": "max"}).first()
    report: dict[str, object] = {
        "config": asdict(run),
        "pairs": pairs.count(),
        "items": items.count(),
        "newest_event_ms": newest[0] if newest else None,
    }
    (draft / CONFIG).write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    draft.rename(out)
    return report


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="als", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="directory of the factors, replaced as a whole")
    for name, default in asdict(AlsRun()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--before-ms", type=int, help="leave events from this instant on out (default: none)")
    parser.add_argument("--report", type=Path)
    given = vars(parser.parse_args(arguments))
    lake, out, report = given.pop("lake").resolve(), given.pop("out").resolve(), given.pop("report")
    before_ms = given.pop("before_ms")
    try:
        write_report(run_als(open_session("als"), lake, out, AlsRun(**given), before_ms), report)
    except AlsInputError as error:
        return fail("als", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
