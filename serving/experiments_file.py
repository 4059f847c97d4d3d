"""The experiments file: TOML, written by people, checked as a whole before any of it holds.

infra/serving/experiments.toml is a documented example.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from models.configuration import read_configuration
from models.refusal import RefusalError
from models.sources import SOURCE_TYPES
from models.value import checked_weights
from serving.arms import MILLRACE, Arm, changed_rerank
from serving.experiments import Experiment, Experiments, Holdout, Shadow
from serving.rerank import RerankConfig
from serving.traffic import TrafficError, arm_of_bucket, buckets

MAX_QUOTA = 1_000
MAX_EXPERIMENTS = 32
MAX_BUNDLES = 6
"""Distinct bundles that one file may name: each is held in memory, with item features of its own."""
_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_BUNDLE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HoldoutTable(_Table):
    """`[holdout]`: users who are in no experiment."""

    share: float
    """Of all users, 0 to 1."""
    salt: str = Field(min_length=1, max_length=64)
    """Another salt holds other users out."""


class ShadowTable(_Table):
    """`[shadow]`: a challenger that scores what the champion has answered, seen by nobody."""

    bundle: str = Field(pattern=_BUNDLE)
    """The challenger's id."""
    share: float
    """Of the champion's answers, 0 to 1."""


class ArmTable(_Table):
    """`[[experiments.arms]]`: one arm. What it does not name is as outside experiments."""

    name: str = Field(pattern=_NAME)
    share: float
    """Of the users that the holdout and the experiments above leave, 0 to 1 in steps of 0.0001."""
    start: float | None = Field(default=None, ge=0, lt=1)
    """Where the arm's users begin on the line of all users, [0, 1); not for the first arm, the control."""
    bundle: str | None = Field(default=None, pattern=_BUNDLE)
    """The bundle that answers; absent: the champion."""
    value_weights: dict[str, float] = {}
    """Value weights by head; other heads keep the bundle's."""
    rerank: dict[str, Any] = {}
    """Fields of `serving.rerank.RerankConfig`; the others keep the service's values."""
    quotas: dict[str, Annotated[int, Field(ge=0, le=MAX_QUOTA)]] = {}
    """Candidates by source, others as outside experiments; 0 leaves the source out."""

    @field_validator("value_weights")
    @classmethod
    def _known_heads(cls, weights: dict[str, float]) -> dict[str, float]:
        return checked_weights(weights)

    @field_validator("quotas")
    @classmethod
    def _known_sources(cls, quotas: dict[str, int]) -> dict[str, int]:
        if unknown := sorted(set(quotas) - set(SOURCE_TYPES)):
            raise ValueError(f"unknown source {', '.join(unknown)}; allowed: {', '.join(SOURCE_TYPES)}")
        if not any({**MILLRACE.quotas, **quotas}.values()):
            raise ValueError("no source is left; allowed: at least one quota above 0")
        return quotas

    def arm(self, experiment: str, rerank: RerankConfig) -> Arm:
        """The arm as the pipeline reads it. Raises `ValueError` for a rerank setting that is not allowed."""
        quotas = {**MILLRACE.quotas, **self.quotas}
        return Arm(
            name=f"{experiment}/{self.name}",
            quotas={source: quota for source, quota in quotas.items() if quota},
            bundle_id=self.bundle,
            value_weights=self.value_weights,
            rerank=changed_rerank(self.rerank, rerank) if self.rerank else None,
        )


class ExperimentTable(_Table):
    """`[[experiments]]`: one experiment."""

    name: str = Field(pattern=_NAME)
    salt: str = Field(min_length=1, max_length=64)
    """Another salt deals the users anew."""
    start: AwareDatetime | None = None
    """From this instant on; absent: always."""
    end: AwareDatetime | None = None
    """Until this instant; absent: for ever."""
    arms: list[ArmTable] = Field(min_length=1)
    """The first is the control."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"end {self.end} is not after start {self.start}; allowed: a later end")
        return self


class ExperimentsTable(_Table):
    """The whole file."""

    holdout: HoldoutTable | None = None
    shadow: ShadowTable | None = None
    experiments: list[ExperimentTable] = Field(default=[], max_length=MAX_EXPERIMENTS)


def read_experiments(file: Path, rerank: RerankConfig | None = None) -> Experiments:
    """The experiments of a file; `rerank` is the service's own settings, which arms change.

    Raises `RefusalError` with one sentence. Whether the bundles are there is not looked at.
    """
    table = read_configuration(ExperimentsTable, file, "experiments")
    try:
        return _experiments(table, rerank or RerankConfig())
    except ValueError as error:
        raise RefusalError(f"experiments {file}: {error}; correct the file.") from None


def _experiments(table: ExperimentsTable, rerank: RerankConfig) -> Experiments:
    salts = [experiment.salt for experiment in table.experiments]
    holdout, shadow = table.holdout, table.shadow
    _distinct("the name of two experiments", [experiment.name for experiment in table.experiments])
    _distinct("the salt of two draws", salts + ([holdout.salt] if holdout else []))
    found = Experiments(
        declared=tuple(_experiment(each, rerank) for each in table.experiments),
        holdout=None if holdout is None else Holdout(salt=holdout.salt, buckets=_buckets("holdout", holdout.share)),
        shadow=None if shadow is None else Shadow(bundle_id=shadow.bundle, buckets=_buckets("shadow", shadow.share)),
    )
    if len(found.bundle_ids) > MAX_BUNDLES:
        raise ValueError(f"got {len(found.bundle_ids)} bundles; allowed: at most {MAX_BUNDLES}")
    return found


def _experiment(table: ExperimentTable, rerank: RerankConfig) -> Experiment:
    where = f"experiment {table.name}"
    names = [arm.name for arm in table.arms]
    _distinct(f"{where}: the name of two arms", names)
    try:
        arms = tuple(arm.arm(table.name, rerank) for arm in table.arms)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    shares = [_buckets(f"{where}: arm {arm.name}", arm.share) for arm in table.arms]
    starts = [None if arm.start is None else _buckets(f"{where}: arm {arm.name}", arm.start) for arm in table.arms]
    try:
        arm_of = arm_of_bucket(names, shares, starts)
    except TrafficError as error:
        raise ValueError(f"{where}: {error}") from None
    return Experiment(
        name=table.name,
        salt=table.salt,
        arms=arms,
        arm_of_bucket=arm_of,
        start_ms=_ms(table.start),
        end_ms=_ms(table.end),
    )


def _distinct(what: str, values: Sequence[str]) -> None:
    twice = sorted({each for each in values if values.count(each) > 1})
    if twice:
        raise ValueError(f"{what} is {twice[0]!r}; allowed: each once")


def _buckets(where: str, share: float) -> int:
    try:
        return buckets(share)
    except TrafficError as error:
        raise ValueError(f"{where}: {error}") from None


def _ms(instant: datetime | None) -> int | None:
    return None if instant is None else round(instant.timestamp() * 1000)
