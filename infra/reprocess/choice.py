"""Which version a rebuild makes: a hash of the specs, or a later generation of it such as `1a2b3c4dr2`."""

from collections.abc import Callable


def spec_hash_of(version: str) -> str:
    """The hash of the specs that a version was built by. Hexadecimal digits hold no `r`."""
    return version.partition("r")[0]


def next_generation(version: str) -> str:
    """The version that rebuilds the same definitions once more."""
    spec_hash, _, generation = version.partition("r")
    return f"{spec_hash}r{int(generation or 1) + 1}"


def version_to_build(*, running: str, named: str, refused: Callable[[str], bool]) -> str:
    """The version to build beside `running`, where the store names `named` for this code's specs.

    Another definition is built under its own name, the same one as the next generation. A version whose checkpoint
    is `refused` is passed over: it was left half-built, or kept, too long ago. So a rebuild that was interrupted is
    taken up again, and no version that was given up is used a second time.
    """
    changed = spec_hash_of(running) != spec_hash_of(named)
    # After a switch that was not tidied up yet the store names the new version already.
    version = named if changed or named != running else next_generation(running)
    while refused(version):
        version = next_generation(version)
    return version
