"""Users with their latent tastes.

Shapes: U users, K categories, D latent dimensions, S instants.
"""

from dataclasses import dataclass

import numpy as np

from features.names import MS_PER_DAY
from streaming.world.catalogue import Creators, Floats, Ints, unit
from streaming.world.parameters import WorldParameters

DEVICES = ("phone", "tv", "web")
_DEVICE_SHARES = (0.7, 0.15, 0.15)


@dataclass(frozen=True, kw_only=True)
class Population:
    """Users: first those of the history, then those whom only the live phase brings."""

    taste_UD: Floats
    """Tastes at `origin_ms`, unit vectors."""
    drift_UD: Floats
    """Unit vectors at a right angle to the tastes, towards which they turn."""
    language_U: Ints
    device_U: Ints
    peak_hour_U: Floats
    """Hour of the day, UTC, of most activity."""
    sessions_mean_U: Floats
    """Expected sessions in the history; also how often the user appears in the live phase."""
    joined_ms_U: Ints
    origin_ms: int
    drift_degrees_per_day: float

    def __len__(self) -> int:
        return len(self.language_U)

    def taste_at(self, user_S: Ints, time_ms_S: Ints) -> Floats:
        """Tastes `[S, D]` of users at instants: unit vectors."""
        days_S = (time_ms_S - self.origin_ms) / MS_PER_DAY
        angle_S1 = np.radians(self.drift_degrees_per_day * days_S)[:, None]
        turned: Floats = np.cos(angle_S1) * self.taste_UD[user_S] + np.sin(angle_S1) * self.drift_UD[user_S]
        return turned


def user_id(index: int) -> str:
    """The id of the user at an index."""
    return f"user-{index:05d}"


def draw_population(
    rng: np.random.Generator, creators: Creators, parameters: WorldParameters, now_ms: int
) -> Population:
    """Users whose tastes lie between a few favourite categories each."""
    chosen = parameters.population
    count = chosen.users + chosen.live_only_users
    start_ms = now_ms - round(parameters.history_days * MS_PER_DAY)
    taste_UD = _draw_tastes(rng, creators, parameters, count)
    towards_UD = _draw_tastes(rng, creators, parameters, count)
    along_U1 = np.sum(taste_UD * towards_UD, axis=1, keepdims=True)
    late_U = rng.random(count) < chosen.late_user_fraction
    joined_ms_U = np.where(late_U, start_ms + rng.random(count) * (now_ms - start_ms), start_ms).astype(np.int64)
    joined_ms_U[chosen.users :] = now_ms
    spread = chosen.sessions_sd
    activity_U = np.exp(spread * rng.standard_normal(count) - spread**2 / 2)
    languages = parameters.catalogue
    return Population(
        taste_UD=taste_UD,
        drift_UD=unit(towards_UD - along_U1 * taste_UD),
        language_U=rng.choice(len(languages.languages), size=count, p=languages.language_shares),
        device_U=rng.choice(len(DEVICES), size=count, p=_DEVICE_SHARES),
        peak_hour_U=(chosen.peak_hour_utc + chosen.peak_hour_sd * rng.standard_normal(count)) % 24.0,
        sessions_mean_U=chosen.sessions_mean * activity_U,
        joined_ms_U=joined_ms_U,
        origin_ms=start_ms,
        drift_degrees_per_day=chosen.drift_degrees_per_day,
    )


def _draw_tastes(rng: np.random.Generator, creators: Creators, parameters: WorldParameters, count: int) -> Floats:
    chosen, categories = parameters.population, parameters.catalogue.categories
    favourites_U = np.minimum(1 + rng.poisson(chosen.favourites_mean, count), categories)
    rank_UK = np.argsort(np.argsort(rng.random((count, categories)), axis=1), axis=1)
    weight_UK = np.where(rank_UK < favourites_U[:, None], rng.exponential(size=(count, categories)), 0.0)
    liked_UD = unit(weight_UK @ creators.category_centres_KD)
    noise_UD = unit(rng.standard_normal((count, parameters.latent_dim)))
    return unit(liked_UD + chosen.taste_noise * noise_UD)
