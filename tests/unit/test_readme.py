"""The README names only commands, files and settings that exist."""

import re

import pytest

from infra.cli import app
from infra.settings import PREFIX, ROOT, Settings

README = (ROOT / "README.md").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
GROUPS = {
    str(group.name): {command.name or command.callback.__name__ for command in group.typer_instance.registered_commands}
    for group in app.registered_groups
}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", README)) - {"bench-"}))
def test_each_make_target_exists(target: str) -> None:
    assert target in TARGETS


def test_each_command_of_the_table_exists() -> None:
    first_cells = re.findall(r"^\| (`.+?`) \|", README, re.MULTILINE)
    said = [word.split() for cell in first_cells for word in re.findall(r"`([^`…]+)`", cell)]
    named = {words[0] for words in said} - {".venv/app/bin/millrace"}
    assert named
    assert named <= COMMANDS | set(GROUPS)
    for group, command in (words[:2] for words in said if words[0] in GROUPS and len(words) > 1):
        assert command in GROUPS[group], f"millrace {group} {command}"


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_each_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).exists()


def test_each_setting_exists() -> None:
    named = {name.removeprefix(PREFIX).lower() for name in re.findall(rf"\b{PREFIX}[A-Z_]+\b", README)}
    assert named <= set(Settings.model_fields)
