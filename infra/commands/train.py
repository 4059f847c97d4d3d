"""`millrace train …`: models from one's own tables."""

import typer

app = typer.Typer(no_args_is_help=True, help="Train models from your own tables.")
