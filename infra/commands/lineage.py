"""`millrace lineage`: where a served slate comes from."""

from pathlib import Path
from typing import Annotated

import typer

from infra.commands import say
from infra.settings import load_settings


def lineage(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As the answer has it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a tree.")] = False,
) -> None:
    """Trace a served slate to its bundle, training runs, Delta versions and Kafka offsets."""
    from infra.commands.models import say_json
    from infra.lineage import Places
    from infra.lineage import lineage as traced
    from infra.lineage_view import lineage_view
    from models.registry import SQLITE, Registry

    settings = load_settings()
    uri = settings.mlflow_uri
    exists = not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).is_file()  # opening it would make it
    versions = Registry(uri).versions() if exists else []
    found = traced(
        request_id,
        Places(
            lake=settings.lake_dir,
            bundles_dir=settings.bundles_dir,
            workspace=settings.workspace_dir,
            request_log=settings.request_log_dir,
            versions={version.bundle_id: version for version in versions},
        ),
    )
    if as_json:
        say_json(found.to_json())
    else:
        say(lineage_view(found))
