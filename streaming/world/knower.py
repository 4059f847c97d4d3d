"""How good a recommender could be: a reader who knows every item and how users behave, and infers only tastes.

The oracle knows the taste, too, which nobody can; the knower reads the same events that a recommender gets. It is a
particle filter (Gordon, Salmond and Smith, 1993) without resampling: tastes drawn as the population's are, weighed by
the likelihood of what the user has done. Items are ordered by their mean click probability over the tastes, which is
the best that can be done for the next slate.

Shapes: K particles, M of them drawn by weight, P positions, D latent dimensions.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy.special import log_ndtr

from features.events import EventType
from streaming.world.behaviour import WATCHED_TO_THE_END, Bools, Shown, click_probability
from streaming.world.catalogue import Floats, Ints
from streaming.world.occurrences import EVENT_TYPES
from streaming.world.population import Population, draw_population
from streaming.world.world import Reaction, UserClone, World

PARTICLES = 40_000
_DRAWN = 800
"""Particles by which items are judged."""
_IMPRESSION, _WATCH = map(EVENT_TYPES.index, (EventType.IMPRESSION, EventType.WATCH))


class Knower:
    """What is known of one clone's taste, from the history on. For evaluation only."""

    def __init__(self, world: World, clone: UserClone, particles: int = PARTICLES) -> None:
        """Reads the user's history."""
        self._world, self._clone = world, clone
        self._prior = _prior(world, particles)
        self._rng = np.random.default_rng([world.parameters.seed, 3, clone.index])
        self._log_weight_K = np.zeros(particles)
        for item_P, time_ms, watched_P in _past_slates(world, clone.index):
            unseen = np.zeros((1, len(item_P)), np.bool_)
            shown = replace(world._shown(clone, item_P, time_ms), seen_SP=unseen)
            self._weigh(item_P, time_ms, shown, watched_P)

    def live(self, count: int, now_ms: int) -> Reaction:
        """Shows the clone the unseen items of the highest expected click probability, and learns from what it does."""
        item_P = self._best(count, now_ms)
        shown = self._world._shown(self._clone, item_P, now_ms)
        reaction = self._world.react(self._clone, self._world._ids(item_P), "knower", now_ms)
        self._weigh(item_P, now_ms, shown, np.array(reaction.watched_P))
        return reaction

    def _best(self, count: int, now_ms: int) -> Ints:
        item_P = self._world._unseen(self._clone, now_ms, None)
        weight_K = np.exp(self._log_weight_K - self._log_weight_K.max())
        drawn_M = self._rng.choice(len(weight_K), _DRAWN, p=weight_K / weight_K.sum())
        shown = self._world._shown(self._clone, item_P, now_ms)
        click_MP, _ = self._probability(drawn_M, item_P, now_ms, shown)
        return item_P[np.argsort(-click_MP.mean(axis=0), kind="stable")[:count]]

    def _weigh(self, item_P: Ints, time_ms: int, shown: Shown, watched_P: Floats) -> None:
        parameters = self._world.parameters.behaviour
        every_K = np.arange(len(self._log_weight_K))
        click_KP, match_KP = self._probability(every_K, item_P, time_ms, shown)
        click_KP = click_KP * parameters.examination_decay ** np.arange(len(item_P))
        clicked_P: Bools = watched_P > 0
        log_KP = np.where(clicked_P, np.log(click_KP), np.log1p(-click_KP))
        # The logit of what was watched is normal around the match's; from a point on the user watches to the end.
        fraction_P = np.clip(watched_P[clicked_P], 1e-4, WATCHED_TO_THE_END)
        expected_KP = parameters.watch_bias + parameters.watch_taste_weight * match_KP[:, clicked_P]
        off_KP = (np.log(fraction_P / (1 - fraction_P)) - expected_KP) / parameters.watch_sd
        to_the_end_P = watched_P[clicked_P] >= WATCHED_TO_THE_END
        log_KP[:, clicked_P] += np.where(to_the_end_P, log_ndtr(-off_KP), -(off_KP**2) / 2)
        self._log_weight_K += log_KP.sum(axis=1)

    def _probability(self, chosen_M: Ints, item_P: Ints, time_ms: int, shown: Shown) -> tuple[Floats, Floats]:
        """Click probabilities once examined, and matches, `[M, P]` both, of users with the chosen tastes."""
        taste_MD = self._prior.taste_at(chosen_M, np.full(len(chosen_M), time_ms))
        match_MP: Floats = taste_MD @ self._world._catalogue.taste_ID[item_P].T
        as_others = replace(shown, match_SP=match_MP)
        return click_probability(as_others, self._world.parameters.behaviour), match_MP


@lru_cache(maxsize=1)
def _prior(world: World, particles: int) -> Population:
    """Users drawn like the world's, but others."""
    sizes = world.parameters.population.model_copy(update={"users": particles, "live_only_users": 0})
    parameters = world.parameters.model_copy(update={"population": sizes})
    rng = np.random.default_rng([world.parameters.seed, 4])
    return draw_population(rng, world._creators, parameters, world.now_ms)


def _past_slates(world: World, user: int) -> list[tuple[Ints, int, Floats]]:
    """The user's slates in the history: items by position, instant, and the fraction watched of each."""
    happened, _ = world._simulated
    own = happened.taken(np.flatnonzero(happened.user_N == user))
    slates = []
    for slate in np.unique(own.slate_N):
        events = own.taken(np.flatnonzero(own.slate_N == slate))
        shown_N, watched_N = events.type_N == _IMPRESSION, events.type_N == _WATCH
        item_P = events.item_N[shown_N][np.argsort(events.position_N[shown_N])]
        watched_P = np.zeros(len(item_P))
        watched_P[events.position_N[watched_N]] = events.watch_ms_N[watched_N]
        time_ms = int(events.time_ms_N[shown_N][0])
        slates.append((item_P, time_ms, watched_P / world._catalogue.duration_ms_I[item_P]))
    return slates
