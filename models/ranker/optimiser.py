"""AdamW (Loshchilov and Hutter, ICLR 2019), without the compiler that `torch.optim` imports on first use.

That import took 4 to 11 s and 155 MB of each training run; a test holds the updates to `torch.optim.AdamW`'s.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW:
    """Decoupled weight decay, dense gradients. Parameters without a gradient are left as they are."""

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.steps = 0
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients."""
        self.steps += 1
        first, second = (1 - beta**self.steps for beta in BETAS)
        for parameter, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            if parameter.grad is None:
                continue
            mean.lerp_(parameter.grad, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(parameter.grad, parameter.grad, value=1 - BETAS[1])
            parameter.mul_(1 - self.learning_rate * self.weight_decay)
            spread = (square / second).sqrt_().add_(EPSILON)
            parameter.addcdiv_(mean, spread, value=-self.learning_rate / first)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"steps": self.steps, "means": self.means, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.steps, self.means, self.squares = state["steps"], state["means"], state["squares"]
