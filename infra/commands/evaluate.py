"""`millrace evaluate …`: how good models are on one's own tables."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from models.off_policy import PolicyReport

app = typer.Typer(no_args_is_help=True, help="Measure models on your own tables.")


@app.callback()
def group() -> None:
    """Measure models on your own tables."""


@app.command()
def policy(
    logs: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Parquet or CSV: models/off_policy/table.py.")
    ],
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Where to write the figures as JSON.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds, the trees and the intervals.")] = 0,
    clip: Annotated[float | None, typer.Option(help="Largest weight of a row; default: none.")] = None,
) -> None:
    """Estimate from logged propensities what a new policy would have got: IPS, SNIPS and doubly robust."""
    from rich.console import Console

    from models.off_policy import evaluate_policy, read_policy_log

    report = evaluate_policy(read_policy_log(logs), seed=seed, clip=clip)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_policy_table(report))
    mean = report.mean_weight
    unsupported = "unknown" if report.unsupported_share is None else f"at least {report.unsupported_share:.2%}"
    said = (
        f"{report.groups} groups",
        f"{report.rewarded:.0f} effective rewarded rows",
        f"mean weight {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]",
        f"unsupported {unsupported}",
        f"clipped {report.clipped_share:.2%} of rows",
    )
    console.print("; ".join(said), markup=False)
    for warning in report.warnings:
        console.print(f"warning: {warning}", markup=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")


def _policy_table(report: "PolicyReport") -> "Table":
    from rich.table import Table

    table = Table("", "value", "low", "high", "effective samples", "samples", "largest weight", box=None)
    for name, found in report.estimates.items():
        bounds = (f"{number:.5g}" for number in (found.value, found.low, found.high))
        table.add_row(name, *bounds, f"{found.ess:.0f}", str(found.samples), f"{found.max_weight:.2f}")
    return table
