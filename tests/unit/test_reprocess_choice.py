"""Which version a rebuild makes, from every state that an interruption can leave."""

import pytest

from infra.reprocess.choice import next_generation, spec_hash_of, version_to_build


def test_generations_of_a_hash() -> None:
    assert next_generation("1a2b3c4d") == "1a2b3c4dr2"
    assert next_generation("1a2b3c4dr2") == "1a2b3c4dr3"
    assert next_generation("1a2b3c4dr9") == "1a2b3c4dr10"
    assert {spec_hash_of(version) for version in ("1a2b3c4d", "1a2b3c4dr2", "1a2b3c4dr10")} == {"1a2b3c4d"}


@pytest.mark.parametrize(
    ("running", "named", "refused", "built"),
    [
        # The same definitions: the next generation, and again the same one when the rebuild was interrupted.
        ("aa", "aa", (), "aar2"),
        ("aar2", "aar2", (), "aar3"),
        # A checkpoint that the job refuses is the reason to rebuild, and no obstacle.
        ("aa", "aa", ("aa",), "aar2"),
        # Left half-built until its own checkpoint was refused.
        ("aa", "aa", ("aar2",), "aar3"),
        ("aa", "aa", ("aar2", "aar3"), "aar4"),
        # Killed after the switch: what is left is to stop the old one.
        ("aa", "aar2", (), "aar2"),
        # Another definition: under its own hash, or where readers of it were before.
        ("aa", "bb", (), "bb"),
        ("aar3", "bb", (), "bb"),
        ("bb", "aar2", (), "aar2"),
        ("bb", "aar2", ("aar2",), "aar3"),
    ],
)
def test_the_version_to_build(running: str, named: str, refused: tuple[str, ...], built: str) -> None:
    assert version_to_build(running=running, named=named, refused=lambda version: version in refused) == built
