"""How a user reacts to a slate: examination by position, attraction by taste, then watching and the rest.

Shapes: S slates, P positions, D latent dimensions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.names import MS_PER_DAY
from streaming.world.catalogue import Catalogue, Floats, Ints
from streaming.world.parameters import BehaviourParameters, CatalogueParameters

Bools = npt.NDArray[np.bool_]

_LOOK_MS = 1_500
"""Time that looking at one position takes."""
WATCHED_TO_THE_END = 0.85
_WATCH_MS_MIN = 500
_STEP_MS = 2
"""Least distance between what happens at two positions, whatever the pace."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Slates as their users see them, the behaviour model's whole input."""

    match_SP: Floats
    """Cosine of the user's and the item's tastes."""
    appeal_SP: Floats
    """Appeal to everyone, in logits: quality and freshness."""
    other_language_SP: Bools
    followed_SP: Bools
    """Whether the user follows the item's creator."""
    seen_SP: Bools
    duration_ms_SP: Ints


@dataclass(frozen=True, kw_only=True)
class Reactions:
    """What the users did at each position, with times from the slate's start."""

    clicked_SP: Bools
    liked_SP: Bools
    shared_SP: Bools
    followed_SP: Bools
    hidden_SP: Bools
    watch_ms_SP: Ints
    """0 where not clicked."""
    looked_after_ms_SP: Ints
    """When the user came to the position: the time of a click or a hide."""
    watched_after_ms_SP: Ints
    """When a watch ended; likes, shares and follows come after it."""

    @property
    def last_after_ms(self) -> Ints:
        """When each slate `[S]` was over, after its start."""
        last: Ints = self.watched_after_ms_SP[:, -1] + 4 * _STEP_MS
        return last


def appeal(catalogue: Catalogue, parameters: CatalogueParameters, item: Ints, time_ms: Ints | int) -> Floats:
    """Appeal of items to everyone at instants, in logits: quality plus a freshness that fades."""
    age_days = np.maximum(time_ms - catalogue.published_at_ms_I[item], 0) / MS_PER_DAY
    fresh: Floats = parameters.fresh_appeal * np.exp(-age_days / parameters.fade_days)
    return catalogue.quality_I[item] + fresh


def click_probability(shown: Shown, parameters: BehaviourParameters) -> Floats:
    """Probability `[S, P]` of a click on each item, once examined."""
    logit_SP = parameters.attraction_bias + parameters.taste_weight * shown.match_SP + shown.appeal_SP
    logit_SP = logit_SP - parameters.other_language_penalty * shown.other_language_SP
    logit_SP = logit_SP + parameters.follow_appeal * shown.followed_SP - parameters.seen_penalty * shown.seen_SP
    return _sigmoid(logit_SP)


def react(rng: np.random.Generator, shown: Shown, parameters: BehaviourParameters, pace: float) -> Reactions:
    """Draws reactions to slates.

    `pace` scales the time that looking and watching take: 1 in simulated time, 0 where the clock is real and all
    happens within a fraction of a second, in the same order. What was watched (`watch_ms`) does not depend on it.
    """
    shape = shown.match_SP.shape
    examined_SP = rng.random(shape) < parameters.examination_decay ** np.arange(shape[1])
    clicked_SP = examined_SP & (rng.random(shape) < click_probability(shown, parameters))
    fraction_SP = _watched_fraction(rng, shown.match_SP, parameters)
    watch_ms_SP = np.maximum(np.rint(fraction_SP * shown.duration_ms_SP), _WATCH_MS_MIN).astype(np.int64)
    watch_ms_SP = np.where(clicked_SP, watch_ms_SP, 0)
    pleased_SP = clicked_SP * fraction_SP * np.maximum(shown.match_SP, 0.0)
    dislike_SP = np.where(shown.other_language_SP, 1.0, np.maximum(-shown.match_SP, 0.0))
    spent_ms_SP = pace * (_LOOK_MS * examined_SP + watch_ms_SP) + 5 * _STEP_MS
    end_ms_SP = np.cumsum(spent_ms_SP, axis=1).astype(np.int64)
    return Reactions(
        clicked_SP=clicked_SP,
        liked_SP=rng.random(shape) < parameters.like_rate * pleased_SP,
        shared_SP=rng.random(shape) < parameters.share_rate * pleased_SP,
        followed_SP=(rng.random(shape) < parameters.follow_rate * pleased_SP) & ~shown.followed_SP,
        hidden_SP=examined_SP & ~clicked_SP & (rng.random(shape) < parameters.hide_rate * dislike_SP),
        watch_ms_SP=watch_ms_SP,
        looked_after_ms_SP=end_ms_SP - np.rint(pace * watch_ms_SP).astype(np.int64) - _STEP_MS,
        watched_after_ms_SP=end_ms_SP,
    )


def _watched_fraction(rng: np.random.Generator, match_SP: Floats, parameters: BehaviourParameters) -> Floats:
    noise_SP = parameters.watch_sd * rng.standard_normal(match_SP.shape)
    fraction_SP = _sigmoid(parameters.watch_bias + parameters.watch_taste_weight * match_SP + noise_SP)
    return np.where(fraction_SP >= WATCHED_TO_THE_END, 1.0, fraction_SP)


def _sigmoid(logit: Floats) -> Floats:
    probability: Floats = 1.0 / (1.0 + np.exp(-logit))
    return probability
