"""`millrace rules …`: what people pin, boost and block by hand."""

from pathlib import Path
from typing import Annotated

import typer

from infra.commands import say

app = typer.Typer(no_args_is_help=True, help="Check the ranking service's rules file.")


@app.callback()
def _group() -> None:
    """Keeps `check` a command of its own while it is the only one."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML; serving/rules.example.toml shows each key.")],
) -> None:
    """Read a rules file as the ranking service would, and say what is in it or what is wrong."""
    from infra.views import rules_view
    from serving.rules import read_rules

    rules = read_rules(file)
    say(rules_view(rules))
    say(f"version {rules.version}: the ranking service takes this file")
