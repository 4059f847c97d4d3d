"""`millrace weights …`: what an impression is worth, shown and changed without retraining."""

import math
from typing import Annotated

import typer

from features.clock import wall_clock_ms
from infra.commands import CommandError, say
from infra.commands.models import Examples, Limits, examples_of, open_registry, tell_promotion
from infra.settings import load_settings

app = typer.Typer(invoke_without_command=True, help="Show the champion's value weights by head, or set them.")


@app.callback()
def show(context: typer.Context) -> None:
    """Show the champion's value weights by head, in clicks; `set` changes them."""
    if context.invoked_subcommand is not None:
        return
    from infra.bundle_views import weights_view
    from models.reweight import all_heads, champion_bundle

    champion = champion_bundle(load_settings().bundles_dir)
    say(f"champion {champion.bundle_id}")
    say(weights_view(all_heads(champion.value_weights)))


@app.command("set")
def set_(
    changes: Annotated[list[str], typer.Argument(metavar="HEAD=WEIGHT…", help="Such as like=2 hide=-5.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    limits: Limits = None,
    examples: Examples = None,
) -> None:
    """Serve the champion with other value weights: a new bundle, no retraining; other heads keep theirs."""
    from infra.bundle_views import weights_view
    from models.champions import promotion_lock
    from models.gates import GateLimits, GateResult
    from models.promotion import mend
    from models.reweight import all_heads, champion_bundle, changed_weights, preview, set_weights

    given, allowed, settings = _parsed(changes), GateLimits.read(limits), load_settings()
    champion = champion_bundle(settings.bundles_dir)
    weights = changed_weights(champion, given)
    rows, why = examples_of(settings, examples)
    say(weights_view(all_heads(champion.value_weights), all_heads(weights)))
    if rows is None:
        say(f"what changes on slates is not known: {why}")
    else:
        seen = preview(champion, weights, rows)
        say(f"of {seen.slates} logged slates, {seen.led_by_another} would be led by another item")
        say(f"NDCG by the new weights: {seen.ndcg_now:.4f} as ordered now, {seen.ndcg_then:.4f} then")
    if dry_run:
        say("nothing was changed")
        return
    registry = open_registry(settings)
    with promotion_lock(settings.bundles_dir):
        mend(registry, settings.workspace_dir, settings.bundles_dir)
        champion = champion_bundle(settings.bundles_dir)  # the present one, now that nobody else changes it
        weights = changed_weights(champion, given)
        report = set_weights(registry, settings.workspace_dir, champion, weights, wall_clock_ms(), rows, allowed)
    tell_promotion(report, [GateResult(**gate) for gate in report["gates"]])


def _parsed(changes: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for change in changes:
        head, equals, text = change.partition("=")
        if not equals or head in found:
            raise CommandError(f"got {change!r}; allowed: HEAD=WEIGHT, each head once, such as like=2 hide=-5.")
        try:
            found[head] = float(text)
        except ValueError:
            raise CommandError(f"{head}: got {text!r}; allowed: a finite number.") from None
        if not math.isfinite(found[head]):
            raise CommandError(f"{head}: got {text!r}; allowed: a finite number.")
    return found
