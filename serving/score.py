"""The ranker's inputs and values for the candidates of one request.

C candidates, A categories of the live table, F features of an entity.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.algebra import Float64s
from features.user_state import UserState
from models.history import UserHistory
from models.item_table import Int32s
from models.ranker_inputs import RankerInputs, Rows, assemble_request
from models.sources.base import Float32s
from models.value import value
from serving.view import LiveView


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the candidates are ordered by. Without the ranker, `probabilities` is empty and `inputs` None."""

    score_C: Float64s
    """Non-finite entries sink: they are -inf here and `serving.sunk_scores.SUNK_SCORE` in the answer."""
    probabilities: Mapping[str, npt.NDArray[np.float32]]
    inputs: RankerInputs | None

    @property
    def sunk(self) -> int:
        """How many scores were not finite."""
        return int((~np.isfinite(self.score_C)).sum())


def score(
    view: LiveView,
    state: UserState,
    history: UserHistory,
    item_index_C: Int32s,
    device: str,
    value_weights: Mapping[str, float] | None = None,
) -> Scored:
    """Values of the bundle's heads, for the user's state at its instant; without weights under the bundle's own."""
    weights = view.bundle.value_weights if value_weights is None else value_weights
    inputs = assemble(view, state, history, item_index_C, device)
    probabilities = view.bundle.ranker.score(inputs)
    value_C = value(probabilities, weights).astype(np.float64)
    return Scored(score_C=value_C, probabilities=probabilities, inputs=inputs)


def unranked(score_C: npt.NDArray[np.float32]) -> Scored:
    """The retrieval's own scores, where the ranker does not apply or failed."""
    finite_C = np.where(np.isfinite(score_C), score_C, -np.inf).astype(np.float64)
    return Scored(score_C=finite_C, probabilities={}, inputs=None)


def assemble(view: LiveView, state: UserState, history: UserHistory, item_index_C: Int32s, device: str) -> RankerInputs:
    """Gathers the candidates' rows of the view and lays the user's beside them."""
    table = view.item_table
    category_C, creator_C = table.category_code[item_index_C], table.creator_code[item_index_C]
    return assemble_request(
        layout=view.bundle.ranker.layout,
        item_table=table,
        item_index_C=item_index_C,
        instant_ms=state.instant_ms,
        user_features_F=state.features_F,
        user_category_CF=Rows(_user_category_AF(view, state), category_C.astype(np.int64)),
        item_CF=view.items.rows(item_index_C),
        creator_CF=view.creators.rows(creator_C),
        category_CF=view.categories.rows(category_C),
        history=history,
        affinity_CA=_affinity(view, history, item_index_C),
        device=device or None,
    )


def _affinity(view: LiveView, history: UserHistory, item_index_C: Int32s) -> Float32s | None:
    if (als := view.bundle.als) is None:
        return None
    return als.affinity(als.fold_in(history.item_index_L, history.weight_L), item_index_C)


def _user_category_AF(view: LiveView, state: UserState) -> Float64s:  # noqa: N802 - shape suffix
    values_AF = np.repeat(state.empty_category_features_F[None, :], len(view.item_table.categories), axis=0)
    for k, category in enumerate(state.categories):
        code = view.item_table.category_index.get(category)
        if code is not None:
            values_AF[code] = state.category_features_KF[k]
    return values_AF
