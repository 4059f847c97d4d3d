"""The multitask network of a table. Shapes: N rows, F numbers, K category columns, P pieces, I inputs, T tasks."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.ranker.experts import PLE, MMoE, Towers
from models.tabular.config import NetworkConfig


class TabularNetwork(nn.Module):
    """Logits of all tasks. Encodes, goes through the hidden layers, mixes experts by task, and adds a wide part."""

    def __init__(
        self, sizes: Sequence[int], edges: Sequence[Sequence[float]], tasks: int, config: NetworkConfig
    ) -> None:
        super().__init__()
        self.inputs = _Inputs(sizes, edges, config.embedding_dim)
        self.dropout = nn.Dropout(config.dropout)
        widths = [self.inputs.width, *config.hidden_dims]
        layers = [
            nn.Sequential(nn.Linear(read, width), nn.LayerNorm(width), nn.ReLU(), nn.Dropout(config.dropout))
            for read, width in pairwise(widths)
        ]
        self.hidden = nn.Sequential(*layers)
        self.mixture = _mixture(widths[-1], tasks, config)
        self.towers = Towers(tasks, config.expert_dim, config.tower_dim)
        self.wide = _Wide(sizes, self.inputs.numbers, tasks) if config.wide else None

    def forward(self, number_NF: Tensor, code_NK: Tensor) -> Tensor:
        """Logits `[N, T]`. A null number is NaN."""
        piece_NP = self.inputs.pieces(number_NF)
        input_NI = self.dropout(self.inputs(piece_NP, code_NK))
        logit_NT: Tensor = self.towers(self.mixture(self.hidden(input_NI)))
        return logit_NT if self.wide is None else logit_NT + self.wide(piece_NP, code_NK)

    def start_at(self, label_NT: Tensor) -> None:
        """Sets each task's bias to its mean label."""
        self.towers.start_at(label_NT)


class SingleTasks(nn.Module):
    """A network for each task, which share nothing: what sharing has to beat."""

    def __init__(
        self, sizes: Sequence[int], edges: Sequence[Sequence[float]], tasks: int, config: NetworkConfig
    ) -> None:
        super().__init__()
        self.each = nn.ModuleList(TabularNetwork(sizes, edges, 1, config) for _ in range(tasks))

    def start_at(self, label_NT: Tensor) -> None:
        """Sets each task's bias to its mean label."""
        for t, one in enumerate(self.each):
            one.start_at(label_NT[:, t : t + 1])  # type: ignore[operator]  # mypy takes a ModuleList's parts for any module

    def forward(self, number_NF: Tensor, code_NK: Tensor) -> Tensor:
        """Logits `[N, T]`."""
        return torch.cat([network(number_NF, code_NK) for network in self.each], dim=1)


Network = TabularNetwork | SingleTasks


def build_network(sizes: Sequence[int], edges: Sequence[Sequence[float]], tasks: int, config: NetworkConfig) -> Network:
    """The network that the configuration names, for columns with these numbers of codes and edges of pieces."""
    made = SingleTasks if config.mixture == "single-task" else TabularNetwork
    return made(sizes, edges, tasks, config)


def _mixture(width: int, tasks: int, config: NetworkConfig) -> MMoE | PLE:
    if config.mixture == "ple":
        return PLE(
            hidden_dim=width,
            tasks=tasks,
            shared_experts=config.experts,
            own_experts=config.own_experts,
            expert_dim=config.expert_dim,
            levels=config.levels,
        )
    return MMoE(hidden_dim=width, tasks=tasks, experts=config.experts, expert_dim=config.expert_dim)


class _Inputs(nn.Module):
    """Embeddings of all categories, and each number as its value, its pieces and whether it is null."""

    low_P: Tensor
    scale_P: Tensor
    owner_P: Tensor
    offset_K: Tensor

    def __init__(self, sizes: Sequence[int], edges: Sequence[Sequence[float]], embedding_dim: int) -> None:
        super().__init__()
        pairs = [(f, low, high) for f, own in enumerate(edges) for low, high in pairwise(own)]
        self.register_buffer("owner_P", torch.tensor([pair[0] for pair in pairs], dtype=torch.int64))
        self.register_buffer("low_P", torch.tensor([pair[1] for pair in pairs], dtype=torch.float32))
        self.register_buffer("scale_P", torch.tensor([1 / (pair[2] - pair[1]) for pair in pairs], dtype=torch.float32))
        self.register_buffer("offset_K", _offsets(sizes))
        self.embedding = nn.Embedding(max(sum(sizes), 1), embedding_dim)
        nn.init.normal_(self.embedding.weight, std=embedding_dim**-0.5)
        self.numbers = 2 * len(edges) + len(pairs)
        self.width = self.numbers + len(sizes) * embedding_dim

    def pieces(self, number_NF: Tensor) -> Tensor:
        """Value, null and, of each piece, how far the value fills it: 0 below, 1 above. All 0 but null for null."""
        null_NF = torch.isnan(number_NF)
        value_NF = torch.where(null_NF, torch.zeros_like(number_NF), number_NF)
        fill_NP = torch.clamp((value_NF[:, self.owner_P] - self.low_P) * self.scale_P, 0.0, 1.0)
        given_NP = (~null_NF).float()[:, self.owner_P]
        return torch.cat([value_NF, null_NF.float(), fill_NP * given_NP], dim=1)

    def forward(self, piece_NP: Tensor, code_NK: Tensor) -> Tensor:
        """Everything side by side, `[N, I]`."""
        return torch.cat([piece_NP, self.embedding(code_NK + self.offset_K).flatten(1)], dim=1)


class _Wide(nn.Module):
    """A linear term of each category and each number's pieces."""

    offset_K: Tensor

    def __init__(self, sizes: Sequence[int], numbers: int, tasks: int) -> None:
        super().__init__()
        self.register_buffer("offset_K", _offsets(sizes))
        self.category = nn.Embedding(max(sum(sizes), 1), tasks)
        self.number = nn.Linear(numbers, tasks, bias=False)
        nn.init.zeros_(self.category.weight)
        nn.init.zeros_(self.number.weight)

    def forward(self, piece_NP: Tensor, code_NK: Tensor) -> Tensor:
        """What it adds to the logits, `[N, T]`."""
        added_NT: Tensor = self.category(code_NK + self.offset_K).sum(dim=1) + self.number(piece_NP)
        return added_NT


def _offsets(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([sum(sizes[:k]) for k in range(len(sizes))], dtype=torch.int64)
