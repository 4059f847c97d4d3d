"""What the monitor calls wrong: a TOML file's fields, each with its default."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from models.configuration import read_configuration


class MonitorLimits(BaseModel):
    """Limits of the monitor; unknown keys are refused. Shares are in [0, 1], changes relative to what was before."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    window_h: float = Field(default=24.0, gt=0)
    """What is judged: the last so many hours."""
    reference_h: float = Field(default=168.0, gt=0)
    """What it is compared with: so many hours before the window."""
    min_rows: int = Field(default=500, ge=1)
    """With fewer rows on either side nothing is judged, and the report says so."""
    max_rows: int = Field(default=100_000, ge=1)
    """The newest examples of each side that are read; bounds memory."""
    max_slates: int = Field(default=20_000, ge=1)
    """The same of slates."""
    max_feature_psi: float = Field(default=0.25, gt=0)
    """Greatest population stability index of one feature, beside what few keys explain by chance; above 0.25 a
    population counts as changed.
    """
    max_score_psi: float = Field(default=0.25, gt=0)
    """The same of the champion's scores."""
    max_label_change: float = Field(default=0.5, gt=0)
    """Greatest relative change of a head's rate; the interval over users must lie beyond it."""
    max_calibration_gap: float = Field(default=0.1, ge=0, le=1)
    """Greatest distance of the predicted from the observed click rate at the top position, beyond its interval."""
    freshness_grace_ms: int = Field(default=10_000, ge=0)
    """An event that arrived so long before an answer must stand behind it."""
    max_stale_share: float = Field(default=0.02, ge=0, le=1)
    """Greatest share of answers behind which such an event of the user did not stand."""
    min_source_share: float = Field(default=0.02, ge=0, le=1)
    """A source that had at least this share of the slots is missed when it has less than a tenth of that share."""
    max_click_drop: float = Field(default=0.1, ge=0, le=1)
    """Greatest relative drop of clicks per impression against the bundle before."""
    max_hide_rise: float = Field(default=0.5, ge=0)
    """Greatest relative rise of hides per impression against the bundle before."""
    max_coverage_drop: float = Field(default=0.5, ge=0, le=1)
    """Greatest relative drop of the number of distinct items in equally many slots against the bundle before."""
    min_users: int = Field(default=50, ge=2)
    """With fewer users on either side bundles are not compared."""
    automatic_rollback: bool = True
    """Whether a broken guardrail rolls back; the alert comes in any case."""
    rollback_cooldown_h: float = Field(default=24.0, ge=0)
    """After a roll-back, by whomever, none is made automatically for so long."""

    @classmethod
    def read(cls, file: Path | None) -> Self:
        """The limits in a file, the default ones without it. Raises `RefusalError` saying what is wrong."""
        if file is None or not file.exists():
            return cls()
        return read_configuration(cls, file, "monitor limits")
