"""One request's candidates as the rerank stage reads them. C candidates."""

import numpy as np

from features.specs import Entity, features_of
from models.item_table import Int32s
from serving.rerank import Contenders, Likeness, RuleEffects
from serving.retrieve import Retrieved
from serving.score import Scored
from serving.view import LiveView

_ITEM_FEATURES = [feature.name for feature in features_of(Entity.ITEM)]
_CLICKS, _IMPRESSIONS = _ITEM_FEATURES.index("item_clicks_7d"), _ITEM_FEATURES.index("item_impressions_7d")


def contenders(
    view: LiveView,
    item_index_C: Int32s,
    scored: Scored,
    retrieved: Retrieved,
    rules: RuleEffects,
    instant_ms: int,
    language: str | None,
) -> Contenders:
    """Gathers the candidates' columns of the view, the bundle's ALS factors and the rules' effects. `language` is what
    the caller states.
    """
    table = view.item_table
    explorable, als = retrieved.by_source.get("exploration"), view.bundle.als
    explorable_I = np.zeros(len(table), np.bool_)  # a tenth of the time that `isin` takes
    if explorable is not None:
        explorable_I[explorable.item_index] = True
    spoken = None if language is None else table.language_index.get(language)
    unscored_C = np.full(len(item_index_C), np.nan)
    return Contenders(
        score_C=scored.score_C,
        likeness=Likeness(
            category_C=table.category_code[item_index_C].astype(np.int64),
            creator_C=table.creator_code[item_index_C].astype(np.int64),
            factors_CD=None if als is None else als.unit_factors(item_index_C),
        ),
        age_ms_C=instant_ms - table.published_at_ms[item_index_C],
        explorable_C=explorable_I[item_index_C],
        click_probability_C=np.asarray(scored.probabilities.get("click", unscored_C), np.float64),
        clicks_C=view.items.column(_CLICKS, item_index_C).astype(np.float64),
        impressions_C=view.items.column(_IMPRESSIONS, item_index_C).astype(np.float64),
        foreign_C=None if spoken is None else table.language_code[item_index_C] != spoken,
        rules=rules,
    )
