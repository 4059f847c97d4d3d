"""supervisord's generated configuration, read back by supervisord's own parser; and the choice of steps."""

from pathlib import Path

import pytest
from supervisor.options import ServerOptions

from infra.programs import PROGRAM_NAMES, STEPS, select
from infra.supervisor import MAX_SOCKET_PATH, Program, render, socket_path


def _parsed(programs: list[Program], directory: Path) -> ServerOptions:
    (directory / "logs").mkdir()
    conf = directory / "supervisord.conf"
    conf.write_text(render(programs, directory=directory, logs_dir=directory / "logs"))
    options = ServerOptions()
    options.realize(["-c", str(conf)])
    return options


def _program(directory: Path, **changes: object) -> Program:
    return Program(**{"name": "writer", "command": ["run", "me"], "directory": directory, **changes})


def test_supervisord_reads_back_what_was_meant(tmp_path: Path) -> None:
    environment = {"PLAIN": "a b", "PERCENT": "50%", "JSON": '{"host": "local[2]", "n": 1}', "LIST": "a,b;c=d"}
    command = ["/bin/echo", "two words", "100%", 'a"quote']
    options = _parsed([_program(tmp_path, command=command, environment=environment)], tmp_path)
    [config] = options.process_group_configs[0].process_configs
    assert config.environment == environment
    assert config.autorestart and config.stopasgroup and config.killasgroup and not config.autostart
    assert config.stdout_logfile == str(tmp_path / "logs" / "writer.log")
    assert config.stdout_logfile_backups > 0
    import shlex

    assert shlex.split(config.command) == command


@pytest.mark.parametrize("text", ["line\nbreak", "comment ;", "comment #1"])
def test_a_value_that_the_format_cannot_carry_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="supervisord's configuration"):
        render([_program(tmp_path, environment={"NAME": text})], directory=tmp_path, logs_dir=tmp_path)


def test_both_kinds_of_quotes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most one kind of quote"):
        render([_program(tmp_path, environment={"NAME": "'\""})], directory=tmp_path, logs_dir=tmp_path)


def test_a_deep_directory_has_a_short_socket(tmp_path: Path) -> None:
    assert socket_path(tmp_path).parent == tmp_path or len(str(tmp_path)) > MAX_SOCKET_PATH - 20
    deep = tmp_path / ("d" * 120)
    assert len(str(socket_path(deep))) <= MAX_SOCKET_PATH
    assert socket_path(deep) != socket_path(tmp_path / ("e" * 120))


def test_every_step_waits_for_earlier_ones_only() -> None:
    seen: set[str] = set()
    for step in STEPS:
        assert set(step.after) <= seen, f"{step.name} waits for {step.after}, of which some come after it"
        seen.add(step.name)


def test_a_program_comes_with_what_it_needs() -> None:
    assert [step.name for step in select(["writer"])] == ["kafka", "topics", "feature-repo", "writer"]
    parts = [step.name for step in select(["airflow"])]
    assert parts == [step.name for step in select(["airflow-scheduler"])]
    assert parts == ["airflow-setup", "airflow-api", "airflow-pool", "airflow-scheduler", "airflow-dag-processor"]
    assert select(None) == list(STEPS)


def test_an_unknown_program_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown program redis; allowed: airflow, ") as refused:
        select(["kafka", "redis"])
    assert all(name in str(refused.value) for name in PROGRAM_NAMES)
