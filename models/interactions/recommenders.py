"""What is evaluated: models that score every item for users of the training table. Shapes: B users, I items."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy import sparse

from models.als import AlsConfig, factorise
from models.interactions import Kind
from models.train_sources import neighbours_of

Float32s = npt.NDArray[np.float32]


class Item2ItemConfig(BaseModel):
    """Hyper-parameters of item-to-item co-occurrence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbours: int = Field(default=200, ge=1)
    """Similar items kept an item."""
    shrinkage: float = Field(default=10.0, ge=0)
    """Pull of similarities towards 0 where few users support them."""


class PopularConfig(BaseModel):
    """Popularity has nothing to set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Config = AlsConfig | Item2ItemConfig | PopularConfig
CONFIGS: dict[Kind, type[Config]] = {
    Kind.ALS: AlsConfig,
    Kind.ITEM2ITEM: Item2ItemConfig,
    Kind.POPULAR: PopularConfig,
}


class Recommender(Protocol):
    """A trained model."""

    def __call__(self, user_B: npt.NDArray[np.int32]) -> Float32s:
        """Finite scores `[B, I]` of all items for users of the training table, by index; higher is better."""
        ...


def train(weight_UI: "sparse.csr_matrix[Any]", config: Config, seed: int) -> Recommender:
    """Trains the model that the configuration is of."""
    if isinstance(config, AlsConfig):
        factors = factorise(weight_UI, config, seed)
        return lambda user_B: factors.user_UD[user_B] @ factors.item_ID.T
    if isinstance(config, Item2ItemConfig):
        similar_II = _similarities(weight_UI, config)
        return lambda user_B: np.asarray((weight_UI[user_B] @ similar_II).toarray(), np.float32)
    score_I = popularity(weight_UI)
    return lambda user_B: np.broadcast_to(score_I, (len(user_B), len(score_I)))


def popularity(weight_UI: "sparse.csr_matrix[Any]") -> Float32s:
    """How many users each item has: also what users without a history are given."""
    return np.bincount(weight_UI.indices, minlength=weight_UI.shape[1]).astype(np.float32)


def _similarities(weight_UI: "sparse.csr_matrix[Any]", config: Item2ItemConfig) -> "sparse.csr_matrix[Any]":
    neighbour_IN, similarity_IN = neighbours_of(weight_UI, config.neighbours, config.shrinkage)
    items, kept = neighbour_IN.shape
    place = (np.repeat(np.arange(items), kept), neighbour_IN.ravel())
    return sparse.csr_matrix((similarity_IN.ravel(), place), shape=(items, items))
