"""Items and creators with their latent tastes.

Shapes: I items, C creators, K categories, D latent dimensions.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from features.items import Item
from features.names import MS_PER_DAY
from streaming.world.parameters import WorldParameters

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CATEGORY_NAMES = (
    "animals", "animation", "beauty", "business", "cars", "comedy", "cooking", "crafts", "education", "fashion",
    "fitness", "football", "gaming", "gardening", "history", "movies", "music", "nature", "news", "science",
    "skating", "space", "technology", "travel",
)  # fmt: skip
_DURATION_MS_RANGE = (10_000, 1_200_000)
_CREATOR_SHARE_OF_QUALITY = 0.6
"""How much of the standard deviation of quality an item has from its creator."""


@dataclass(frozen=True, kw_only=True)
class Creators:
    """Who publishes, in what language and style."""

    category_centres_KD: Floats
    """Unit vectors."""
    home_C: Ints
    language_C: Ints
    style_CD: Floats
    quality_C: Floats
    weight_C: Floats
    """Share of all items that each publishes; heavy-tailed, sums to 1."""


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Items in order of publication. An item's index is its place here and never changes."""

    taste_ID: Floats
    """Unit vectors."""
    quality_I: Floats
    category_I: Ints
    creator_I: Ints
    language_I: Ints
    duration_ms_I: Ints
    published_at_ms_I: Ints

    def __len__(self) -> int:
        return len(self.quality_I)

    def extended(self, other: "Catalogue") -> Self:
        """This catalogue with the other's items after its own."""
        names = [field.name for field in fields(self)]
        return type(self)(**{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names})

    def item(self, index: int, parameters: WorldParameters) -> Item:
        """What the world may know of the item: the contract's fields."""
        return Item(
            item_id=item_id(index),
            category=CATEGORY_NAMES[self.category_I[index]],
            creator_id=creator_id(int(self.creator_I[index])),
            language=parameters.catalogue.languages[self.language_I[index]],
            duration_ms=int(self.duration_ms_I[index]),
            published_at_ms=int(self.published_at_ms_I[index]),
        )


def item_id(index: int) -> str:
    """The id of the item at an index."""
    return f"item-{index:05d}"


def creator_id(index: int) -> str:
    """The id of the creator at an index."""
    return f"creator-{index:03d}"


def draw_creators(rng: np.random.Generator, parameters: WorldParameters) -> Creators:
    """Creators around random category centres."""
    chosen = parameters.catalogue
    centres_KD = unit(rng.standard_normal((chosen.categories, parameters.latent_dim)))
    weight_C = rng.pareto(1.5, chosen.creators) + 0.2
    return Creators(
        category_centres_KD=centres_KD,
        home_C=rng.integers(chosen.categories, size=chosen.creators),
        language_C=rng.choice(len(chosen.languages), size=chosen.creators, p=chosen.language_shares),
        style_CD=chosen.creator_spread * unit(rng.standard_normal((chosen.creators, parameters.latent_dim))),
        quality_C=rng.standard_normal(chosen.creators),
        weight_C=weight_C / weight_C.sum(),
    )


def draw_items(
    rng: np.random.Generator, creators: Creators, parameters: WorldParameters, published_at_ms_I: Ints
) -> Catalogue:
    """One item for each instant of publication."""
    chosen, count = parameters.catalogue, len(published_at_ms_I)
    creator_I = rng.choice(chosen.creators, size=count, p=creators.weight_C)
    off_topic_I = rng.random(count) < chosen.off_topic_fraction
    category_I = np.where(off_topic_I, rng.integers(chosen.categories, size=count), creators.home_C[creator_I])
    noise_ID = chosen.item_spread * unit(rng.standard_normal((count, parameters.latent_dim)))
    own = _CREATOR_SHARE_OF_QUALITY
    quality_I = own * creators.quality_C[creator_I] + np.sqrt(1 - own**2) * rng.standard_normal(count)
    duration_ms_I = chosen.duration_ms_median * np.exp(chosen.duration_sd * rng.standard_normal(count))
    return Catalogue(
        taste_ID=unit(creators.category_centres_KD[category_I] + creators.style_CD[creator_I] + noise_ID),
        quality_I=chosen.quality_sd * quality_I,
        category_I=category_I,
        creator_I=creator_I,
        language_I=creators.language_C[creator_I],
        duration_ms_I=np.clip(duration_ms_I, *_DURATION_MS_RANGE).astype(np.int64),
        published_at_ms_I=published_at_ms_I,
    )


def draw_publications(rng: np.random.Generator, parameters: WorldParameters, now_ms: int) -> Ints:
    """Instants of publication of the history's items, sorted; all before now."""
    chosen = parameters.catalogue
    start_ms = now_ms - round(parameters.history_days * MS_PER_DAY)
    before = round(chosen.items * chosen.before_history_fraction)
    old = start_ms - rng.random(before) * chosen.before_history_days * MS_PER_DAY
    recent = start_ms + rng.random(chosen.items - before) * (now_ms - start_ms)
    return np.sort(np.concatenate([old, recent]).astype(np.int64))


def unit(vectors: Floats) -> Floats:
    """The vectors along the last axis, each scaled to length 1."""
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled
