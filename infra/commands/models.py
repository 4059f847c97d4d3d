"""`millrace models …`: the registry's bundles, what differs between them, and which is served."""

import getpass
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.clock import wall_clock_ms
from infra.commands import CommandError, say
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    import pyarrow as pa

    from models.gates import GateResult
    from models.promotion import Override
    from models.registry import Registry

app = typer.Typer(no_args_is_help=True, help="List, compare, promote and roll back bundles.")

Which = Annotated[str, typer.Argument(metavar="ID", help="champion, challenger, a version, or the beginning of an id.")]
Examples = Annotated[
    Path | None, typer.Option(help="Parquet of test examples; default: the latest ranker's in the workspace.")
]
Limits = Annotated[Path | None, typer.Option(help="JSON of models.gates.GateLimits' fields; default: built in.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command("list")
def list_bundles(as_json: AsJson = False) -> None:
    """Show every bundle: version, id, when it was made, aliases, metrics, gates, whether its directory is there."""
    from infra.bundle_views import list_view
    from models.catalogue import entries
    from models.promotion import disagreement

    settings = load_settings()
    registry = open_registry(settings)
    found = entries(registry, settings.bundles_dir)
    differs = disagreement(registry, settings.bundles_dir)
    if as_json:
        say_json({"bundles": [asdict(entry) for entry in found], "disagreement": differs})
        return
    say(list_view(found))
    if differs:
        say(f"the registry disagrees: {differs}")


@app.command()
def show(which: Which = "champion", as_json: AsJson = False) -> None:
    """Show one bundle: hashes, features, Delta versions, seeds, code, metrics, weights, runs and gates."""
    from infra.bundle_views import show_view
    from models.bundle import read_manifest, read_value_weights
    from models.catalogue import entries, resolve
    from models.champions import read_champions

    settings = load_settings()
    entry = resolve(entries(open_registry(settings), settings.bundles_dir), which)
    path = settings.bundles_dir / entry.bundle_id
    manifest: Mapping[str, Any] = read_manifest(path) if entry.present else {}
    weights = read_value_weights(path) if entry.present else {}
    if as_json:
        say_json({**asdict(entry), "manifest": manifest, "value_weights": weights})
        return
    say(show_view(entry, manifest, weights, read_champions(settings.bundles_dir)))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="As in show.")],
    b: Annotated[str, typer.Argument(help="As in show.")],
    examples: Examples = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two bundles, and how both do on the same examples."""
    from infra.bundle_views import diff_view, metrics_view
    from models.bundle import loaded
    from models.catalogue import entries, resolve
    from models.compare_bundles import differences, on_the_same_examples

    settings = load_settings()
    known = entries(open_registry(settings), settings.bundles_dir)
    one, other = (loaded(settings.bundles_dir, resolve(known, which).bundle_id) for which in (a, b))
    found = differences(one.path, other.path)
    rows, why = examples_of(settings, examples)
    metrics = on_the_same_examples(one, other, rows) if rows is not None else []
    if as_json:
        say_json({"differences": [asdict(each) for each in found], "metrics": [asdict(each) for each in metrics]})
        return
    say(diff_view(one.bundle_id, other.bundle_id, found) if found else "nothing differs")
    if rows is None:
        say(f"not put to the same examples: {why}")
    else:
        say(metrics_view(one.bundle_id, other.bundle_id, metrics))


@app.command()
def promote(
    which: Which,
    force: Annotated[bool, typer.Option("--force", help="Promote even if gates refuse; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why gates are overridden; kept with your name in the registry.")] = "",
    limits: Limits = None,
    examples: Examples = None,
) -> None:
    """Put a bundle to the gates, beside the champion on the same examples, and serve it if it passes."""
    from models.catalogue import entries, resolve
    from models.champions import promotion_lock
    from models.gates import GateLimits
    from models.parity_gate import parity_gate
    from models.promotion import decide, judge, mend

    allowed, override, settings = GateLimits.read(limits), _override(force, reason), load_settings()
    registry = open_registry(settings)
    rows, _ = examples_of(settings, examples)
    with promotion_lock(settings.bundles_dir):
        mend(registry, settings.workspace_dir, settings.bundles_dir)
        entry = resolve(entries(registry, settings.bundles_dir), which)
        if not entry.present:
            raise CommandError(f"the directory of {entry.bundle_id} is gone from {settings.bundles_dir}; train again.")
        path = settings.bundles_dir / entry.bundle_id
        now_ms = wall_clock_ms()
        parity = parity_gate(settings.parity_report, now_ms, allowed)
        verdict = judge(settings.bundles_dir, path, rows, allowed, [parity])
        report = decide(registry, settings.workspace_dir, path, verdict, now_ms, override=override)
    tell_promotion(report, verdict.gates)


@app.command()
def rollback(
    which: Annotated[
        str | None, typer.Argument(metavar="ID", help="An earlier champion; default: the one before this one.")
    ] = None,
) -> None:
    """Serve an earlier champion again."""
    from models.bundle import champion_id
    from models.catalogue import entries, resolve
    from models.champions import promotion_lock
    from models.promotion import roll_back

    settings = load_settings()
    registry = open_registry(settings)
    with promotion_lock(settings.bundles_dir):
        target = None
        if which is not None:
            target = resolve(entries(registry, settings.bundles_dir), which).bundle_id
        left = champion_id(settings.bundles_dir)
        went_to = roll_back(registry, settings.workspace_dir, settings.bundles_dir, target, wall_clock_ms())
    say(f"{went_to} is the champion again, instead of {left}")


def open_registry(settings: Settings) -> "Registry":
    """The registry of the stack. Raises `CommandError` before anything is written when there is nothing to see."""
    if not settings.bundles_dir.is_dir():
        raise CommandError(
            f"no bundles in {settings.bundles_dir} yet; make one by the DAGs (millrace up) or python -m models.promote."
        )
    from models.registry import Registry

    return Registry(settings.mlflow_uri)


def examples_of(settings: Settings, file: Path | None) -> tuple["pa.Table | None", str]:
    """The file's rows, or else the latest ranker's; without any, why. Raises `RefusalError` for a bad file."""
    from models.evaluate_bundle import read_test_examples
    from models.refusal import RefusalError
    from models.workspace import RANKER, TEST_EXAMPLES, latest_run

    if file is not None:
        return read_test_examples(file), ""
    try:
        return read_test_examples(latest_run(settings.workspace_dir, RANKER) / TEST_EXAMPLES), ""
    except RefusalError as error:
        return None, str(error)


def tell_promotion(report: Mapping[str, Any], gates: list["GateResult"]) -> None:
    """Shows the gates and how it ended. Raises `PromotionRefusedError` when it was refused."""
    from infra.bundle_views import gates_view
    from models.gates import NOT_OVERRIDABLE, refusal_of

    say(gates_view(gates))
    if not report["promoted"]:
        refusal = refusal_of(report["bundle_id"], report["previous_champion"], gates)
        if never := sorted(NOT_OVERRIDABLE & {gate.gate for gate in gates if not gate.passed}):
            raise CommandError(
                f"{refusal} Nobody can override {', '.join(never)}: the service would refuse the bundle."
            )
        raise refusal
    said = f"{report['bundle_id']} is the champion, version {report['version']}"
    if report["overridden"]:
        said += f"; overridden: {', '.join(report['overridden'])}"
    say(said)


def say_json(record: Mapping[str, Any]) -> None:
    """Prints the record, non-finite numbers as null."""
    from models.workspace import finite

    typer.echo(json.dumps(finite(record), indent=1, sort_keys=True, allow_nan=False))


def _override(force: bool, reason: str) -> "Override | None":
    if force != bool(reason.strip()):
        raise CommandError("--force and --reason TEXT belong together; the reason is kept in the registry.")
    if not force:
        return None
    from models.promotion import Override

    return Override(by=getpass.getuser(), reason=reason.strip())
