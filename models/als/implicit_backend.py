"""ALS by the implicit library, which has one regularisation for all rows and 1 for the unobserved weight.

Dividing the whole loss by the unobserved weight brings any loss without frequency scaling into that form.
"""

from typing import Any

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy import sparse
from threadpoolctl import threadpool_limits

from models.als import AlsConfig, AlsError, Factors, start


def factorise(weight_UI: "sparse.csr_matrix[Any]", config: AlsConfig, seed: int) -> Factors:
    """Rows are solved independently of threads. Raises `AlsError` when rows are to be regularised by frequency."""
    if config.frequency_exponent:
        raise AlsError(
            f"ALS: got frequency_exponent={config.frequency_exponent} with the backend implicit, "
            "which regularises all rows alike; take 0, or the backend ials."
        )
    rng = np.random.default_rng(seed)
    with threadpool_limits(limits=1, user_api="blas"):  # implicit has its own threads and slows down under BLAS'
        model = AlternatingLeastSquares(
            factors=config.embedding_dim,
            regularization=config.regularization / config.unobserved_weight,
            alpha=config.alpha / config.unobserved_weight,
            iterations=config.epochs,
            num_threads=config.threads,
            random_state=seed,
        )
        model.cg_steps = config.cg_steps
        model.user_factors, model.item_factors = (start(rows, config, rng) for rows in weight_UI.shape)
        model.fit(weight_UI, show_progress=False)
    sides = (np.asarray(side, np.float32) for side in (model.user_factors, model.item_factors))
    return Factors(*(np.nan_to_num(side) for side in sides))  # rows without interactions are not solved
