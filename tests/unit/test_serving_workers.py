"""Requests in threads within their deadlines, and a pipeline that saves what time and load forbid."""

import asyncio
from collections.abc import Callable
from threading import Event
from time import perf_counter

import pytest

from serving import workers as workers_module
from serving.admission import Admission, AdmissionConfig
from serving.stages import Claim, Progress, SupersededError
from serving.workers import LateError, Outcome, Workers

SOON_S = 1.2


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for the last resort on a machine that is busy with other work."""
    monkeypatch.setattr(workers_module, "LAST_RESORT_S", 1.0)


def _workers(threads: int = 1) -> Workers:
    return Workers(Admission(AdmissionConfig(workers=threads), perf_counter))


def _progress(left_s: float) -> Progress:
    return Progress(monotonic_s=perf_counter, deadline_s=perf_counter() + left_s)


async def _run(workers: Workers, work: Callable[[Progress], str], left_s: float) -> Outcome[str]:
    workers.admission.enter()
    return await workers.run(work, _progress(left_s))


async def _free(workers: Workers) -> None:
    async with asyncio.timeout(10):
        while workers.admission.in_flight:
            await asyncio.sleep(0.005)


def test_the_first_attempt_answers_and_gives_its_place_back() -> None:
    async def check() -> None:
        workers = _workers()
        got = await _run(workers, lambda _: "whole", 5.0)
        assert got.result == "whole" and "admit" in got.progress.stage_ms
        await _free(workers)
        workers.close()

    asyncio.run(check())


def test_one_that_is_too_slow_is_overtaken_and_has_no_effects() -> None:
    release, effects = Event(), []

    def work(progress: Progress) -> str:
        hurried = progress.remaining_ms() <= 0
        if not hurried:
            release.wait(10)
        progress.claim.take()
        effects.append(hurried)
        return "hurried" if hurried else "whole"

    async def check() -> None:
        workers = _workers()
        got = await _run(workers, work, SOON_S)
        assert got.result == "hurried" and workers.admission.in_flight == 1, "its thread is still taken"
        release.set()
        await _free(workers)
        workers.close()

    asyncio.run(check())
    assert effects == [True]


def test_one_that_waits_for_a_thread_is_taken_out_of_the_queue() -> None:
    release, began = Event(), []

    def work(progress: Progress) -> str:
        began.append(progress.remaining_ms() > 0)
        return "hurried" if progress.remaining_ms() <= 0 else "whole"

    def blocks(_: Progress) -> str:
        release.wait(10)
        return "blocked"

    async def check() -> None:
        workers = _workers()
        first = asyncio.create_task(_run(workers, blocks, 10.0))
        await asyncio.sleep(0)
        assert (await _run(workers, work, SOON_S)).result == "hurried"
        async with asyncio.timeout(10):
            while workers.admission.in_flight > 1:
                await asyncio.sleep(0.005)
        release.set()
        assert (await first).result == "blocked"
        await _free(workers)
        workers.close()

    asyncio.run(check())
    assert began == [False], "it was computed for nobody"


def test_past_the_deadline_nothing_is_computed() -> None:
    began: list[int] = []

    async def check() -> None:
        workers = _workers()
        with pytest.raises(LateError):
            await _run(workers, lambda _: began.append(1) or "late", -1.0)
        await _free(workers)
        workers.close()

    asyncio.run(check())
    assert not began


def test_a_pipeline_that_fails_is_answered_in_a_hurry_and_both_failing_is_told() -> None:
    def fails_once(progress: Progress) -> str:
        if progress.remaining_ms() > 0:
            raise ZeroDivisionError
        return "hurried"

    def fails(progress: Progress) -> str:
        progress.claim.take()
        raise ZeroDivisionError

    async def check() -> None:
        workers = _workers()
        assert (await _run(workers, fails_once, 5.0)).result == "hurried"
        with pytest.raises(ZeroDivisionError):
            await _run(workers, fails, 5.0)
        await _free(workers)
        workers.close()

    asyncio.run(check())


def test_a_caller_that_goes_away_leaves_the_queue() -> None:
    release, began = Event(), []

    async def check() -> None:
        workers = _workers()
        first = asyncio.create_task(_run(workers, lambda _: (release.wait(10) and "first") or "", 10.0))
        second = asyncio.create_task(_run(workers, lambda _: began.append(1) or "second", 10.0))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        release.set()
        await first
        await _free(workers)
        workers.close()

    asyncio.run(check())
    assert not began


def test_the_right_to_answer_is_given_once() -> None:
    claim = Claim()
    claim.take()
    with pytest.raises(SupersededError):
        claim.take()
