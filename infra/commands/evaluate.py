"""`millrace evaluate …`: how good models are on one's own tables."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Measure models on your own tables.")


class CandidateModel(StrEnum):
    """`models.interactions.recommenders.Kind`, without what it imports."""

    ALS = "als"
    ITEM2ITEM = "item2item"
    POPULAR = "popular"


class SplitName(StrEnum):
    """Which rows of the table are asked."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    ALL = "all"


@app.command()
def candidates(
    train: Annotated[
        Path, typer.Option(exists=True, help="Parquet or CSV: user_id, item_id[, weight, event_time_ms].")
    ],
    test: Annotated[Path, typer.Option(exists=True, help="user_id, item_id of what users took afterwards.")],
    negatives: Annotated[
        Path | None, typer.Option(exists=True, help="user_id, item_id to rank among; default: the whole catalogue.")
    ] = None,
    model: Annotated[CandidateModel, typer.Option(help="What is trained.")] = CandidateModel.ALS,
    config: Annotated[Path | None, typer.Option(exists=True, help="JSON file of the model's settings.")] = None,
    tune: Annotated[int, typer.Option(min=0, help="Trials of a search for settings, on a part of --train.")] = 0,
    tune_limit: Annotated[float, typer.Option(min=0.001, help="Seconds after which no trial begins.")] = 1_800.0,
    k: Annotated[list[int] | None, typer.Option(min=1, help="Ranks to report; default: 10, 20 and 50.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of training, of the search and of the intervals.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the report there, as JSON.")] = None,
) -> None:
    """Train a candidate model on one table and measure how it ranks another."""
    from infra.commands import say, show_progress
    from models.interactions.evaluate import Evaluation, evaluate
    from models.interactions.recommenders import Kind
    from models.workspace import atomic_json

    show_progress()
    ranks = {"ranks": tuple(k)} if k else {}
    asked = Evaluation(
        train=train,
        test=test,
        negatives=negatives,
        model=Kind(model.value),
        config=config,
        tune=tune,
        tune_limit_s=tune_limit,
        seed=seed,
        **ranks,
    )
    report = evaluate(asked)
    table = Table("metric", "value", "95% interval", box=None)
    for name, (low, high) in report["intervals"].items():
        table.add_row(name, f"{report[name]:.4f}", f"{low:.4f} – {high:.4f}")
    if out is not None:
        atomic_json(out, report)
    say(table)
    say(f"{report['model']} on {report['test_users']:,} test users, {report['protocol']}")


@app.command()
def ranker(
    model: Annotated[Path, typer.Option(help="Directory that millrace train ranker wrote.")],
    examples: Annotated[Path, typer.Option(help="The table that it was trained from; with --split all, any.")],
    split: Annotated[SplitName, typer.Option(help="The split's part, or all rows.")] = SplitName.TEST,
    test: Annotated[Path | None, typer.Option(help="Table of the test rows, when they are apart.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the metrics there, as JSON.")] = None,
    baselines: Annotated[bool, typer.Option(help="Add LightGBM, single-task networks and the training rate.")] = False,
) -> None:
    """Measure a trained ranker on a part of a table, beside baselines when asked."""
    from infra.commands import say, show_progress
    from infra.ranker_view import ranker_view
    from models.tabular.run import evaluate
    from models.workspace import atomic_json

    show_progress()
    report = evaluate(model, examples, split=split.value, test=test, with_baselines=baselines)
    if out is not None:
        atomic_json(out, report)
    say(ranker_view(report))
