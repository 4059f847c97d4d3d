"""How long what is stored is kept: one table for the DAG `maintenance`, with a file of one's own in its place.

A retention file is TOML of the fields below, each of which has a default:

    events_days = 365
    bundles_kept = 10
"""

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class RetentionError(ValueError):
    """A retention file that cannot be read: the sentence names the field, what was got and what is allowed."""


class Retention(BaseModel):
    """Days are counted back from the run, in event time for tiles and in arrival for records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events_days: int = Field(default=730, ge=35)
    """Records of bronze, and what each was judged to be: they go together, so that the accounts balance. Five weeks are
    the least, since features look back 30 days and late events two."""
    slates_days: int = Field(default=90, ge=1)
    """Served slates."""
    day_tiles_days: int = Field(default=730, ge=35)
    """Day tiles; not less than events, or every run would count the older days anew."""
    feature_files_days: int = Field(default=30, ge=2)
    """Files of the offline views, one a date; each view's newest stays."""
    old_versions_hours: int = Field(default=168, ge=1)
    """Files that only older versions of a table need: how far back a reader may look, and how long one may take."""
    bundles_kept: int = Field(default=5, ge=1)
    """Champions before this one that stay, so that one can roll back so many times."""
    bundle_days: int = Field(default=7, ge=0)
    """Age at which a bundle may go that is no champion, was none of the last, has no alias and is named nowhere."""
    training_runs_days: int = Field(default=30, ge=1)
    """Runs in the workspace; the latest of each kind stays."""
    checkpoint_hours: int = Field(default=24, ge=1)
    """Checkpoints and savepoints of the stream job that nothing would be restored from."""
    request_log_days: int = Field(default=1, ge=1)
    """The ranking service's own log of requests, where it keeps one on this machine."""
    task_log_days: int = Field(default=30, ge=1)
    """Logs of Airflow's tasks."""

    @model_validator(mode="after")
    def _tiles_outlive_events(self) -> Self:
        if self.day_tiles_days < self.events_days:
            raise ValueError(f"day_tiles_days {self.day_tiles_days} is less than events_days {self.events_days}")
        return self

    @classmethod
    def read(cls, file: Path | None) -> "Retention":
        """The file's table; the defaults where there is no file. Raises `RetentionError`."""
        if file is None or not file.exists():
            return cls()
        try:
            return cls.model_validate(tomllib.loads(file.read_text()))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "the table"
            allowed = ", ".join(cls.model_fields)
            raise RetentionError(
                f"{file}: {field}: got {first['input']!r}: {first['msg'].removeprefix('Value error, ')}; the fields "
                f"are {allowed}."
            ) from None
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise RetentionError(f"{file} cannot be read as TOML: {error}; correct it.") from None
