"""Which days are backfilled, and the sentence for what cannot be."""

import datetime
import json

import pytest

from batch.backfill_plan import MAX_DAYS, STEPS, BackfillError, checked, main
from batch.served_examples import Source
from infra.airflow import BACKFILL_STEPS, EXAMPLE_FEATURES

TODAY = datetime.date(2026, 3, 10)


def test_parts_cover_each_day_once() -> None:
    for days in (1, 2, 5, 7, 100):
        asked = checked("day_tiles", "2026-02-20", "2026-03-09", TODAY)
        parts = asked.parts(days)
        assert [day for part in parts for day in part.days] == asked.days
        assert all(len(part.days) <= days for part in parts)
    assert [part.days for part in checked("quality", "2026-03-09", "2026-03-09", TODAY).parts(7)] == [
        [datetime.date(2026, 3, 9)]
    ]


@pytest.mark.parametrize(
    ("step", "start", "end", "said"),
    [
        ("train", "2026-03-01", "2026-03-02", "step: got 'train'; allowed: day_tiles, offline_features"),
        ("day_tiles", "2026-03-03", "2026-03-02", "start 2026-03-03 is after end 2026-03-02"),
        ("day_tiles", "2026-03-01", "2026-03-10", "got 2026-03-10, which is not over yet; allowed: up to 2026-03-09"),
        ("day_tiles", "2026-03-01", "2027-03-10", "not over yet"),
        ("day_tiles", "yesterday", "2026-03-02", "start: got 'yesterday'; allowed: a day such as"),
        ("day_tiles", "2026-03-01", "", "end: got ''"),
        ("day_tiles", "1026-03-01", "2026-03-01", f"allowed: at most {MAX_DAYS}"),
    ],
)
def test_what_cannot_be_filled_is_one_sentence(step: str, start: str, end: str, said: str) -> None:
    with pytest.raises(BackfillError) as refused:
        checked(step, start, end, TODAY)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_command_prints_a_list_of_arguments_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--step", "quality", "--start", "2026-03-01", "--end", "2026-03-03", "--today", str(TODAY)]
    assert main([*asked, "--days-a-job", "2", "--lake", "/lake"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        ["--step", "quality", "--start", "2026-03-01", "--end", "2026-03-02", "--lake", "/lake"],
        ["--step", "quality", "--start", "2026-03-03", "--end", "2026-03-03", "--lake", "/lake"],
    ]
    assert main([*asked, "--days-a-job", "0"]) == 1
    assert capsys.readouterr().err == "backfill: days a job: got 0; allowed: 1 or more.\n"


def test_the_form_offers_the_steps_and_sources_that_there_are() -> None:
    assert BACKFILL_STEPS == STEPS
    assert tuple(map(str, Source)) == EXAMPLE_FEATURES
