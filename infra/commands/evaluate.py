"""`millrace evaluate …`: how good models are on one's own tables."""

import typer

app = typer.Typer(no_args_is_help=True, help="Measure models on your own tables.")
