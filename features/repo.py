"""A Feast feature repo as a directory: written from the specs, applied by Feast's own command.

    python -m features.repo --dir var/feature_repo --store var/online.db --offline-root var/lake/gold/features

The directory holds `feature_store.yaml`, `feature_repo.py` (which imports `features.definitions`) and Feast's
registry. Nothing here imports Feast, so the online writer and the service find their store in milliseconds.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

CONFIG_FILE = "feature_store.yaml"
STORE_TYPE = "features.online_store.MillraceOnlineStore"


class FeatureRepoError(ValueError):
    """A directory that is not a feature repo of this project, or that Feast refuses."""


@dataclass(frozen=True, kw_only=True)
class FeatureRepo:
    """Where a feature repo lies and what it points at. Relative paths are made absolute."""

    directory: Path
    location: str
    """Of the online store: an SQLite file or a redis:// URL (`features.backends.open_backend`)."""
    offline_root: Path
    """Directory of the offline tables, one a view."""


def write_repo(repo: FeatureRepo) -> None:
    """Writes the directory's files; what Feast has registered there stays."""
    repo.directory.mkdir(parents=True, exist_ok=True)
    location = repo.location if "://" in repo.location else str(Path(repo.location).absolute())
    config = {
        "project": "millrace",
        "provider": "local",
        "registry": {"registry_type": "file", "path": "registry.db", "cache_ttl_seconds": 60},
        "online_store": {"type": STORE_TYPE, "location": location},
        "offline_store": {"type": "dask"},
        "entity_key_serialization_version": 3,
    }
    (repo.directory / CONFIG_FILE).write_text(yaml.safe_dump(config, sort_keys=False))
    (repo.directory / "feature_repo.py").write_text(_MODULE.format(offline_root=str(repo.offline_root.absolute())))


_MODULE = '''"""Written by features.repo; the objects are defined in features/definitions.py."""

from features.definitions import build_definitions

globals().update(build_definitions({offline_root!r}).by_name())
'''


def apply_repo(directory: Path) -> None:
    """Runs `feast apply` on the directory, in a process of its own. Raises `FeatureRepoError` with Feast's words.

    Sources are not validated, since Spark has written no offline table yet when the stack first starts.
    """
    command = [sys.executable, "-m", "feast.cli.cli", "--chdir", str(directory), "apply", "--skip-source-validation"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise FeatureRepoError(f"feast apply refuses {directory}: {' '.join(words)}. Run it by hand to see all of it.")


def store_location(directory: Path) -> str:
    """The online store that the repo names, as `open_backend` wants it. Raises `FeatureRepoError`."""
    path = directory / CONFIG_FILE
    try:
        config = yaml.safe_load(path.read_text())
        store = config["online_store"]
        kind, location = store["type"], store["location"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise FeatureRepoError(
            f"no feature repo in {directory}: got {error!r}; needed: {CONFIG_FILE} with an online_store of type "
            f"{STORE_TYPE} and its location. Write one with `python -m features.repo`."
        ) from error
    if kind != STORE_TYPE:
        raise FeatureRepoError(f"{path}: got online_store type {kind!r}; allowed: {STORE_TYPE}.")
    return location if "://" in location else str(directory / location)


def main(arguments: list[str] | None = None) -> int:
    """Writes a feature repo and applies it; 2 and one sentence when it cannot."""
    parser = argparse.ArgumentParser(prog="python -m features.repo", description=main.__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="directory of the feature repo")
    parser.add_argument("--store", required=True, help="online store: an SQLite file or a redis:// URL")
    parser.add_argument("--offline-root", type=Path, required=True, help="directory of the offline tables")
    parser.add_argument("--no-apply", action="store_true", help="write the files only")
    flags = parser.parse_args(arguments)
    try:
        write_repo(FeatureRepo(directory=flags.dir, location=flags.store, offline_root=flags.offline_root))
        if not flags.no_apply:
            apply_repo(flags.dir)
    except (FeatureRepoError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
