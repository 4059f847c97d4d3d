"""The local stack on real processes: up, twice, what goes wrong while starting, and down to the last orphan."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra import stack as stack_module
from infra.processes import wait_until
from infra.programs import STEPS, Step
from infra.settings import ROOT, Settings, load_settings
from infra.stack import Stack, StackError
from infra.supervisor import Program, log_path


@pytest.fixture
def settings(tmp_path: Path, free_port_base: int) -> Settings:
    return load_settings(var_dir=tmp_path / "var", port_base=free_port_base, kafka_heap_mb=256, start_timeout_s=60)


@pytest.fixture
def stack(settings: Settings) -> Iterator[Stack]:
    with Stack(settings) as running:
        yield running


def _shell(name: str, script: str) -> Any:
    def program(settings: Settings) -> Program:
        return Program(name=name, command=["sh", "-c", script], directory=ROOT, stop_wait_s=1)

    return program


def _use(monkeypatch: pytest.MonkeyPatch, *steps: Step) -> None:
    """Puts small shell programs in the place of the stack's own."""
    monkeypatch.setattr(stack_module, "steps_of", lambda _: steps)


def test_kafka_comes_up_once_and_goes_down(stack: Stack) -> None:
    said: list[str] = []
    stack.start(said.append, ["kafka"])
    assert any(line.startswith("kafka: ready after") for line in said)
    before = next(program for program in stack.status() if program.name == "kafka")
    assert before.state == "RUNNING"
    assert before.memory_mb > 50
    assert stack.memory_mb() >= before.memory_mb

    Stack(stack.settings).start(said.append, ["kafka"])
    assert said[-1] == "kafka: already there"
    after = next(program for program in stack.status() if program.name == "kafka")
    assert after.pid == before.pid

    other = stack.settings.model_copy(update={"seed": 99})
    with pytest.raises(StackError, match=r"runs with another MILLRACE_SEED; stop it first with millrace down"):
        Stack(other).start(said.append, ["kafka"])

    stack.stop()
    assert not psutil.pid_exists(before.pid)
    assert stack.status() == []
    assert stack.stop() == 0, "a second stop is no error"


def test_a_program_that_dies_is_started_again(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, Step(name="sleeper", program=_shell("sleeper", "exec sleep 600"), ready=lambda _: True))
    stack.start(lambda _: None)
    first = stack.status()[0].pid
    psutil.Process(first).kill()

    def runs_again() -> bool:
        [now] = stack.status()
        return now.state == "RUNNING" and now.pid != first

    assert wait_until(runs_again, 15), stack.status()


def test_a_program_that_does_not_come_up_takes_everything_down_with_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(
        monkeypatch,
        Step(name="good", program=_shell("good", "exec sleep 600"), ready=lambda _: True),
        Step(name="bad", after=("good",), program=_shell("bad", "echo no licence; exit 3"), ready=lambda _: True),
    )
    with pytest.raises(StackError) as failed:
        stack.start(lambda _: None)
    log = log_path(stack.settings.logs_dir, "bad")
    assert str(failed.value) == (
        f"bad ended while starting (no licence); see {log}; what this start had begun is stopped."
    )
    assert stack.supervisor.processes() == []


def test_a_preparation_that_fails_names_its_log(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(context: Any) -> None:
        context.run("schema", ["sh", "-c", "echo disk full; exit 1"])

    slow = Step(name="slow", prepare=lambda context: context.run("slow", ["sleep", "600"]))
    _use(monkeypatch, slow, Step(name="schema", prepare=prepare))
    with pytest.raises(StackError, match=r"schema ended with status 1 \(disk full\); see .*schema.log"):
        stack.start(lambda _: None)
    assert stack.supervisor.processes() == []


def test_a_program_that_is_never_ready_is_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, Step(name="mute", program=_shell("mute", "exec sleep 600"), ready=lambda _: False))
    with Stack(settings.model_copy(update={"start_timeout_s": 2.0})) as stack:
        with pytest.raises(StackError, match="mute was not ready after 2 s"):
            stack.start(lambda _: None)
        assert stack.supervisor.processes() == []


def test_stop_reaches_what_left_the_process_group_and_ignores_sigterm(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pids, stubborn = tmp_path / "pids", tmp_path / "stubborn.sh"
    stubborn.write_text(f"trap '' TERM\necho $$ > {pids}\nwhile :; do sleep 0.2; done\n")
    # A daemon's way: a session of its own, and a parent that is gone.
    script = f"(setsid sh {stubborn} &); exec sleep 600"
    _use(
        monkeypatch,
        Step(name="parent", program=_shell("parent", script), ready=lambda _: pids.exists() and bool(pids.read_text())),
    )
    stack.start(lambda _: None)
    orphan = int(pids.read_text())
    assert psutil.pid_exists(orphan)
    assert stack.stop() >= 1
    assert not psutil.pid_exists(orphan)
    assert stack.supervisor.processes() == []


def test_two_stacks_run_side_by_side(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _use(monkeypatch, Step(name="sleeper", program=_shell("sleeper", "exec sleep 600"), ready=lambda _: True))
    other_settings = stack.settings.model_copy(update={"var_dir": tmp_path / "other"})
    with Stack(other_settings) as other:
        stack.start(lambda _: None)
        other.start(lambda _: None)
        kept = stack.status()[0].pid
        other.stop()
        assert stack.status()[0].pid == kept
        assert psutil.pid_exists(kept)


def test_orphans_of_a_killed_supervisord_are_found(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, Step(name="sleeper", program=_shell("sleeper", "exec sleep 600"), ready=lambda _: True))
    stack.start(lambda _: None)
    sleeper = stack.status()[0].pid
    [supervisord] = [p for p in stack.supervisor.processes() if p.pid != sleeper]
    supervisord.kill()
    supervisord.wait(5)
    assert psutil.pid_exists(sleeper)
    stack.stop()
    assert not psutil.pid_exists(sleeper)


def test_orphans_that_bear_no_mark_are_found(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what a killed scheduler of Airflow leaves behind."""
    script = "env -i sleep 601 & exec sleep 600"
    _use(monkeypatch, Step(name="sleeper", program=_shell("sleeper", script), ready=lambda _: True))
    stack.start(lambda _: None)
    sleeper = psutil.Process(stack.status()[0].pid)
    assert wait_until(lambda: any(child.cmdline() == ["sleep", "601"] for child in sleeper.children()), 10)
    [child] = sleeper.children()
    sleeper.kill()
    assert wait_until(lambda: child.ppid() != sleeper.pid, 10), "it is an orphan"
    stack.stop()
    assert not child.is_running()


def test_ctrl_c_while_starting_leaves_nothing(settings: Settings) -> None:
    millrace, env = Path(sys.executable).parent / "millrace", {**os.environ, **settings.environment()}
    process = subprocess.Popen(
        [millrace, "up", "kafka"],
        cwd=ROOT,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs the tests in the background may ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    stack = Stack(settings)
    assert wait_until(lambda: bool(stack.supervisor.processes()), 30)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "millrace: stopped.\n")
    assert stack.supervisor.processes() == []


def test_every_program_of_the_stack_has_a_command() -> None:
    assert all(step.program or step.prepare for step in STEPS)
