"""Three days of made-up slates, what users did with them, and examples: what the monitor's tests judge."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from features.names import LakeTables
from features.specs import WINDOWED_FEATURES
from models.examples import LABELS

HOUR_MS = 3_600_000
NOW_MS = 1_760_000_000_000
PROMOTED_MS = NOW_MS - 30 * HOUR_MS
"""When the second bundle took the first one's place."""
USERS, ITEMS, SLOTS = 80, 60, 4
TABLES = LakeTables()

ITEM = pa.struct(
    [
        ("item_id", pa.string()),
        ("position", pa.int32()),
        ("score", pa.float64()),
        ("sources", pa.list_(pa.string())),
        ("probabilities", pa.map_(pa.string(), pa.float64())),
    ]
)
SLATES = pa.schema(
    [
        ("request_id", pa.string()),
        ("user_id", pa.string()),
        ("served_at_ms", pa.int64()),
        ("bundle_id", pa.string()),
        ("arm", pa.string()),
        ("newest_event_ms", pa.int64()),
        ("items", pa.list_(ITEM)),
    ]
)


class World:
    """What was served and done in three days; `now_…` says what the last day is like."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new
        self.click_rate = {old: 0.3, new: 0.3}
        self.hide_rate = {old: 0.05, new: 0.05}
        self.items = {old: ITEMS, new: ITEMS}
        self.now_score = 0.0
        self.now_probability = 0.3
        self.now_behind_ms = 0
        self.now_sources: tuple[str, ...] = ("als", "popular")
        self.now_feature = 0.0
        self.now_label = 0.3

    def write(self, lake: Path) -> Path:
        rng = np.random.default_rng(4)
        slates: list[dict[str, Any]] = []
        events: list[dict[str, Any]] = []
        for n in range(900):
            at_ms = NOW_MS - 72 * HOUR_MS + n * (72 * HOUR_MS // 900)
            slate = self._slate(rng, n, at_ms)
            slates.append(slate)
            events += self._reactions(rng, slate)
        write_deltalake(lake / TABLES.slates, pa.Table.from_pylist(slates, SLATES))
        write_deltalake(lake / TABLES.silver_events, pa.Table.from_pylist(events))
        write_deltalake(lake / TABLES.examples, self._examples(rng))
        return lake

    def _slate(self, rng: np.random.Generator, n: int, at_ms: int) -> dict[str, Any]:
        bundle, today = (self.new if at_ms >= PROMOTED_MS else self.old), at_ms >= NOW_MS - 24 * HOUR_MS
        sources = self.now_sources if today else ("als", "popular")
        items = [
            {
                "item_id": f"i{rng.integers(self.items[bundle])}",
                "position": position,
                "score": float(rng.normal(self.now_score if today else 0.0)),
                "sources": [str(rng.choice(sources))],
                "probabilities": {"click": self.now_probability if today else 0.3},
            }
            for position in range(SLOTS)
        ]
        behind_ms = self.now_behind_ms if today else 0
        return {
            "request_id": f"r{n}",
            "user_id": f"u{n % USERS}",
            "served_at_ms": at_ms,
            "bundle_id": bundle,
            "arm": "millrace",
            "newest_event_ms": at_ms - 60_000 - behind_ms,
            "items": items,
        }

    def _reactions(self, rng: np.random.Generator, slate: dict[str, Any]) -> list[dict[str, Any]]:
        bundle, user, at_ms = slate["bundle_id"], slate["user_id"], slate["served_at_ms"]
        rows = [{"request_id": "", "item_id": "i0", "event_type": "like", "event_time_ms": at_ms - 60_000}]
        for item in slate["items"]:
            happened = [("impression", 1.0), ("click", self.click_rate[bundle]), ("hide", self.hide_rate[bundle])]
            rows += [
                {
                    "request_id": slate["request_id"],
                    "item_id": item["item_id"],
                    "event_type": kind,
                    "event_time_ms": at_ms + 1_000,
                }
                for kind, chance in happened
                if rng.random() < chance
            ]
        return [{**row, "user_id": user, "arrival_ms": row["event_time_ms"] + 20} for row in rows]

    def _examples(self, rng: np.random.Generator) -> pa.Table:
        rows = 2_000
        t_ms = NOW_MS - 72 * HOUR_MS + np.arange(rows) * (72 * HOUR_MS // rows)
        today = t_ms >= NOW_MS - 24 * HOUR_MS
        columns: dict[str, Any] = {"user_id": [f"u{n % USERS}" for n in range(rows)], "t_ms": t_ms}
        keys = {"item_id": 200, "creator_id": 100, "category": 20}
        columns |= {key: [f"{key}-{n % many}" for n in range(rows)] for key, many in keys.items()}
        columns |= {feature.name: rng.poisson(2.0, rows).astype(float) for feature in WINDOWED_FEATURES}
        columns["item_clicks_1h"] += np.where(today, self.now_feature, 0.0)
        columns |= {label: (rng.random(rows) < 0.3).astype(float) for label in LABELS}
        columns["label_like"] = (rng.random(rows) < np.where(today, self.now_label, 0.3)).astype(float)
        return pa.table(columns)
