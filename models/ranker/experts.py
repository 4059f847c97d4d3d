"""Two ways for tasks to share a network, behind one interface: hidden `[N, H]` in, a mixture a task `[T, N, D]` out.

Shapes: N examples, H hidden, T tasks, E experts, S shared experts, O own experts a task, M those that a gate sees,
D expert width, I width that a level reads.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Mixture = Literal["mmoe", "ple"]


class MMoE(nn.Module):
    """Experts that all tasks share, and a softmax gate a task over them (Ma et al., KDD 2018)."""

    def __init__(self, *, hidden_dim: int, tasks: int, experts: int, expert_dim: int) -> None:
        super().__init__()
        self.experts = nn.Linear(hidden_dim, experts * expert_dim)
        self.gates = nn.Linear(hidden_dim, tasks * experts)
        self.shape = (tasks, experts, expert_dim)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """The mixture of each task, `[T, N, D]`."""
        tasks, experts, width = self.shape
        expert_NED = torch.relu(self.experts(hidden_NH)).reshape(-1, experts, width)
        gate_NTE = torch.softmax(self.gates(hidden_NH).reshape(-1, tasks, experts), dim=2)
        return torch.matmul(gate_NTE, expert_NED).transpose(0, 1)


class PLE(nn.Module):
    """Progressive layered extraction: shared and own experts, in levels (Tang et al., RecSys 2020).

    At each level a task's gate sees its own experts and the shared ones, never another task's; the shared stream's gate
    sees all of them. Each level reads what the one below it mixed.
    """

    def __init__(
        self, *, hidden_dim: int, tasks: int, shared_experts: int, own_experts: int, expert_dim: int, levels: int
    ) -> None:
        super().__init__()
        widths = [hidden_dim] + [expert_dim] * (levels - 1)
        self.levels = nn.ModuleList(
            _Level(width, tasks, shared_experts, own_experts, expert_dim, last=level == levels - 1)
            for level, width in enumerate(widths)
        )

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """The last level's mixture of each task, `[T, N, D]`."""
        own_TNI, shared_NI = hidden_NH[None], hidden_NH
        for level in self.levels:
            own_TNI, shared_NI = level(own_TNI, shared_NI)
        return own_TNI


class _Level(nn.Module):
    """One extraction: T own streams and the shared one in, the same out. The last leaves the shared one as it is."""

    def __init__(self, width: int, tasks: int, shared: int, own: int, expert_dim: int, *, last: bool) -> None:
        super().__init__()
        self.shape = (tasks, shared, own, expert_dim)
        self.shared_experts = nn.Linear(width, shared * expert_dim)
        self.own_weight = _uniform(tasks, width, own * expert_dim)
        self.own_bias = nn.Parameter(torch.zeros(tasks, 1, own * expert_dim))
        self.gate_weight = _uniform(tasks, width, own + shared)
        self.gate_bias = nn.Parameter(torch.zeros(tasks, 1, own + shared))
        self.shared_gate = None if last else nn.Linear(width, tasks * own + shared)

    def forward(self, own_TNI: Tensor, shared_NI: Tensor) -> tuple[Tensor, Tensor]:
        """Own streams `[T, N, D]` (or `[1, N, I]`, all the same, on the way in) and the shared one `[N, D]`."""
        tasks, shared, own, width = self.shape
        own_TNOD = torch.relu(torch.matmul(own_TNI, self.own_weight) + self.own_bias).reshape(tasks, -1, own, width)
        shared_NSD = torch.relu(self.shared_experts(shared_NI)).reshape(-1, shared, width)
        gate_TNM = torch.softmax(torch.matmul(own_TNI, self.gate_weight) + self.gate_bias, dim=2)
        mixed_TND = torch.matmul(gate_TNM[:, :, None, :own], own_TNOD).squeeze(2)
        mixed_TND = mixed_TND + torch.matmul(gate_TNM[:, :, own:].transpose(0, 1), shared_NSD).transpose(0, 1)
        if self.shared_gate is None:
            return mixed_TND, shared_NI
        all_NMD = torch.cat([own_TNOD.permute(1, 0, 2, 3).reshape(-1, tasks * own, width), shared_NSD], dim=1)
        shared_gate_N1M = torch.softmax(self.shared_gate(shared_NI), dim=1)[:, None, :]
        return mixed_TND, torch.matmul(shared_gate_N1M, all_NMD).squeeze(1)


class Towers(nn.Module):
    """One hidden layer and one logit a task, on that task's mixture. R: tower width."""

    def __init__(self, tasks: int, expert_dim: int, tower_dim: int) -> None:
        super().__init__()
        self.tower_in = nn.Parameter(torch.randn(tasks, expert_dim, tower_dim) * expert_dim**-0.5)
        self.tower_bias = nn.Parameter(torch.zeros(tasks, tower_dim))
        self.tower_out = nn.Parameter(torch.randn(tasks, tower_dim) * tower_dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(tasks))

    def forward(self, mixed_TND: Tensor) -> Tensor:
        """Logits `[N, T]`."""
        tower_TNR = torch.relu(torch.matmul(mixed_TND, self.tower_in) + self.tower_bias[:, None, :])
        logit_TN: Tensor = torch.matmul(tower_TNR, self.tower_out[:, :, None]).squeeze(2)
        return logit_TN.transpose(0, 1) + self.bias

    def start_at(self, label_NT: Tensor) -> None:
        """Sets the bias so that an untrained network predicts each task's mean label (NaN: undefined)."""
        rate_T = torch.nanmean(label_NT, dim=0).nan_to_num(0.5).clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            self.bias.copy_(torch.log(rate_T / (1 - rate_T)))


def _uniform(*shape: int) -> nn.Parameter:
    """As `nn.Linear` is initialised; the width that is read is the last dimension but one."""
    bound = shape[-2] ** -0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
