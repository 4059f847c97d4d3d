"""Admission under load: what is shed, what is saved, and that neither flaps; what a stage is taken to cost."""

from random import Random

import pytest

from serving.admission import FIRST_SERVICE_MS, MARGIN, MAX_RETRY_MS, RESORT_HALF_LIFE_S, Admission, AdmissionConfig
from serving.cost import Cost
from serving.pipeline import PipelineConfig


class Clock:
    """Seconds, set by hand."""

    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _waits(admission: Admission, clock: Clock, wait_ms: float, for_s: float = 1.0) -> float:
    """The share after requests every 10 ms that each waited so long."""
    for _ in range(round(for_s / 0.01)):
        admission.enter()
        clock.now_s += 0.01
        admission.in_flight += 1  # another is always under way, so the service is not idle
        admission.leave(wait_ms, 8.0)
        admission.in_flight -= 1
        admission.share()
    return admission.share()


def test_places_are_bounded_and_given_back(clock: Clock) -> None:
    admission = Admission(AdmissionConfig(max_in_flight=2), clock)
    admission.enter()
    assert not admission.full
    admission.enter()
    assert admission.full
    admission.leave(0.0, 5.0)
    assert not admission.full and admission.in_flight == 1
    admission.leave()
    assert admission.in_flight == 0


def test_the_share_of_candidates_falls_in_a_straight_line(clock: Clock) -> None:
    waits = (0, 10, 25, 40, 400)
    shares = [_waits(Admission(AdmissionConfig(), clock), clock, wait_ms) for wait_ms in waits]
    assert shares == pytest.approx([1, 1, 0.5, 0, 0], abs=0.01)
    assert [PipelineConfig().limit(share) for share in (0, 0.5, 1)] == [100, 200, 300]


def test_a_burst_that_is_worked_off_costs_no_candidate(clock: Clock) -> None:
    admission = Admission(AdmissionConfig(), clock)
    _waits(admission, clock, 0.0)
    for _ in range(30):
        admission.enter()
    for k in range(30):
        clock.now_s += 0.0001
        admission.leave(k, 1.0)
    assert admission.share() == 1


def test_one_slow_start_of_a_thread_is_no_overload(clock: Clock) -> None:
    admission = Admission(AdmissionConfig(), clock)
    admission.enter()
    clock.now_s += 5
    admission.leave(50.0, 8.0)
    assert admission.share() == 1


def test_the_share_falls_at_once_and_comes_back_slowly(clock: Clock) -> None:
    admission = Admission(AdmissionConfig(), clock)
    assert _waits(admission, clock, 100.0) == 0
    shares = [_waits(admission, clock, 0.0, for_s=0.5) for _ in range(5)]
    assert shares == sorted(shares) and 0 < shares[0] <= 0.25 and shares[-1] == 1


def test_a_small_gain_leaves_the_share_where_it_is(clock: Clock) -> None:
    admission = Admission(AdmissionConfig(), clock)
    low = _waits(admission, clock, 25.0)
    seen = {round(_waits(admission, clock, wait_ms, for_s=0.5), 2) for wait_ms in (24.0, 25.0, 23.0, 25.0, 24.0)}
    assert seen == {round(low, 2)}, "the share flaps"
    assert _waits(admission, clock, 15.0) > low + 0.1


def test_an_idle_service_forgets_that_it_was_busy(clock: Clock) -> None:
    admission = Admission(AdmissionConfig(), clock)
    _waits(admission, clock, 100.0)
    clock.now_s += 10
    admission.enter()
    assert admission.wait_ms == pytest.approx(0) and admission.share() == 1


def test_the_hint_is_the_time_of_what_is_under_way_give_or_take_half(clock: Clock) -> None:
    admission = Admission(AdmissionConfig(max_in_flight=20, workers=2), clock, Random(7))
    for _ in range(20):
        admission.enter()
    expected_ms = FIRST_SERVICE_MS * 10
    hints = {admission.retry_after_ms() for _ in range(200)}
    assert len(hints) > 50 and min(hints) >= expected_ms / 2 and max(hints) <= expected_ms * 1.5
    for _ in range(100):
        admission.leave(0.0, 100_000.0)
        admission.enter()
    assert admission.retry_after_ms() == MAX_RETRY_MS


def test_what_would_be_late_is_set_aside_and_counts_for_no_wait(clock: Clock) -> None:
    admission = Admission(AdmissionConfig(max_in_flight=100, workers=2), clock)
    aside = 0
    for _ in range(60):
        admission.enter()
        aside += admission.too_late(200.0)
    waiting = 60 - aside
    assert waiting * FIRST_SERVICE_MS / 2 * MARGIN == pytest.approx(200, rel=0.2), "as many as can be done in time"
    for _ in range(aside):
        admission.leave(aside=True)
    admission.leave(150.0, FIRST_SERVICE_MS)
    admission.enter()
    assert not admission.too_late(500.0)


def test_a_slow_request_does_not_set_all_others_aside_for_ever(clock: Clock) -> None:
    admission = Admission(AdmissionConfig(), clock)
    for _ in range(50):
        admission.enter()
        admission.leave(0.0, 1_000.0)
    for _ in range(2):
        admission.enter()
        assert not admission.too_late(1.0), "a thread is free: the pipeline itself cuts what it has no time for"
    asked = 0
    admission.enter()
    while admission.too_late(100.0):
        admission.leave(aside=True)
        admission.enter()
        asked += 1
        assert asked < 2_000
    assert asked > 50


def test_what_nothing_can_save_is_hopeless_but_not_for_long(clock: Clock) -> None:
    admission = Admission(AdmissionConfig(), clock)
    assert not admission.hopeless(3.0), "nothing is known that speaks against it"
    for _ in range(50):
        admission.resorted(80.0)
    assert admission.hopeless(70.0) and not admission.hopeless(81.0)
    clock.now_s += RESORT_HALF_LIFE_S
    assert admission.hopeless(30.0) and not admission.hopeless(41.0)
    clock.now_s += 10 * RESORT_HALF_LIFE_S
    assert not admission.hopeless(1.0)


@pytest.mark.parametrize("wrong", [{"max_in_flight": 0}, {"workers": 0}, {"target_wait_ms": 50}])
def test_a_wrong_configuration_says_what_is_allowed(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"admission: got .* allowed: "):
        AdmissionConfig(**wrong)  # type: ignore[arg-type]


def test_costs_are_learnt_by_subject_and_size() -> None:
    cost = Cost()
    assert cost.estimate_ms("a", 300) == 0 and cost.fitting("a", 300, 1.0) == 300, "nothing is forbidden unknown"
    for _ in range(50):
        cost.observe("a", 300, 6.0)
        cost.observe("a", 10_000, 100.0)
        cost.observe("a", 0, 5.0)
    assert cost.estimate_ms("a", 300) == pytest.approx(6.0, rel=0.01)
    assert cost.estimate_ms("a", 10_000) == pytest.approx(100.0, rel=0.01)
    assert cost.fitting("a", 300, 6.1) == 300 and cost.fitting("a", 300, 3.0) == pytest.approx(150, abs=2)
    assert cost.fitting("a", 300, 0.0) == cost.fitting("a", 300, -5.0) == 0
    assert cost.estimate_ms("b", 300) == 0


def test_a_cost_that_varies_is_taken_to_be_high() -> None:
    cost, rng = Cost(), Random(3)
    spent = [rng.uniform(4, 12) for _ in range(500)]
    for ms in spent:
        cost.observe("a", 100, ms)
    assert 10 < cost.estimate_ms("a", 100) < 16


def test_one_slow_moment_does_not_forbid_for_ever() -> None:
    cost = Cost()
    cost.observe("a", 300, 500.0)
    refused = 0
    while cost.fitting("a", 300, 10.0) < 300:
        refused += 1
        assert refused < 300
    assert refused > 10


def test_what_is_known_of_costs_is_bounded() -> None:
    cost = Cost()
    for k in range(10_000):
        cost.observe(f"bundle-{k}", 300, 1.0)
    assert len(cost._known) <= 256
