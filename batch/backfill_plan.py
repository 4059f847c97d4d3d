"""Which days are backfilled by which job: `python -m batch.backfill_plan --step S --start D --end D [flags …]`.

Prints, as the last line, one list of arguments for `batch/backfill.py` a part of the range, as JSON; flags that it does
not know are passed on to each. Parts are whole days and share none, so they may run side by side.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from batch.command import fail

STEPS = ("day_tiles", "offline_features", "training_examples", "quality")
MAX_DAYS = 3_660
"""Ten years: a longer range is a mistake."""


class BackfillError(ValueError):
    """One sentence: what was asked for, what is allowed, what to do."""


@dataclass(frozen=True, kw_only=True)
class Backfill:
    """One step for the days from `start` to `end`, both included."""

    step: str
    start: datetime.date
    end: datetime.date

    @property
    def days(self) -> list[datetime.date]:
        """Every day, in order."""
        return [self.start + datetime.timedelta(days=n) for n in range((self.end - self.start).days + 1)]

    def parts(self, days: int) -> list["Backfill"]:
        """The range cut into pieces of so many days; the last may be shorter."""
        starts = self.days[::days]
        ends = [*(start - datetime.timedelta(days=1) for start in starts[1:]), self.end]
        return [Backfill(step=self.step, start=first, end=last) for first, last in zip(starts, ends, strict=True)]


def checked(step: str, start: str, end: str, today: datetime.date) -> Backfill:
    """Reads what the user gave. Raises `BackfillError`: a day must be over before it can be filled."""
    if step not in STEPS:
        raise BackfillError(f"step: got {step!r}; allowed: {', '.join(STEPS)}.")
    first, last = _date("start", start), _date("end", end)
    yesterday = today - datetime.timedelta(days=1)
    if first > last:
        raise BackfillError(f"start {first} is after end {last}: give the earlier day first.")
    if last > yesterday:
        raise BackfillError(f"end: got {last}, which is not over yet; allowed: up to {yesterday} (UTC).")
    if (last - first).days >= MAX_DAYS:
        raise BackfillError(
            f"{first} to {last} are {(last - first).days + 1} days; allowed: at most {MAX_DAYS} at once."
        )
    return Backfill(step=step, start=first, end=last)


def _date(name: str, text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise BackfillError(f"{name}: got {text!r}; allowed: a day such as 2026-01-31.") from None


def arguments_of(backfill: Backfill, days_a_job: int, passed_on: Sequence[str]) -> list[list[str]]:
    """The arguments of each job. Raises `BackfillError` when a job would have no day."""
    if days_a_job < 1:
        raise BackfillError(f"days a job: got {days_a_job}; allowed: 1 or more.")
    return [
        ["--step", part.step, "--start", str(part.start), "--end", str(part.end), *passed_on]
        for part in backfill.parts(days_a_job)
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m batch.backfill_plan", description=__doc__, allow_abbrev=False)
    parser.add_argument("--step", required=True, help=", ".join(STEPS))
    parser.add_argument("--start", required=True, help="first day")
    parser.add_argument("--end", required=True, help="last day; it must be over")
    parser.add_argument("--days-a-job", type=int, default=7)
    parser.add_argument("--today", type=datetime.date.fromisoformat, help="default: by the wall clock, UTC")
    given, passed_on = parser.parse_known_args(arguments)
    today = given.today or datetime.datetime.now(datetime.UTC).date()
    try:
        jobs = arguments_of(checked(given.step, given.start, given.end, today), given.days_a_job, passed_on)
    except BackfillError as error:
        return fail("backfill", error)
    sys.stdout.write(json.dumps(jobs) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
