"""The set-up: refusals, retries with growing pauses, and that nothing is built twice."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra import bootstrap
from infra.bootstrap import (
    ARCHIVE_SOURCES,
    ARCHIVES,
    ENVIRONMENTS,
    FUNCTIONS,
    JARS,
    LOOPS,
    ROOT,
    Bootstrap,
    BootstrapError,
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A root with what the set-up reads and nothing built."""
    shutil.copytree(ROOT / "infra" / "requirements", tmp_path / "infra" / "requirements")
    shutil.copytree(ROOT / "infra" / "poms", tmp_path / "infra" / "poms")
    shutil.copytree(ROOT / "streaming" / "java", tmp_path / "streaming" / "java")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("batch", "features"):
        (tmp_path / name).mkdir()
    for name in (*ARCHIVE_SOURCES, "features/algebra.py", "features/names.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _stamp_all(built: Bootstrap) -> None:
    for name in ENVIRONMENTS:
        path, text = built._environment_stamp(name)
        path.parent.mkdir(parents=True)
        path.write_text(text)
    for name in JARS:
        path, text = built._jars_stamp(name)
        path.parent.mkdir(parents=True)
        path.write_text(text)
    for path, text in (built._functions_stamp(), *map(built._archive_stamp, ARCHIVES), built._loops_stamp()):
        path.write_text(text)


def test_a_second_run_builds_nothing(checkout: Path) -> None:
    said: list[str] = []
    built = Bootstrap(checkout, said.append)
    assert built.pending() == (list(ENVIRONMENTS), list(JARS), [FUNCTIONS, *ARCHIVES, LOOPS])
    _stamp_all(built)
    assert built.run() == []
    assert said == []


@pytest.mark.parametrize(
    ("changed", "pending"),
    [
        ("infra/requirements/serve.txt", (["serve"], [], [LOOPS])),
        ("infra/requirements/stream.txt", (["stream"], [], [FUNCTIONS])),
        ("infra/poms/flink/pom.xml", ([], ["flink"], [FUNCTIONS])),
        ("streaming/java/millrace/BitOr.java", ([], [], [FUNCTIONS])),
        ("infra/requirements/app.txt", (["app"], [], ["class archive of spark"])),
        ("infra/poms/spark/pom.xml", ([], ["spark"], ["class archive of spark"])),
        ("infra/poms/kafka/pom.xml", ([], ["kafka"], ["class archive of kafka"])),
        ("batch/class_archive_job.py", ([], [], list(ARCHIVES))),
        ("features/algebra.py", ([], [], [LOOPS])),
        ("features/names.py", ([], [], [])),
    ],
)
def test_a_changed_input_is_built_again_and_nothing_else(
    checkout: Path, changed: str, pending: tuple[list[str], list[str], list[str]]
) -> None:
    built = Bootstrap(checkout, lambda _: None)
    _stamp_all(built)
    with (checkout / changed).open("a") as file:
        file.write("\n# changed\n")
    assert built.pending() == pending


def test_a_download_is_tried_again_with_growing_pauses(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "FIRST_PAUSE_S", 0.001)
    said: list[str] = []
    built = Bootstrap(checkout, said.append)
    counter = checkout / "attempts"
    flaky = f"echo x >> {counter}; echo no route; test $(wc -l < {counter}) -ge 3"
    built._retry("kafka jars", ["sh", "-c", flaky])
    assert counter.read_text().count("x") == 3
    assert len(said) == 2
    assert "attempt 2 of 5 failed (no route); trying again" in said[1]


def test_what_never_works_ends_in_one_sentence_with_a_log(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "FIRST_PAUSE_S", 0.001)
    built = Bootstrap(checkout, lambda _: None)
    built.venvs.mkdir()
    with pytest.raises(BootstrapError, match=r"uv: failed 5 times \(no route\); see .*bootstrap.log") as failed:
        built._retry("uv", ["sh", "-c", "echo no route; exit 1"])
    assert "\n" not in str(failed.value)
    assert "no route" in (built.venvs / "bootstrap.log").read_text()


@pytest.mark.parametrize(
    ("version", "major"),
    [('openjdk version "17.0.15" 2025-04-15', 17), ('java version "1.8.0_402"', 8), ('openjdk version "21" x', 21)],
)
def test_java_versions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, major: int) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho '{version}' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert bootstrap.java_version() == major


def test_a_machine_without_tools_is_told_all_that_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BootstrapError) as refused:
        bootstrap.check_machine()
    assert "Java 17 or newer (no java on PATH answers; install a JDK)" in str(refused.value)
    assert "Maven 3.8 or newer" in str(refused.value)


def test_the_command_refuses_without_java_and_builds_nothing(checkout: Path) -> None:
    shutil.copy(ROOT / "infra" / "bootstrap.py", checkout / "infra")
    command = [sys.executable, str(checkout / "infra" / "bootstrap.py")]
    env = {"PATH": str(checkout)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("setup: this machine lacks Java 17")
    assert done.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()
