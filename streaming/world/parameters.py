"""The world's parameters: every rate and size of the simulation, set before any model is tuned on it."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class CatalogueParameters(_Parameters):
    """Items, their creators and how their appeal fades."""

    items: Count = 2_000
    """Items published before the history's end."""
    categories: Annotated[int, Field(ge=2, le=24)] = 20
    """Number of categories, each with a centre in the space of tastes."""
    creators: Count = 150
    """Number of creators. Each has a home category and a style that shifts its items' tastes."""
    languages: tuple[str, ...] = ("en", "es", "de", "pt")
    """Languages of items and users."""
    language_shares: tuple[float, ...] = (0.55, 0.2, 0.15, 0.1)
    """Share of each language, in the same order; they sum to 1."""
    before_history_fraction: Fraction = 0.6
    """Share of the items that are published before the history begins; the rest appear during it."""
    before_history_days: Positive = 60.0
    """How far back those items' publication reaches."""
    quality_sd: Positive = 0.4
    """Standard deviation of an item's appeal to everyone, in logits."""
    fresh_appeal: Annotated[float, Field(ge=0.0)] = 0.8
    """Extra appeal at publication, in logits."""
    fade_days: Positive = 4.0
    """Time after which a fraction 1/e of the extra appeal is left."""
    creator_spread: Positive = 0.45
    """How far a creator's style lies from the centre of the home category (which has length 1)."""
    item_spread: Positive = 0.35
    """How far an item lies from its category's centre plus its creator's style."""
    off_topic_fraction: Fraction = 0.15
    """Share of items that a creator publishes outside the home category."""
    duration_ms_median: Count = 90_000
    """Median duration of a video."""
    duration_sd: Positive = 0.7
    """Standard deviation of the logarithm of the duration, which is cut to [10 s, 20 min]."""

    @model_validator(mode="after")
    def _shares_match(self) -> Self:
        if len(self.languages) != len(self.language_shares) or abs(sum(self.language_shares) - 1.0) > 1e-9:
            raise ValueError(
                f"got {len(self.languages)} languages with shares {self.language_shares}; "
                "allowed: one share for each language, summing to 1. Correct language_shares."
            )
        return self


class PopulationParameters(_Parameters):
    """Users, their tastes and when they are about."""

    users: Count = 5_000
    """Users who may appear in the history."""
    live_only_users: Annotated[int, Field(ge=0)] = 500
    """Users whom nobody has seen before the live phase."""
    live_new_fraction: Fraction = 0.15
    """Share of these among the users of the live phase."""
    late_user_fraction: Fraction = 0.15
    """Share of the history's users who join during it."""
    favourites_mean: Positive = 2.0
    """Mean number of favourite categories of a user beyond the first (Poisson)."""
    taste_noise: Positive = 0.25
    """Length of the part of a user's taste that no category explains (favourites have length 1)."""
    drift_degrees_per_day: Annotated[float, Field(ge=0.0, le=90.0)] = 2.0
    """Angle by which a taste turns each day, towards another of the same kind."""
    sessions_mean: Positive = 3.2
    """Mean number of sessions of a user over the history's whole length."""
    sessions_sd: Positive = 0.8
    """Standard deviation of the logarithm of that number: activity is heavy-tailed."""
    slates_per_session_mean: Annotated[float, Field(ge=1.0)] = 1.7
    """Mean number of slates in a session (geometric)."""
    slate_gap_ms: Count = 60_000
    """Pause between the last event on a slate and the next slate of the session."""
    peak_hour_utc: Annotated[float, Field(ge=0.0, lt=24.0)] = 19.0
    """Hour of the day at which most users are most active."""
    peak_hour_sd: Positive = 3.0
    """Standard deviation of a user's own peak hour around it."""
    hour_concentration: Annotated[float, Field(ge=0.0)] = 1.2
    """Concentration (von Mises) of a user's sessions around the own peak hour; 0 is a uniform day."""


class BehaviourParameters(_Parameters):
    """What a user does with a slate."""

    slate_size: Count = 10
    """Items in a slate of the history."""
    examination_decay: Fraction = 0.93
    """Position bias: the probability of looking at a position (from 0) is this to the power of the position."""
    attraction_bias: float = -2.7
    """Logit of a click on an examined item of average quality, without any taste for it."""
    taste_weight: Positive = 3.7
    """Logits that a perfect match of tastes (cosine 1) adds."""
    other_language_penalty: Annotated[float, Field(ge=0.0)] = 1.2
    """Logits that an item in another language than the user's loses."""
    follow_appeal: Annotated[float, Field(ge=0.0)] = 0.7
    """Logits that an item of a followed creator gains."""
    seen_penalty: Annotated[float, Field(ge=0.0)] = 3.0
    """Logits that an item loses once the user has been shown it."""
    watch_bias: float = -0.2
    """Logit of the expected watched fraction of a clicked item, without any taste for it."""
    watch_taste_weight: Annotated[float, Field(ge=0.0)] = 2.5
    """Logits of the watched fraction that a perfect match adds."""
    watch_sd: Positive = 1.2
    """Standard deviation of the watched fraction's logit. From 0.85 on the user watches to the end."""
    like_rate: Fraction = 0.6
    """Probability of liking a completed item at a perfect match; falls with the match and the watched part."""
    share_rate: Fraction = 0.15
    """The same for sharing."""
    follow_rate: Fraction = 0.2
    """The same for following the creator."""
    hide_rate: Fraction = 0.06
    """Probability of hiding an examined item at the worst match (cosine -1) or in another language."""


class PolicyParameters(_Parameters):
    """The policy that chose the slates of the history: a mixture, so that its log says something of all items."""

    popular_fraction: Fraction = 0.4
    """Share of slates that lean on quality and freshness."""
    random_fraction: Fraction = 0.2
    """Share of slates of uniformly random items. What is left leans on the user's taste."""
    popularity_weight: Annotated[float, Field(ge=0.0)] = 2.0
    """Weight of an item's appeal to everyone in a popular slate, against Gumbel noise of scale 1."""
    taste_weight: Annotated[float, Field(ge=0.0)] = 5.0
    """Weight of the match in a taste slate, against the same noise."""

    @model_validator(mode="after")
    def _fractions_fit(self) -> Self:
        total = self.popular_fraction + self.random_fraction
        if total > 1.0:
            raise ValueError(
                f"got popular_fraction + random_fraction = {total}; allowed: at most 1. Lower one of them."
            )
        return self


class FaultParameters(_Parameters):
    """What goes wrong between a user's phone and the topic. Rates are per valid event."""

    delay_ms_median: Count = 250
    """Median delay of the network (log-normal)."""
    delay_sd: Positive = 0.8
    """Standard deviation of the delay's logarithm."""
    out_of_order_rate: Fraction = 0.02
    """Events that take 1 to 30 s longer, and so are overtaken by others."""
    late_minutes_rate: Fraction = 0.01
    """Events that come 1 to 60 minutes late."""
    late_days_rate: Fraction = 0.003
    """Events that come 0.1 to 1.9 days late, within the horizon."""
    too_late_rate: Fraction = 0.001
    """Events that come 2.1 to 4 days late, after the horizon."""
    duplicate_rate: Fraction = 0.01
    """Events that are sent a second time, 1 s to 1 h after they arrived."""
    changed_duplicate_fraction: Fraction = 0.3
    """Share of these whose payload has changed under the same id."""
    malformed_rate: Fraction = 0.004
    """Records that are no JSON object."""
    unknown_type_rate: Fraction = 0.002
    """Records with an unknown event type."""
    broken_rate: Fraction = 0.004
    """Records that break another rule of the contract."""

    @model_validator(mode="after")
    def _delays_fit(self) -> Self:
        total = self.out_of_order_rate + self.late_minutes_rate + self.late_days_rate + self.too_late_rate
        if total > 1.0:
            raise ValueError(f"got rates of delays that sum to {total}; allowed: at most 1. Lower one of them.")
        return self


class WorldParameters(_Parameters):
    """Everything that, with a seed and an instant, fixes the world."""

    seed: Annotated[int, Field(ge=0)] = 7
    """Seed of every random number."""
    history_days: Positive = 14.0
    """Length of the history that ends now."""
    latent_dim: Annotated[int, Field(ge=2)] = 16
    """Dimensions of the space of tastes."""
    catalogue: CatalogueParameters = CatalogueParameters()
    """Items and creators."""
    population: PopulationParameters = PopulationParameters()
    """Users."""
    behaviour: BehaviourParameters = BehaviourParameters()
    """Reactions to slates."""
    policy: PolicyParameters = PolicyParameters()
    """The history's slates."""
    faults: FaultParameters = FaultParameters()
    """Delays, duplicates and broken records."""

    @model_validator(mode="after")
    def _first_slate_fits(self) -> Self:
        published = round(self.catalogue.items * self.catalogue.before_history_fraction)
        if published < self.behaviour.slate_size:
            raise ValueError(
                f"got {published} items published before the history; allowed: at least slate_size = "
                f"{self.behaviour.slate_size}. Raise items or before_history_fraction."
            )
        return self
