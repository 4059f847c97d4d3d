"""How fast the service changes bundles, and what bundles beside the champion and a challenger cost an answer.

The real service, on a bundle of 10,000 items whose ranker is small, without store and Kafka; one client at a time asks
for 50 items. A switch is timed from the moment at which `champion.json` is replaced to the first answer of the other
bundle; the service looks four times a second.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from features.names import Topics
from serving.client import RankingClient
from tests.bench.report import Row
from tests.ranking_service import Service, ranking_service
from tests.serving_bundle import promote, tiny_items, write_tiny_bundle

ITEMS = 10_000
SWITCHES = 40
PROMOTIONS = 8
REQUESTS = 1_000
COUNT = 50


def run(console: Console) -> list[Row]:
    """The times of roll-backs and promotions, and of answers without and with what runs beside."""
    tiny = tiny_items()
    items = [replace(tiny[k % len(tiny)], item_id=f"item-{k:05d}") for k in range(ITEMS)]
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        bundles = root / "bundles"
        ids = [write_tiny_bundle(bundles, f"b{k}", items=items).name for k in range(PROMOTIONS + 1)]
        file = root / "experiments.toml"
        topics = Topics(version="bench")
        with (
            ranking_service(root, None, topics, "--experiments", str(file), repo=False) as service,
            RankingClient(service.address, timeout_s=5.0) as client,
        ):
            _switch(service, client, ids[0])
            console.print(f"bundles: {PROMOTIONS} promotions, {SWITCHES} roll-backs")
            promotions = [_switch(service, client, bundle_id) for bundle_id in ids[1:]]
            rollbacks = [_switch(service, client, ids[-2 + k % 2]) for k in range(SWITCHES)]
            alone = _answers(client)
            file.write_text(f'[shadow]\nbundle = "{ids[0]}"\nshare = 1\n')
            while service.metric("ranking_bundles_loaded") < 3:
                time.sleep(0.1)
            shadowed = _answers(client)
            fates = {fate: service.metric(f'ranking_shadow_total{{fate="{fate}"}}') for fate in ("scored", "skipped")}
    settings = {"items": ITEMS, "count": COUNT}
    return [
        *_quantiles("promotion", promotions, settings),
        *_quantiles("rollback", rollbacks, settings),
        *_quantiles("recommend", alone, settings),
        *_quantiles("recommend_with_challenger", shadowed, settings | {"share": 1} | fates),
    ]


def _switch(service: Service, client: RankingClient, bundle_id: str) -> float:
    """Milliseconds until the bundle answers."""
    started_s = time.perf_counter()
    promote(service.bundles, bundle_id)
    while not client.serving() or client.recommend("u", COUNT).bundle_id != bundle_id:
        time.sleep(0.005)
    return (time.perf_counter() - started_s) * 1000


def _answers(client: RankingClient) -> list[float]:
    times_ms = []
    for k in range(REQUESTS):
        started_s = time.perf_counter()
        client.recommend(f"u{k}", COUNT)
        times_ms.append((time.perf_counter() - started_s) * 1000)
        time.sleep(0.01)
    return times_ms


def _quantiles(name: str, times_ms: list[float], settings: dict[str, object]) -> list[Row]:
    settings = settings | {"samples": len(times_ms)}
    values = {"ms_p50": np.median(times_ms), "ms_p99": np.percentile(times_ms, 99), "ms_max": max(times_ms)}
    return [
        Row(name=f"{name}_{what}", value=float(value), unit="ms", settings=settings) for what, value in values.items()
    ]
