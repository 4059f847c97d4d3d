"""`millrace experiments …`: who sees what, checked before the service takes it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from features.clock import wall_clock_ms
from infra.commands import CommandError, say
from infra.settings import load_settings

if TYPE_CHECKING:
    from serving.experiments import Experiments

app = typer.Typer(invoke_without_command=True, help="Check the experiments file, or say which arm a user is in.")

File = Annotated[Path | None, typer.Option(help="TOML; default: the stack's.")]


@app.callback()
def show(context: typer.Context, file: File = None) -> None:
    """Check the experiments file and the bundles that it names, and show arms, shares and settings."""
    if context.invoked_subcommand is not None:
        if file is not None:
            raise CommandError(f"--file stands before {context.invoked_subcommand}; put it behind.")
        return
    from infra.experiment_views import experiments_view, summary
    from models.bundle import loaded

    found = _read(file)
    for bundle_id in sorted(found.bundle_ids):
        loaded(load_settings().bundles_dir, bundle_id)
    say(experiments_view(found))
    for line in summary(found):
        say(line)


@app.command()
def assign(
    user: Annotated[str, typer.Argument(metavar="USER", help="user_id.")],
    file: File = None,
) -> None:
    """Say which arm a user is in now, and what each experiment says of them."""
    from infra.experiment_views import reasons

    found = _read(file)
    say(f"{user}: {found.assigned(user).name}")
    for line in reasons(found, user):
        say(line)


def _read(file: Path | None) -> "Experiments":
    from serving.experiments_file import read_experiments

    chosen = file or load_settings().experiments_file
    if not chosen.is_file():
        raise CommandError(f"no experiments file at {chosen}; copy infra/serving/experiments.toml there and change it.")
    return read_experiments(chosen).at(wall_clock_ms())
