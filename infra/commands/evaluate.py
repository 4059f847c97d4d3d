"""`millrace evaluate …`: how good models are on one's own tables."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from models.interactions import Kind

if TYPE_CHECKING:
    from models.off_policy import PolicyReport

app = typer.Typer(no_args_is_help=True, help="Measure models on your own tables.")


class SplitName(StrEnum):
    """Which rows of the table are asked."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    ALL = "all"


@app.command()
def candidates(
    train: Annotated[
        Path, typer.Option(exists=True, help="Parquet or CSV: user_id, item_id[, weight, event_time_ms].")
    ],
    test: Annotated[Path, typer.Option(exists=True, help="user_id, item_id of what users took afterwards.")],
    negatives: Annotated[
        Path | None, typer.Option(exists=True, help="user_id, item_id to rank among; default: the whole catalogue.")
    ] = None,
    model: Annotated[Kind, typer.Option(help="What is trained.")] = Kind.ALS,
    config: Annotated[Path | None, typer.Option(exists=True, help="JSON file of the model's settings.")] = None,
    tune: Annotated[int, typer.Option(min=0, help="Trials of a search for settings, on a part of --train.")] = 0,
    tune_limit: Annotated[float, typer.Option(min=0.001, help="Seconds after which no trial begins.")] = 1_800.0,
    k: Annotated[list[int] | None, typer.Option(min=1, help="Ranks to report; default: 10, 20 and 50.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of training, of the search and of the intervals.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the report there, as JSON.")] = None,
) -> None:
    """Train a candidate model on one table and measure how it ranks another."""
    from infra.commands import say, show_progress
    from models.interactions.evaluate import Evaluation, evaluate
    from models.workspace import atomic_json

    show_progress()
    ranks = {"ranks": tuple(k)} if k else {}
    asked = Evaluation(
        train=train,
        test=test,
        negatives=negatives,
        model=model,
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
    if out is not None:
        atomic_json(out, report)
    say(table)
    say(f"{report['model']} on {report['test_users']:,} test users, {report['protocol']}")
    if report["unknown_test_items"]:
        say(
            f"{report['unknown_test_items']:,} test rows are of items that training does not know: they count as missed"
        )
    if report["unknown_test_users"]:
        say(f"{report['unknown_test_users']:,} test users are unknown to training: they were given what is popular")


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


@app.command()
def policy(
    logs: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Parquet or CSV: models/off_policy/table.py.")
    ],
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Also write the figures there, as JSON.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds, the trees and the intervals.")] = 0,
    clip: Annotated[float | None, typer.Option(help="Largest weight of a row; default: none.")] = None,
) -> None:
    """Estimate from logged propensities what a new policy would have got: IPS, SNIPS and doubly robust."""
    from infra.commands import say
    from models.off_policy import evaluate_policy, read_policy_log
    from models.workspace import atomic_json

    report = evaluate_policy(read_policy_log(logs), seed=seed, clip=clip)
    if out is not None:
        atomic_json(out, report.to_json())
    mean = report.mean_weight
    unsupported = "unknown" if report.unsupported_share is None else f"at least {report.unsupported_share:.2%}"
    said = (
        f"{report.groups} groups",
        f"{report.rewarded:.0f} effective rewarded rows",
        f"mean weight {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]",
        f"unsupported {unsupported}",
        f"clipped {report.clipped_share:.2%} of rows",
    )
    say(_policy_table(report))
    say("; ".join(said))
    for warning in report.warnings:
        say(f"warning: {warning}")


def _policy_table(report: "PolicyReport") -> Table:
    table = Table("", "value", "low", "high", "effective samples", "samples", "largest weight", box=None)
    for name, found in report.estimates.items():
        bounds = (f"{number:.5g}" for number in (found.value, found.low, found.high))
        table.add_row(name, *bounds, f"{found.ess:.0f}", str(found.samples), f"{found.max_weight:.2f}")
    return table
