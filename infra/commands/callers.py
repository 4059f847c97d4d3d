"""`millrace callers …`: who may call the ranking service."""

from pathlib import Path
from typing import Annotated

import typer

from infra.commands import CommandError, say

app = typer.Typer(no_args_is_help=True, help="Give callers of the ranking service keys of their own.")

KEY_BYTES = 32


@app.callback()
def _group() -> None:
    """Keeps `add` a command of its own while it is the only one."""


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the caller: lower-case letters, digits and -.")],
    file: Annotated[Path, typer.Option(help="The callers file; made, for this user alone, if it is not there.")],
    method: Annotated[list[str] | None, typer.Option(help="Which methods it may call; default: all.")] = None,
    rate: Annotated[int, typer.Option(help="Requests a second, 1 to 100000.")] = 100,
    burst: Annotated[int, typer.Option(help="So many seconds' requests may come at once, 1 to 60.")] = 1,
) -> None:
    """Make a key for a new caller, show it once, and add the caller with the key's hash to the file."""
    import hashlib
    import json
    import secrets

    from serving.callers import METHODS, callers_of, read_text

    text = read_text(file) if file.exists() else ""
    if name in {caller.name for caller in callers_of(text, file)}:
        raise CommandError(f"callers {file}: got {name!r}, which is there already; give a new name, or edit the file.")
    key = secrets.token_urlsafe(KEY_BYTES)
    entry = {
        "name": name,
        "key_sha256": [hashlib.sha256(key.encode()).hexdigest()],
        "methods": method or list(METHODS),
        "requests_per_second": rate,
        "burst_s": burst,
    }
    lines = [f"{field} = {json.dumps(value)}" for field, value in entry.items()]  # these values are the same in TOML
    text = "\n".join([*([text.rstrip("\n"), ""] if text else []), "[[caller]]", *lines, ""])
    callers_of(text, file)
    _replace(file, text)
    say(key)
    say(f"{name} sends this as x-api-key. It is shown once: {file} holds its hash alone.")


def _replace(file: Path, text: str) -> None:
    """Writes the file in one step, so that the service never reads half of it, readable by this user alone."""
    new = file.with_name(f"{file.name}.new")
    try:
        new.unlink(missing_ok=True)
        new.touch(mode=0o600, exist_ok=False)
        new.write_text(text)
        new.replace(file)
    except OSError as error:
        raise CommandError(
            f"callers {file} cannot be written: {error.strerror}; give a file in a folder of yours."
        ) from None
