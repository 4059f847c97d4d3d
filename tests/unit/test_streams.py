"""The versions that the stack works on: what runs first, and two side by side."""

from pathlib import Path

import pytest

from features import specs
from features.backends import open_backend
from infra.processes import free_ports, port_is_free
from infra.programs import select, steps_of
from infra.settings import Settings, load_settings
from infra.streams import Stream, save_streams, saved_streams, version_to_run
from infra.supervisor import Program

BESIDE = Stream(
    version="aar2", ports={"flink_rest_port": 41_001, "writer_metrics_port": 41_002, "flink_metrics_port": 41_003}
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(var_dir=tmp_path / "var")


def test_streams_are_read_back(settings: Settings) -> None:
    assert saved_streams(settings) == [Stream(version=specs.version())]
    save_streams(settings, [Stream(version="aa"), BESIDE])
    assert saved_streams(settings) == [Stream(version="aa"), BESIDE]


def test_the_store_says_what_runs(settings: Settings) -> None:
    assert version_to_run(settings) == specs.version()
    assert not settings.var_dir.exists(), "a question made a store"
    with open_backend(settings.online_store_url, specs.version()) as store:
        store.switch(specs.version(), f"{specs.version()}r2")
    assert version_to_run(settings) == f"{specs.version()}r2"


def flags_of(program: Program) -> dict[str, str]:
    words = program.command[program.command.index("-m") + 2 :]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_two_versions_run_side_by_side(settings: Settings) -> None:
    steps = {step.name: step for step in steps_of([Stream(version="aa"), BESIDE])}
    mine = [step for step in steps.values() if step.role and step.program]
    programs = {step.name: step.program(step.settings(settings)) for step in mine if step.program}
    for name, version, port in (("flink", "aa", settings.flink_rest_port), ("flink-aar2", "aar2", 41_001)):
        flags = flags_of(programs[name])
        assert (programs[name].name, flags["--topics-version"], flags["--rest-port"]) == (name, version, str(port))
    groups = set()
    for name, version, port in (("writer", "aa", settings.writer_metrics_port), ("writer-aar2", "aar2", 41_002)):
        flags = flags_of(programs[name])
        assert (programs[name].name, flags["--topics-version"], flags["--metrics-port"]) == (name, version, str(port))
        groups.add(flags["--group"])
    assert len(groups) == 2, "each writer has a consumer group of its own"


def test_a_program_is_known_by_its_role_too() -> None:
    steps = steps_of([BESIDE])
    assert [step.name for step in select(["flink"], steps)] == ["kafka", "topics", "flink-aar2"]
    assert select(["flink-aar2"], steps) == select(["flink"], steps)
    both = steps_of([Stream(version="aa"), BESIDE])
    assert [step.name for step in select(["flink-aar2"], both)] == ["kafka", "topics", "flink-aar2"]


def test_free_ports_are_distinct_and_free() -> None:
    ports = free_ports("127.0.0.1", 5)
    assert len(set(ports)) == 5
    assert all(port_is_free("127.0.0.1", port) for port in ports)
