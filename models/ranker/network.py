"""The multitask ranker in torch: a first layer in three parts, a mixture of experts a head (`experts`), towers.

The additive position term is Zhao et al., RecSys 2019. Shapes: U user rows (C or 1, broadcast),
N candidates of a user row (C = U N), C candidates, F features, L history slots, A attention width, M matched codes,
K decays, R = N M, H hidden, D expert width, T heads.
"""

import math
from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor, nn

from features.names import MS_PER_DAY, MS_PER_HOUR, MS_PER_MINUTE
from features.specs import WINDOWED_FEATURES, Aggregate
from models.ranker.config import RankerConfig
from models.ranker.experts import PLE, MMoE, Towers
from models.ranker_inputs import AFFINITIES, CANDIDATE_FEATURES, MAX_POSITION, USER_FEATURES, RankerInputs, RankerLayout

INPUT_NAMES: tuple[str, ...] = tuple(field.name for field in fields(RankerInputs))
MATCH_HALF_LIVES_MS: tuple[float, ...] = (10.0 * MS_PER_MINUTE, 2.0 * MS_PER_HOUR, 1.0 * MS_PER_DAY, 1e15)
"""Decays under which history items of the candidate's own category, creator, language or id are added up."""
MATCHED: tuple[str, ...] = ("item", "category", "creator", "language")
MAX_STANDARD = 5.0
"""Standardised features are clipped to this many standard deviations."""
_LINEAR = {feature.name for feature in WINDOWED_FEATURES if feature.aggregate is Aggregate.RATE} | {*AFFINITIES}


class Standardiser(nn.Module):
    """Logarithm of everything but rates and affinities, then mean 0 and variance 1 by constants of the training set."""

    mean_F: Tensor
    scale_F: Tensor
    is_linear_F: Tensor

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.register_buffer("is_linear_F", torch.tensor([name in _LINEAR for name in names]))
        self.register_buffer("mean_F", torch.zeros(len(names)))
        self.register_buffer("scale_F", torch.ones(len(names)))

    def spread(self, raw_NF: Tensor) -> Tensor:
        """The raw values on a scale where they are comparable. Negative counts read as 0."""
        return torch.where(self.is_linear_F, raw_NF, torch.log1p(torch.clamp(raw_NF, min=0.0)))

    def fit(self, raw_NF: Tensor) -> None:
        """Takes the constants from training examples; a constant feature becomes 0."""
        spread_NF = self.spread(raw_NF).double()
        deviation_F = spread_NF.std(dim=0, correction=0)
        self.mean_F.copy_(spread_NF.mean(dim=0))
        self.scale_F.copy_(torch.where(deviation_F > 1e-6, 1 / deviation_F.clamp(min=1e-6), 0.0))

    def forward(self, raw_NF: Tensor) -> Tensor:
        """Standardised values."""
        return torch.clamp((self.spread(raw_NF) - self.mean_F) * self.scale_F, -MAX_STANDARD, MAX_STANDARD)


class RankerNetwork(nn.Module):
    """Logits of all heads from `RankerInputs` by name."""

    def __init__(self, layout: RankerLayout, config: RankerConfig) -> None:
        super().__init__()
        heads = len(layout.heads)
        self.item = _embedding(layout.items + 1, config.item_dim)
        self.category = _embedding(layout.categories + 1, config.category_dim)
        self.creator = _embedding(layout.creators + 1, config.creator_dim)
        self.language = _embedding(layout.languages + 1, config.language_dim)
        self.device = _embedding(len(layout.devices) + 1, config.context_dim)
        self.hour = _embedding(24, config.context_dim)
        self.standard_user = Standardiser(USER_FEATURES)
        self.standard_candidate = Standardiser(CANDIDATE_FEATURES)
        self.standard_static = Standardiser(("duration_ms", "age_ms"))
        self.standard_affinity = Standardiser(AFFINITIES)
        content_dim = config.item_dim + config.category_dim + config.creator_dim
        matches = len(MATCHED) * len(MATCH_HALF_LIVES_MS)
        self.query = nn.Linear(content_dim, content_dim, bias=False)
        self.age_slope = nn.Parameter(torch.tensor(0.3))
        self.from_user = nn.Linear(len(USER_FEATURES) + 2 * config.context_dim + content_dim, config.hidden_dim)
        candidate_dim = len(CANDIDATE_FEATURES) + 2 + content_dim + config.language_dim
        self.from_candidate = nn.Linear(candidate_dim, config.hidden_dim, bias=False)
        self.from_cross = nn.Linear(2 * content_dim + matches + len(AFFINITIES), config.hidden_dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.mixture = _mixture(heads, config)
        self.towers = Towers(heads, config.expert_dim, config.tower_dim)
        self.position = nn.Embedding(MAX_POSITION + 1, heads)
        nn.init.zeros_(self.position.weight)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits `[C, T]`."""
        content_CA, history_ULA = self.content(inputs), self.history(inputs)
        hidden_CH = (
            self.user_part(inputs, history_ULA)
            + self._candidate_part(inputs, content_CA)
            + self.cross_part(inputs, content_CA, self.query(content_CA), history_ULA)
        )
        return self.head_logits(hidden_CH, inputs["position_C"])

    def content(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Embeddings `[C, A]` of what the candidates are."""
        codes = (self.item(inputs["item_C"]), self.category(inputs["category_C"]), self.creator(inputs["creator_C"]))
        return torch.cat(codes, dim=1)

    def history(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The same embeddings `[U, L, A]` of the history's items."""
        item_ULA, category_ULA = self.item(inputs["history_item_UL"]), self.category(inputs["history_category_UL"])
        return torch.cat([item_ULA, category_ULA, self.creator(inputs["history_creator_UL"])], dim=2)

    def head_logits(self, hidden_CH: Tensor, position_C: Tensor) -> Tensor:
        """Logits `[C, T]` of the first layer's sum."""
        logit_CT: Tensor = self.towers(self.mixture(self.dropout(torch.relu(hidden_CH))))
        position_CT: Tensor = self.position(torch.clamp(position_C, max=MAX_POSITION))
        return logit_CT + position_CT

    def user_part(self, inputs: Mapping[str, Tensor], history_ULA: Tensor) -> Tensor:
        """The first layer's user part `[U, H]`, once a request where U is 1."""
        weight_UL = torch.log1p(inputs["history_weight_UL"])
        mean_UA = (history_ULA * weight_UL[:, :, None]).sum(dim=1) / (weight_UL.sum(dim=1, keepdim=True) + 1.0)
        context = [self.device(inputs["device_U"]), self.hour(inputs["hour_U"])]
        part_UH: Tensor = self.from_user(torch.cat([self.standard_user(inputs["user_UF"]), *context, mean_UA], dim=1))
        return part_UH

    def _candidate_part(self, inputs: Mapping[str, Tensor], content_CA: Tensor) -> Tensor:
        windows_CF = self.standard_candidate(inputs["candidate_CF"])
        static_CS = self.standard_static(inputs["static_CS"])
        parts = [windows_CF, static_CS, content_CA, self.language(inputs["language_C"])]
        part_CH: Tensor = self.from_candidate(torch.cat(parts, dim=1))
        return part_CH

    def cross_part(
        self, inputs: Mapping[str, Tensor], content_CA: Tensor, query_CA: Tensor, history_ULA: Tensor
    ) -> Tensor:
        """What the candidate is to the history: attention, matches under several decays, and what ALS says.

        Candidates are laid out as U rows of N, so that one user's are one matrix product (infra/adr/0008).
        """
        users, _, width = history_ULA.shape
        weight_UL, age_UL = inputs["history_weight_UL"], inputs["history_age_ms_UL"]
        query_UNA = query_CA.reshape(users, -1, width)
        affinity_UNL = torch.matmul(query_UNA, history_ULA.transpose(1, 2)) / width**0.5
        # exp(affinity) * weight / (1 + hours)^slope, normalised with one empty slot, so no history gives zeros.
        recency_UL = torch.log1p(weight_UL) * (1 + age_UL / MS_PER_HOUR) ** -torch.relu(self.age_slope)
        mass_UNL = torch.exp(torch.clamp(affinity_UNL, -10.0, 10.0)) * recency_UL[:, None, :]
        attended_UNA = torch.matmul(mass_UNL, history_ULA) / (mass_UNL.sum(dim=2, keepdim=True) + 0.1)
        attended_CA = attended_UNA.reshape(-1, width)
        affinity_CA = self.standard_affinity(inputs["affinity_CA"])
        parts = [attended_CA, attended_CA * content_CA, _matches(inputs), affinity_CA]
        part_CH: Tensor = self.from_cross(torch.cat(parts, dim=1))
        return part_CH

    def forget_rare_items(self, examples_I: np.ndarray[tuple[int], np.dtype[np.int64]], fewest: int) -> None:
        """Gives items with fewer than `fewest` training examples the embedding of an unknown item."""
        rare = torch.from_numpy(np.flatnonzero(examples_I < fewest) + 1)
        with torch.no_grad():
            self.item.weight[rare] = self.item.weight[0].clone()


def _matches(inputs: Mapping[str, Tensor]) -> Tensor:
    """Weight of the history that has the candidate's item, category, creator or language, by decay: `[C, M * K]`."""
    weight_UL, age_UL = inputs["history_weight_UL"], inputs["history_age_ms_UL"]
    users, slots = weight_UL.shape
    decay = [torch.exp(age_UL * (-math.log(2) / half_life)) for half_life in MATCH_HALF_LIVES_MS]
    decayed_ULK = weight_UL[:, :, None] * torch.stack(decay, dim=2)
    code_CM = torch.stack([inputs[f"{name}_C"] for name in MATCHED], dim=1)
    history_UML = torch.stack([inputs[f"history_{name}_UL"] for name in MATCHED], dim=1)
    # What the vocabulary lacks is like nothing, and is told apart here, where there are fewer codes to look at.
    known_UML = torch.where(history_UML > 0, history_UML, -1)
    same_UNML = code_CM.reshape(users, -1, len(MATCHED), 1) == known_UML[:, None]
    total_URK = torch.matmul(same_UNML.float().reshape(users, -1, slots), decayed_ULK)
    return torch.log1p(total_URK).reshape(-1, len(MATCHED) * len(MATCH_HALF_LIVES_MS))


def _mixture(heads: int, config: RankerConfig) -> MMoE | PLE:
    if config.mixture == "mmoe":
        return MMoE(hidden_dim=config.hidden_dim, tasks=heads, experts=config.experts, expert_dim=config.expert_dim)
    return PLE(
        hidden_dim=config.hidden_dim,
        tasks=heads,
        shared_experts=config.experts,
        own_experts=config.own_experts,
        expert_dim=config.expert_dim,
        levels=config.levels,
    )


def _embedding(rows: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, width)
    nn.init.normal_(embedding.weight, std=0.05)
    return embedding
