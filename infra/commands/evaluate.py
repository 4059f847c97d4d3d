"""`millrace evaluate …`: how good models are on one's own tables."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Measure models on your own tables.")
console = Console(highlight=False, soft_wrap=True)


@app.callback()
def _progress() -> None:
    """Measure models on your own tables."""
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("models").setLevel(logging.INFO)


@app.command()
def candidates(
    train: Annotated[
        Path, typer.Option(exists=True, help="Parquet or CSV: user_id, item_id[, weight, event_time_ms].")
    ],
    test: Annotated[Path, typer.Option(exists=True, help="user_id, item_id of what users took afterwards.")],
    negatives: Annotated[
        Path | None, typer.Option(exists=True, help="user_id, item_id to rank among; default: the whole catalogue.")
    ] = None,
    model: Annotated[str, typer.Option(help="als, item2item or popular.")] = "als",
    config: Annotated[Path | None, typer.Option(exists=True, help="JSON file of the model's settings.")] = None,
    tune: Annotated[int, typer.Option(min=0, help="Trials of a search for settings, on a part of --train.")] = 0,
    tune_limit: Annotated[float, typer.Option(min=0.001, help="Seconds after which no trial begins.")] = 1_800.0,
    k: Annotated[list[int] | None, typer.Option(min=1, help="Ranks to report; default: 10, 20 and 50.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of training, of the search and of the intervals.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the report there, as JSON.")] = None,
) -> None:
    """Train a candidate model on one table and measure how it ranks another."""
    from infra.commands import CommandError
    from models.interactions.evaluate import Evaluation, evaluate
    from models.interactions.recommenders import Kind
    from models.workspace import atomic_json

    if model not in list(Kind):
        raise CommandError(f"--model: got {model!r}; allowed: {', '.join(Kind)}.")
    ranks = {"ranks": tuple(k)} if k else {}
    asked = Evaluation(
        train=train,
        test=test,
        negatives=negatives,
        model=Kind(model),
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
    console.print(table)
    console.print(f"{report['model']} on {report['test_users']:,} test users, {report['protocol']}", markup=False)
    if out is not None:
        atomic_json(out, report)
        console.print(f"report: {out}", markup=False)
