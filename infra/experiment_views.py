"""What the command shows of experiments."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

from rich.table import Table

from serving.arms import MILLRACE, Arm
from serving.experiments import Experiment, Experiments
from serving.rerank import RerankConfig
from serving.traffic import BUCKETS, UNASSIGNED, bucket_of


def experiments_view(found: Experiments) -> Table:
    """Every arm, one a line: its share of the users that are left, of all users while all that is declared runs now,
    and what differs from serving outside experiments.
    """
    table = Table("experiment", "runs", "arm", "share", "of all users", "differs by", box=None)
    left = 1.0 - (found.holdout.buckets / BUCKETS if found.holdout else 0.0)
    for experiment in found.declared:
        runs = experiment in found.running
        for number, arm in enumerate(experiment.arms):
            share = experiment.arm_of_bucket.count(number) / BUCKETS
            table.add_row(
                experiment.name if number == 0 else "",
                _when(experiment, runs) if number == 0 else "",
                arm.name.partition("/")[2],
                f"{share:.2%}",
                f"{share * left:.2%}" if runs else "0.00%",
                differences(arm) or "nothing",
            )
        if runs:
            left *= experiment.arm_of_bucket.count(UNASSIGNED) / BUCKETS
    return table


def summary(found: Experiments) -> Iterator[str]:
    """The holdout and the challenger, one line each."""
    held = f"{found.holdout.buckets / BUCKETS:.2%} of all users are" if found.holdout else "nobody is"
    yield f"holdout: {held} kept out of every experiment"
    if found.shadow:
        yield f"shadow: {found.shadow.bundle_id} scores {found.shadow.buckets / BUCKETS:.2%} of the champion's answers"
    else:
        yield "shadow: no challenger"


def differences(arm: Arm) -> str:
    """What an arm has of its own, as clauses; empty when it answers as outside experiments."""
    told = [f"bundle {arm.bundle_id}"] if arm.bundle_id else []
    told += [f"weight of {head} {weight:g}" for head, weight in arm.value_weights.items()]
    for name in sorted({*MILLRACE.quotas, *arm.quotas}):
        if (quota := arm.quotas.get(name, 0)) != MILLRACE.quotas.get(name, 0):
            told.append(f"{quota} of {name}" if quota else f"no {name}")
    if arm.rerank is not None:
        usual = asdict(RerankConfig())
        told += [f"{name} {value}" for name, value in asdict(arm.rerank).items() if value != usual[name]]
    return ", ".join(told)


def reasons(found: Experiments, user: str) -> Iterator[str]:
    """What the holdout and each experiment say of a user, in the order in which they are asked."""
    if found.holdout:
        yield f"holdout: {'in it' if found.holdout.holds(user) else 'not in it'}"
    for experiment in found.declared:
        arm = experiment.arm_of(user)
        said = arm.name if arm else "no arm"
        ended = "" if experiment in found.running else "; it does not run now"
        yield f"experiment {experiment.name}: place {bucket_of(experiment.salt, user) / BUCKETS:.4f}, {said}{ended}"


def _when(experiment: Experiment, runs: bool) -> str:
    told = "now" if runs else "not now"
    for word, instant_ms in (("from", experiment.start_ms), ("to", experiment.end_ms)):
        if instant_ms is not None:
            told += f" {word} {datetime.fromtimestamp(instant_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    return told
