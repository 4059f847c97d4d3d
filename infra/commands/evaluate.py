"""`millrace evaluate …`: how good models are on one's own tables."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure models on your own tables.")


class SplitName(StrEnum):
    """Which rows of the table are asked."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    ALL = "all"


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
