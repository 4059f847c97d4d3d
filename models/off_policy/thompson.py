"""How often Bernoulli Thompson sampling shows each action. Shapes: D draws, A actions, P positions."""

import numpy as np

from models.off_policy.log import Float64s
from models.refusal import RefusalError

DRAWS = 100_000
DRAWS_AT_ONCE = 10_000


def thompson_distribution(
    alpha_A: Float64s, beta_A: Float64s, positions: int, rng: np.random.Generator, draws: int = DRAWS
) -> Float64s:
    """Chance of each action at each position, [A, P], by Monte Carlo (Thompson, 1933).

    Each draw takes one click rate an action from its Beta(alpha, beta) and ranks the actions by it; the best fill the
    positions in that order. Each column sums to 1; the error of a chance p is sqrt(p (1 - p) / draws). Raises
    `RefusalError` for parameters that are not positive and for more positions than actions.
    """
    actions = len(alpha_A)
    if len(beta_A) != actions or not (np.append(alpha_A, beta_A) > 0).all() or not 1 <= positions <= actions:
        raise RefusalError(
            f"Thompson sampling: got {actions} alpha, {len(beta_A)} beta and {positions} positions; allowed: as many "
            "positive alpha as beta, and 1 to that many positions; correct the parameters."
        )
    count_PA = np.zeros((positions, actions))
    for start in range(0, draws, DRAWS_AT_ONCE):
        rate_DA = rng.beta(alpha_A, beta_A, size=(min(DRAWS_AT_ONCE, draws - start), actions))
        best_DP = np.argsort(-rate_DA, axis=1)[:, :positions]
        for position in range(positions):
            count_PA[position] += np.bincount(best_DP[:, position], minlength=actions)
    return count_PA.T / draws
