"""Names of the topics, lake tables and clocks' constants at which the rooms meet.

Derived topics carry the feature specs' hash, so that two versions of the features never share a row.
"""

from dataclasses import dataclass

MS_PER_SECOND = 1_000
MS_PER_MINUTE = 60 * MS_PER_SECOND
MS_PER_HOUR = 60 * MS_PER_MINUTE
MS_PER_DAY = 24 * MS_PER_HOUR


@dataclass(frozen=True, kw_only=True)
class Topics:
    """Kafka topic names of one feature version.

    `events`, `items` and `slates` are facts and keep their names for ever; the others are derived by the
    stream job from the specs and are suffixed with `version` (see `features.specs.version`).
    """

    version: str
    events: str = "millrace.events"
    """Raw user events, JSON, keyed by user_id. Kept for ever on the local stack."""
    items: str = "millrace.items"
    """The catalogue, JSON, compacted by item_id."""
    slates: str = "millrace.slates"
    """Served slates with features, scores and propensities, JSON, keyed by user_id."""

    @property
    def dead_letters(self) -> str:
        """Records that break the event contract: reason, source partition and offset, original bytes."""
        return f"millrace.dead-letters.{self.version}"

    @property
    def too_late(self) -> str:
        """Valid events that arrived more than the horizon after their event time."""
        return f"millrace.too-late.{self.version}"

    @property
    def duplicates(self) -> str:
        """Where later copies of a counted (user_id, event_id) stand: partition and offset."""
        return f"millrace.duplicates.{self.version}"

    @property
    def interactions(self) -> str:
        """Valid events, once each, keyed by user_id: what the keyed sets are built from."""
        return f"millrace.interactions.{self.version}"

    def tiles(self, family: str) -> str:
        """The compacted topic of one tile family (`features.tiles.FAMILIES`)."""
        return f"millrace.tiles.{family.replace('_', '-')}.{self.version}"


@dataclass(frozen=True, kw_only=True)
class LakeTables:
    """Paths of the Delta tables below the lake's root. Plain directories, so `deltalake` reads them with no JVM."""

    bronze_events: str = "bronze/events"
    """Every record of the events topic as it came: value bytes, key, partition, offset, arrival_ms."""
    silver_events: str = "silver/events"
    """Counted events once each, with arrival_ms, partition and offset; partitioned by event_date."""
    too_late_events: str = "silver/too_late"
    """Valid events that arrived more than the horizon after their event time, copies included."""
    dead_letters: str = "silver/dead_letters"
    """Records that break the contract: reason, partition, offset, arrival_ms, value bytes."""
    duplicates: str = "silver/duplicates"
    """Later copies of a counted (user_id, event_id): partition, offset, arrival_ms."""
    items: str = "silver/items"
    """The catalogue's latest row per item_id."""
    slates: str = "silver/slates"
    """Served slates, one row a request_id."""
    day_tiles: str = "gold/day_tiles"
    """Prefix of the day tiles, one table a family: `gold/day_tiles/user_category`, `gold/day_tiles/item`."""
    offline_features: str = "gold/features"
    """Prefix of the finalised windowed features, one table a Feast view."""
    examples: str = "gold/examples"
    """Training examples: one row an impression, features as of its slate, served or recomputed, and labels."""
    feature_parity: str = "gold/feature_parity"
    """One row a run and feature: how often the served value was not the one that point-in-time recomputation gives."""
    erased_users: str = "erased_users"
    """Digests of erased users (`features.erasure`), whose records the ingest refuses, and since when."""
    quarantine: str = "quarantine"
    """Partitions that a quality gate has shut, with the reasons (`features.quarantine`)."""
