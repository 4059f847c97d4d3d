"""What the quality gates allow that is data about a deployment rather than about the contract, read from TOML.

[events]
max_age_ms = 7_200_000
[[events.accepted_days]]
date = 2026-12-25
reason = "the app was closed"
"""

import datetime
import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.names import MS_PER_DAY


class LimitsError(ValueError):
    """A limits' file that cannot be used: what was got, what is allowed."""


class AcceptedDay(BaseModel):
    """A day that is as it should be although it is unlike the days before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: datetime.date
    """UTC."""
    reason: str = Field(min_length=1)
    """Why, for whoever reads the file next."""


class SuiteLimits(BaseModel):
    """One suite's limits. A day is held against the days before it that are neither in quarantine nor accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_rows: int = Field(default=1, ge=0)
    """Least rows of the judged sample."""
    max_age_ms: int = 2 * MS_PER_DAY
    """Oldest that the newest row may be."""
    reference_days: int = Field(default=7, ge=1)
    """How many days before it a day is held against: a week has each weekday once."""
    min_reference_days: int = Field(default=3, ge=1)
    """With fewer of them nothing is compared: a first day passes by the rules of its rows alone. More than
    `reference_days` turns comparisons off."""
    min_day_rows: int = Field(default=1_000, ge=1)
    """Smaller days are not compared, nor counted as reference: of 1,000 rows, a share of one half is off by 0.03 by
    chance in one case of twenty."""
    min_volume_ratio: float = Field(default=0.2, ge=0)
    """Least rows of a day that is over, per row of the median of its reference days; a day without rows has 0."""
    max_volume_ratio: float = Field(default=5.0, gt=0)
    """Most rows of a day that is over, likewise."""
    max_distance: float = Field(default=0.25, ge=0, le=1)
    """Greatest distance of a day's event types, labels and lengths from its reference days' (`features.drift`). Whole
    days of the synthetic world lie within 0.08 of each other."""
    max_feature_distance: float = Field(default=0.5, ge=0, le=1)
    """The same for features: a campaign moves them, a feature that is no longer computed moves them more."""
    min_class_ratio: float = Field(default=0.2, ge=0, le=1)
    """Least share of each event type (or label), per share that it has in the reference days, where at least 100 rows
    would be usual: a type that is a tenth of all rows may vanish within `max_distance`."""
    max_dead_share: float = Field(default=0.05, ge=0, le=1)
    """Greatest share of a day's records that broke the contract: clients in the field always send some, a release that
    breaks the contract makes it nearly all of them."""
    max_unknown_share: float = Field(default=0.05, ge=0, le=1)
    """Greatest share of a day's rows whose item the catalogue lacks: an event may overtake its item's record, and items
    are deleted, but not by the dozen."""
    max_unlike_slate_share: float = Field(default=0.01, ge=0, le=1)
    """Greatest share of examples whose slate was logged without the item that they show: an app may reload or
    reorder, seldom. Slates of other surfaces are not logged, and examples of theirs are not judged."""
    min_completeness: float = Field(default=0.9, ge=0, le=1)
    """Least examples of a day that is over per impression of it: late impressions may come after the examples."""
    accepted_days: tuple[AcceptedDay, ...] = ()
    """Days that are not held against others, and others not against them. Rules about rows still hold for them."""


class QualityLimits(BaseModel):
    """Limits by suite; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: SuiteLimits = SuiteLimits()
    items: SuiteLimits = SuiteLimits()
    slates: SuiteLimits = SuiteLimits(min_rows=0)
    """No slate has been served before the first bundle: an empty table passes."""
    features: SuiteLimits = SuiteLimits()
    examples: SuiteLimits = SuiteLimits()

    @classmethod
    def read(cls, file: Path | None) -> Self:
        """The limits in a TOML file; the default ones without a file, or where it does not exist.

        Raises `LimitsError` saying what is wrong.
        """
        if file is None or not file.exists():
            return cls()
        try:
            return cls.model_validate(tomllib.loads(file.read_text()))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            suites, keys = ", ".join(cls.model_fields), ", ".join(SuiteLimits.model_fields)
            raise LimitsError(
                f"quality limits {file}: {name}: {first['msg']}; allowed: tables {suites}, with the keys {keys}."
            ) from None
        except (OSError, ValueError) as error:
            raise LimitsError(f"quality limits {file} cannot be read: {error}; give TOML.") from None
