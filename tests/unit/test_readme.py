"""The README names only commands, files and settings that exist."""

import re

import pytest
import typer

from infra.cli import app
from infra.settings import PREFIX, ROOT, Settings

README = (ROOT / "README.md").read_text()
BENCHMARKS = {f"bench-{file.stem.removeprefix('bench_')}" for file in (ROOT / "tests" / "bench").glob("bench_*.py")}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(of: typer.Typer, prefix: str = "") -> set[str]:
    """The commands of an app and of its groups, such as `evaluate candidates`; a group may be a command itself."""
    made_of = [(made.name, made.callback) for made in of.registered_commands if made.callback]
    found = {f"{prefix}{name or function.__name__.replace('_', '-')}" for name, function in made_of}
    for group in of.registered_groups:
        inner = group.typer_instance
        found |= commands(inner, f"{group.name} ")
        if inner.info.invoke_without_command is True:
            found.add(f"{prefix}{group.name}")
    return found


COMMANDS = commands(app)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", README)) - {"bench-"}))
def test_each_make_target_exists(target: str) -> None:
    assert target in TARGETS | BENCHMARKS


def test_each_command_of_the_table_exists() -> None:
    first_cells = re.findall(r"^\| (`.+?`) \|", README, re.MULTILINE)
    named = {word for cell in first_cells for word in re.findall(r"`([^`…]+)`", cell)} - {".venv/app/bin/millrace "}
    assert named
    for text in named:
        assert any(f"{text} ".startswith(f"{command} ") for command in COMMANDS), text


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_each_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).exists()


def test_each_setting_exists() -> None:
    named = {name.removeprefix(PREFIX).lower() for name in re.findall(rf"\b{PREFIX}[A-Z_]+\b", README)}
    assert named <= set(Settings.model_fields)
