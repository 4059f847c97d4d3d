"""`millrace train …`: models from one's own tables."""

import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train models from your own tables.")


@app.command()
def ranker(
    examples: Annotated[Path, typer.Option(help="Parquet, a directory of it, or CSV: features, labels and split.")],
    config: Annotated[Path, typer.Option(help="JSON, TOML or YAML; its keys stand in models/tabular/config.py.")],
    out: Annotated[
        Path | None, typer.Option(help="New directory for the model; default: one in rankers/ of the stack's folder.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Table of the test rows, when they are apart.")] = None,
    metrics: Annotated[Path | None, typer.Option(help="Also write the test metrics there, as JSON.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of training; default: the configuration's.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow's, such as sqlite:///mlflow.db.")] = None,
) -> None:
    """Train a multitask network on a table and measure it on the test rows; start again to resume after a kill."""
    from infra.commands import say, show_progress
    from infra.ranker_view import ranker_view
    from infra.settings import load_settings
    from models.tabular.config import read_config

    chosen = read_config(config)
    from models.tabular.run import train  # torch takes seconds to import, a wrong configuration need not wait for it
    from models.workspace import atomic_json

    show_progress()
    if seed is not None:
        chosen = chosen.model_copy(update={"network": chosen.network.model_copy(update={"seed": seed})})
    where = out or load_settings().var_dir / "rankers" / f"ranker-{time.time_ns() // 1_000_000}"
    report = train(examples, chosen, where, test=test, tracking_uri=tracking_uri)
    if metrics is not None:
        atomic_json(metrics, report)
    say(ranker_view(report))
    say(f"model: {where}")
