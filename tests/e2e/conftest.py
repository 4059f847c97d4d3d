"""A trained chain on a small world, for the files that need one: each starts its own, which takes minutes."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from rich.console import Console

from infra.demo.chain import Chain
from infra.demo.options import DemoOptions
from infra.demo.phases import Phases
from infra.demo.report import Report
from infra.demo.world_scenario import WorldScenario
from infra.settings import load_settings
from infra.stack import Stack
from streaming.records import Record
from tests.conftest import TEST_STACK

OPTIONS = DemoOptions(users=400, items=600, seed=11)


@pytest.fixture(scope="module")
def scenario(
    free_port_base: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WorldScenario, list[Record]]]:
    """A trained chain, and every record of the history that it learnt from."""
    settings = load_settings(
        stack="e2e",
        var_dir=tmp_path_factory.mktemp("e2e") / "stack",
        port_base=free_port_base,
        seed=OPTIONS.seed,
        **TEST_STACK,
    )
    with Stack(settings) as stack:
        chain = Chain.start(stack, Phases(console=Console()))
        with closing(chain.airflow):
            world = WorldScenario.create(OPTIONS, chain, Report())
            records = list(world.world.history())
            chain.publish(world.world.items(), records, world.world.now_ms)
            chain.train()
            chain.wait_for_features(world.world.ledger)
            yield world, records
