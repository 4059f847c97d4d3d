"""Configuration files, read into pydantic models and refused in one sentence that names every wrong key."""

import json
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from models.refusal import RefusalError

Model = TypeVar("Model", bound=BaseModel)


def read_configuration(model: type[Model], file: Path, what: str, union_tags: Collection[str] = ()) -> Model:
    """The model in a JSON, TOML or YAML file, by its suffix.

    `what` names it in the errors, `union_tags` are as in `checked`. Raises `RefusalError` that says what was got, what
    is allowed and what to do.
    """
    read: Callable[[str], object] = _READERS.get(file.suffix, json.loads)
    try:
        record = read(file.read_text())
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RefusalError(f"{what} {file} cannot be read: {reason}; give a JSON, TOML or YAML file.") from error
    return checked(model, record, f"{what} {file}", union_tags)


def checked(model: type[Model], record: object, source: str, union_tags: Collection[str] = ()) -> Model:
    """The model in a parsed file. `union_tags` are the parts of a key's path that pydantic adds for unions.

    Raises `RefusalError` that names every wrong key.
    """
    try:
        return model.model_validate(record)
    except ValidationError as error:
        wrong = "; ".join(_told(model, part["loc"], part["type"], part["msg"], union_tags) for part in _errors(error))
        raise RefusalError(f"{source}: {wrong}.") from error


def _errors(error: ValidationError) -> list[Any]:
    return list(error.errors(include_url=False))


def _told(
    model: type[BaseModel], place: tuple[int | str, ...], kind: str, message: str, union_tags: Collection[str]
) -> str:
    where = ".".join(str(part) for part in place if part not in union_tags or part == place[-1])
    if kind == "extra_forbidden":
        known = f"; allowed: {', '.join(model.model_fields) or 'none'}" if len(place) == 1 else ""
        return f"unknown key {where}{known}"
    message = message.removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}" if where else message


def _from_yaml(text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_READERS: Mapping[str, Callable[[str], object]] = {".toml": tomllib.loads, ".yaml": _from_yaml, ".yml": _from_yaml}
