"""The history: sessions over days and hours, slates by the logging policy, and the reactions to them.

Simulated in rounds: round r holds the r-th slate of every user who has one, so that a slate depends on all that its
user did before and each round is a handful of array operations.

Shapes: U users, N sessions or slates in all, S slates of a round, P positions, I items, C creators, D latent.
"""

from dataclasses import dataclass

import numpy as np

from features.names import MS_PER_DAY, MS_PER_HOUR
from streaming.world.behaviour import Bools, Shown, appeal, react
from streaming.world.catalogue import Catalogue, Floats, Ints
from streaming.world.occurrences import Occurrences, occurrences_of
from streaming.world.parameters import WorldParameters
from streaming.world.population import Population

_QUIET_MS = 60_000
"""The history's last event lies at least this long before now."""


@dataclass(kw_only=True)
class Memory:
    """What users have seen and followed so far."""

    seen_UI: Bools
    followed_UC: Bools
    free_from_ms_U: Ints
    """When each user can look at the next slate."""


@dataclass(frozen=True, kw_only=True)
class Visits:
    """All slates to be shown, ordered by user and time. `round_N` is a slate's rank among its user's."""

    user_N: Ints
    not_before_ms_N: Ints
    round_N: Ints


def simulate(
    rng: np.random.Generator, catalogue: Catalogue, population: Population, parameters: WorldParameters, now_ms: int
) -> tuple[Occurrences, Memory]:
    """All events of the history before now, slate by slate, and what its users remember of it."""
    visits = plan_visits(rng, population, parameters, now_ms)
    memory = Memory(
        seen_UI=np.zeros((len(population), len(catalogue)), dtype=np.bool_),
        followed_UC=np.zeros((len(population), parameters.catalogue.creators), dtype=np.bool_),
        free_from_ms_U=np.zeros(len(population), dtype=np.int64),
    )
    parts: list[Occurrences] = []
    slates = 0
    for r in range(int(visits.round_N.max(initial=-1)) + 1):
        in_round_N = visits.round_N == r
        user_S = visits.user_N[in_round_N]
        start_ms_S = np.maximum(visits.not_before_ms_N[in_round_N], memory.free_from_ms_U[user_S])
        item_SP = _choose_slates(rng, catalogue, population, parameters, memory, user_S, start_ms_S)
        shown = _show(catalogue, population, parameters, memory, user_S, start_ms_S, item_SP)
        reactions = react(rng, shown, parameters.behaviour, pace=1.0)
        over_S = start_ms_S + reactions.last_after_ms < now_ms - _QUIET_MS
        happened = occurrences_of(reactions, start_ms_S, user_S, item_SP, slates)
        parts.append(happened.taken(np.flatnonzero(over_S[happened.slate_N - slates])))
        slates += len(user_S)
        memory.free_from_ms_U[user_S] = start_ms_S + reactions.last_after_ms + parameters.population.slate_gap_ms
        _remember(memory, catalogue, reactions.followed_SP[over_S], user_S[over_S], item_SP[over_S])
    return Occurrences.joined(parts), memory


def plan_visits(rng: np.random.Generator, population: Population, parameters: WorldParameters, now_ms: int) -> Visits:
    """Draws sessions by each user's activity and hours, and the number of slates in each."""
    chosen = parameters.population
    length_ms = round(parameters.history_days * MS_PER_DAY)
    count_U = rng.poisson(population.sessions_mean_U)
    count_U[chosen.users :] = 0
    user_N = np.repeat(np.arange(len(population)), count_U)
    # A whole day, then the hour around the user's own peak; what falls before the join or after now is not visited.
    first_day, last_day = (now_ms - length_ms) // MS_PER_DAY, now_ms // MS_PER_DAY
    day_N = rng.integers(first_day, last_day + 1, size=len(user_N))
    angle_N = rng.vonmises(0.0, chosen.hour_concentration, size=len(user_N))
    hour_N = (population.peak_hour_U[user_N] + angle_N * 12.0 / np.pi) % 24.0
    start_ms_N = day_N * MS_PER_DAY + (hour_N * MS_PER_HOUR).astype(np.int64)
    visited_N = (start_ms_N >= population.joined_ms_U[user_N]) & (start_ms_N < now_ms)
    user_N, start_ms_N = user_N[visited_N], start_ms_N[visited_N]
    slates_N = rng.geometric(1.0 / chosen.slates_per_session_mean, size=len(user_N))
    user_N, start_ms_N = np.repeat(user_N, slates_N), np.repeat(start_ms_N, slates_N)
    order_N = np.lexsort((start_ms_N, user_N))
    user_N, start_ms_N = user_N[order_N], start_ms_N[order_N]
    first_N = np.searchsorted(user_N, user_N, side="left")
    return Visits(user_N=user_N, not_before_ms_N=start_ms_N, round_N=np.arange(len(user_N)) - first_N)


def _choose_slates(
    rng: np.random.Generator,
    catalogue: Catalogue,
    population: Population,
    parameters: WorldParameters,
    memory: Memory,
    user_S: Ints,
    start_ms_S: Ints,
) -> Ints:
    """Slates `[S, P]` of published items that the users have not seen, best first by the policy's score."""
    policy, size = parameters.policy, parameters.behaviour.slate_size
    leaning_S = rng.random(len(user_S))
    popular_S = leaning_S < policy.popular_fraction
    taste_S = leaning_S >= policy.popular_fraction + policy.random_fraction
    all_I = np.arange(len(catalogue))[None, :]
    # -log of an exponential is Gumbel; single precision halves the time of what is most of the simulation.
    exponential_SI = rng.standard_exponential((len(user_S), len(catalogue)), dtype=np.float32)
    score_SI = -np.log(np.maximum(exponential_SI, np.finfo(np.float32).tiny))
    score_SI += (policy.popularity_weight * (popular_S | taste_S))[:, None] * appeal(
        catalogue, parameters.catalogue, all_I, start_ms_S[:, None]
    )
    match_SI = population.taste_at(user_S, start_ms_S) @ catalogue.taste_ID.T
    score_SI += (policy.taste_weight * taste_S)[:, None] * match_SI
    score_SI[memory.seen_UI[user_S]] -= 1e6
    score_SI[catalogue.published_at_ms_I[None, :] > start_ms_S[:, None]] = -np.inf
    best_SP = np.argpartition(score_SI, -size, axis=1)[:, -size:]
    order_SP = np.argsort(-np.take_along_axis(score_SI, best_SP, axis=1), axis=1)
    return np.take_along_axis(best_SP, order_SP, axis=1)


def _show(
    catalogue: Catalogue,
    population: Population,
    parameters: WorldParameters,
    memory: Memory,
    user_S: Ints,
    start_ms_S: Ints,
    item_SP: Ints,
) -> Shown:
    match_SP: Floats = np.einsum(
        "sd,spd->sp", population.taste_at(user_S, start_ms_S), catalogue.taste_ID[item_SP], optimize=True
    )
    return Shown(
        match_SP=match_SP,
        appeal_SP=appeal(catalogue, parameters.catalogue, item_SP, start_ms_S[:, None]),
        other_language_SP=catalogue.language_I[item_SP] != population.language_U[user_S][:, None],
        followed_SP=memory.followed_UC[user_S[:, None], catalogue.creator_I[item_SP]],
        seen_SP=memory.seen_UI[user_S[:, None], item_SP],
        duration_ms_SP=catalogue.duration_ms_I[item_SP],
    )


def _remember(memory: Memory, catalogue: Catalogue, followed_SP: Bools, user_S: Ints, item_SP: Ints) -> None:
    memory.seen_UI[user_S[:, None], item_SP] = True
    slate_N, position_N = np.nonzero(followed_SP)
    memory.followed_UC[user_S[slate_N], catalogue.creator_I[item_SP[slate_N, position_N]]] = True
