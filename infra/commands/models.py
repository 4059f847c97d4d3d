"""`millrace models …`: the registry's bundles, what differs between them, and which is served."""

import typer

app = typer.Typer(no_args_is_help=True, help="List, compare, promote and roll back bundles.")
