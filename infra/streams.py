"""Which versions of the features the stack's stream programs work on: usually one, two while one is being rebuilt.

A stream is a Flink job and an online writer. The store says which version readers use (`features.backends`);
`streams.json` beside supervisord's files says which streams the running stack has, the one that is read first.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from features import specs
from infra.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The stream job and the online writer of one version of the features."""

    version: str
    ports: Mapping[str, int] = field(default_factory=dict)
    """Where it listens in place of the settings' ports, by their names; for a stream that runs beside another."""

    def named(self, program: str) -> str:
        """The name of its `flink` or `writer` under supervisord."""
        return f"{program}-{self.version}" if self.ports else program

    def settings(self, settings: Settings) -> Settings:
        """The stack's settings with this stream's ports."""
        return settings.model_copy(update=dict(self.ports))


def streams_file(settings: Settings) -> Path:
    """What `save_streams` writes."""
    return settings.var_dir / "supervisor" / "streams.json"


def save_streams(settings: Settings, streams: Sequence[Stream]) -> None:
    """Replaces the list at once."""
    path = streams_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps([asdict(stream) for stream in streams]))
    unfinished.replace(path)


def saved_streams(settings: Settings) -> list[Stream]:
    """The running stack's streams; that of this code's specs where no stack has written any."""
    try:
        entries = json.loads(streams_file(settings).read_text())
    except FileNotFoundError:
        return [Stream(version=specs.version())]
    return [Stream(**entry) for entry in entries]


def version_to_run(settings: Settings) -> str:
    """The version that the store names for this code's specs, without creating a store where there is none.

    Raises `StoreUnavailableError` when the store does not answer.
    """
    from features.backends import open_backend

    location = settings.online_store_url
    if "://" not in location and not Path(location).exists():
        return specs.version()
    with open_backend(location) as store:
        return store.version
