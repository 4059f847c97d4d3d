"""Configuration files: three formats, and errors that name what was got and what is allowed."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from models.configuration import read_configuration
from models.refusal import RefusalError


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    share: float = Field(default=0.5, ge=0, le=1)


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = "a"
    inner: Inner = Inner()


def read(tmp_path: Path, name: str, text: str) -> Settings:
    (tmp_path / name).write_text(text)
    return read_configuration(Settings, tmp_path / name, "settings")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.json", '{"inner": {"share": 0.25}}'),
        ("s.toml", "[inner]\nshare = 0.25"),
        ("s.yaml", "inner:\n  share: 0.25"),
        ("s.yml", "inner: {share: 0.25}"),
    ],
)
def test_each_format_is_read(tmp_path: Path, name: str, text: str) -> None:
    assert read(tmp_path, name, text) == Settings(inner=Inner(share=0.25))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("s.json", "{", "cannot be read: .*; give a JSON, TOML or YAML file"),
        ("s.toml", "name =", "cannot be read: .*; give a JSON, TOML or YAML file"),
        ("s.yaml", "{", "cannot be read: .*; give a JSON, TOML or YAML file"),
        ("s.json", "[1]", "valid dictionary"),
        ("s.toml", "nme = 'b'", "unknown key nme; allowed: name, inner"),
        ("s.toml", "[inner]\nshare = 2\n", "inner.share: input should be less than or equal to 1"),
        ("s.toml", "name = 1\n[inner]\nshares = 1", "name: input should be a valid string; unknown key inner.shares"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(RefusalError, match=f"^settings .*{name}.*{said}"):
        read(tmp_path, name, text)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match=r"nowhere.toml cannot be read: .*No such file"):
        read_configuration(Settings, tmp_path / "nowhere.toml", "settings")
