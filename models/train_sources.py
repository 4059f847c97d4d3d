"""Making the sources' artefacts from a log of events. Shapes: U users, I items, K categories, D width, N neighbours."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy import sparse

from features.events import EVENT_TYPES
from features.interest import EVENT_WEIGHTS
from features.names import MS_PER_DAY
from models.als import AlsConfig, Factors, factorise
from models.history import collapse
from models.item_table import UNKNOWN, ItemTable
from models.lake import EventLog
from models.sources import Source, hnsw
from models.sources.als import AlsSource
from models.sources.content import ContentSource
from models.sources.exploration import ExplorationSource
from models.sources.follow import FollowSource
from models.sources.item2item import Item2ItemSource
from models.sources.popular import PopularSource
from models.sources.trending import TrendingSource

SIMILARITY_CHUNK = 1_024
"""Items whose similarities are held densely at a time."""


class SourcesConfig(BaseModel):
    """Hyper-parameters of the trained sources."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    als: AlsConfig = AlsConfig()
    neighbours: int = Field(default=100, ge=1)
    """Similar items kept an item."""
    shrinkage: float = Field(default=10.0, ge=0)
    """Pull of item similarities towards 0 where few users support them."""
    popularity_half_life_ms: int = Field(default=2 * MS_PER_DAY, ge=1)


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Implicit feedback as a matrix, with the newest event of each pair in the same order as its data."""

    weight_UI: sparse.csr_matrix[Any]
    time_ms_UI: sparse.csr_matrix[Any]


def feedback(log: EventLog, items: int) -> Feedback:
    """Each user's distinct items of positive weight: the events read as `models.history` reads them in a request."""
    pairs = collapse(log.user_N, log.item_N, log.type_N, log.time_ms_N)
    shape = (len(log.user_ids), items)
    place = (pairs.row_N, pairs.item_index_N)
    return Feedback(
        weight_UI=sparse.csr_matrix((pairs.weight_N, place), shape=shape),
        time_ms_UI=sparse.csr_matrix((pairs.time_ms_N, place), shape=shape),
    )


def train_sources(
    log: EventLog, item_table: ItemTable, config: SourcesConfig, seed: int, als: AlsSource | None = None
) -> dict[str, Source]:
    """Every source, trained on the log, which must not be empty; `als` takes the place of training it here."""
    matrix = feedback(log, len(item_table))
    return {
        "als": als or train_als(matrix, config.als, seed),
        "item2item": train_item2item(matrix, config),
        "popular": train_popular(log, len(item_table), config),
        "trending": TrendingSource(),
        "content": train_content(matrix, item_table),
        "follow": FollowSource(),
        "exploration": ExplorationSource(),
    }


def train_als(matrix: Feedback, config: AlsConfig, seed: int) -> AlsSource:
    """Factorises the weights; only the items' factors are kept, since users are folded in."""
    return als_source(factorise(matrix.weight_UI, config, seed), config)


def als_source(factors: Factors, config: AlsConfig) -> AlsSource:
    """The source of factors that were trained so."""
    return AlsSource(
        item_factors_ID=factors.item_ID,
        alpha=config.alpha,
        regularization=config.regularization,
        frequency_exponent=config.frequency_exponent,
        unobserved_weight=config.unobserved_weight,
        frequency_offset=config.unobserved_weight * len(factors.item_ID),
        hnsw_N=hnsw.build_if_large(factors.item_ID),
    )


def train_item2item(matrix: Feedback, config: SourcesConfig) -> Item2ItemSource:
    """Each item's neighbours by `neighbours_of`."""
    neighbour_IN, similarity_IN = neighbours_of(matrix.weight_UI, config.neighbours, config.shrinkage)
    return Item2ItemSource(neighbour_IN=neighbour_IN, similarity_IN=similarity_IN)


def neighbours_of(
    weight_UI: sparse.csr_matrix[Any], neighbours: int, shrinkage: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Each item's nearest neighbours and their similarities, `[I, N]` both: the cosine of the items' audiences.

    Damped for busy users and shrunk for thin support. Dividing by the audiences' sizes is the correction for
    popularity; a user counts 1 / log2(2 + items) (the inverse user frequency of Breese et al., 1998).
    """
    liked_UI = weight_UI.copy()
    liked_UI.data = np.ones_like(liked_UI.data, dtype=np.float32)
    per_user_U = np.diff(liked_UI.indptr)
    damped_UI = sparse.diags(1 / np.log2(2 + per_user_U)).astype(np.float32) @ liked_UI
    audience_I = np.asarray(liked_UI.multiply(damped_UI).sum(axis=0)).ravel()
    items, kept = liked_UI.shape[1], min(neighbours, liked_UI.shape[1])
    neighbour_IN = np.zeros((items, kept), np.int32)
    similarity_IN = np.zeros((items, kept), np.float32)
    liked_IU, damped_UI = liked_UI.T.tocsr(), damped_UI.tocsc()
    for start in range(0, items, SIMILARITY_CHUNK):
        rows = slice(start, min(start + SIMILARITY_CHUNK, items))
        together_RI = (liked_IU[rows] @ damped_UI).toarray()
        norm_RI = np.sqrt(audience_I[rows, None] * audience_I[None, :]) + shrinkage
        similarity_RI = together_RI / norm_RI
        similarity_RI[np.arange(len(similarity_RI)), np.arange(rows.start, rows.stop)] = 0
        best_RN = np.argsort(-similarity_RI, axis=1, kind="stable")[:, :kept]
        neighbour_IN[rows] = best_RN
        similarity_IN[rows] = np.take_along_axis(similarity_RI, best_RN, axis=1)
    return neighbour_IN, similarity_IN


def train_popular(log: EventLog, items: int, config: SourcesConfig) -> PopularSource:
    """Sum of event weights, each halved every half-life before the newest event; a mostly hidden item scores 0."""
    weight_N = np.array([EVENT_WEIGHTS[event_type] for event_type in EVENT_TYPES])[log.type_N]
    decay_N = np.exp2(-(log.time_ms_N.max() - log.time_ms_N) / config.popularity_half_life_ms)
    known_N = log.item_N != UNKNOWN
    score_I = np.bincount(log.item_N[known_N], weights=(weight_N * decay_N)[known_N], minlength=items)
    return PopularSource(score_I=np.maximum(score_I, 0).astype(np.float32))


RELATED_SHARE = 0.5
"""How much a fully correlated other category counts beside the category itself."""


def train_content(matrix: Feedback, item_table: ItemTable) -> ContentSource:
    """Affinity of categories: 1 on the diagonal, else half the correlation of their audiences where it is positive."""
    categories = len(item_table.categories)
    one_hot_IK = sparse.csr_matrix(
        (np.ones(len(item_table), np.float32), (np.arange(len(item_table)), item_table.category_code)),
        shape=(len(item_table), categories),
    )
    taste_UK = (matrix.weight_UI @ one_hot_IK).toarray()
    taste_UK = taste_UK[taste_UK.sum(axis=1) > 0]
    taste_UK = taste_UK / np.maximum(taste_UK.sum(axis=1, keepdims=True), 1e-9)
    centred_UK = taste_UK - taste_UK.mean(axis=0) if len(taste_UK) else np.zeros((1, categories))
    norm_K = np.linalg.norm(centred_UK, axis=0)
    cosine_KK = centred_UK.T @ centred_UK / np.maximum(np.outer(norm_K, norm_K), 1e-9)
    affinity_KK = RELATED_SHARE * np.clip(cosine_KK, 0, 1)
    np.fill_diagonal(affinity_KK, 1.0)
    return ContentSource(affinity_KK=affinity_KK.astype(np.float32))
