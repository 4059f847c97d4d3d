"""The returned items in protobuf's wire format are what its own library makes of them."""

import numpy as np
import pytest

from serving import ranking_pb2 as pb
from serving.wire_items import ItemColumns, encode

HEADS = ("click", "completion", "hide")


def _columns(rng: np.random.Generator, positions: int, sources: int, heads: tuple[str, ...] = HEADS) -> ItemColumns:
    item_index_S = rng.permutation(5 * positions)[:positions].astype(np.int32)
    probability_ST = rng.random((positions, len(heads)), np.float32)
    probability_ST[rng.random(probability_ST.shape) < 0.1] = np.nan
    return ItemColumns(
        item_index_S=item_index_S,
        item_ids=[f"item-{'ü' * (i % 3)}{i}" for i in item_index_S.tolist()],
        categories=["" if i % 4 == 0 else f"category-{i % 5}" for i in item_index_S.tolist()],
        creators=["c" * (i % 129) for i in item_index_S.tolist()],
        score_S=rng.normal(0, 1e3, positions),
        propensity_S=rng.random(positions),
        heads=heads,
        probability_ST=probability_ST,
        by_source={
            f"source-{p}": rng.permutation(6 * positions)[: rng.integers(3 * positions + 1)].astype(np.int32)
            for p in range(sources)
        },
    )


def _expected(columns: ItemColumns) -> pb.Slate:
    slate = pb.Slate()
    for s, index in enumerate(columns.item_index_S.tolist()):
        ranks = {name: found.tolist().index(index) for name, found in columns.by_source.items() if index in found}
        predicted = zip(columns.heads, columns.probability_ST[s].tolist(), strict=True)
        slate.items.add(
            item_id=columns.item_ids[s],
            score=columns.score_S[s],
            head_probabilities={head: p for head, p in predicted if np.isfinite(p)},
            sources=sorted(ranks, key=lambda name: ranks[name]),
            position=s,
            propensity=columns.propensity_S[s],
            category=columns.categories[s],
            creator_id=columns.creators[s],
        )
    return slate


@pytest.mark.parametrize(("positions", "sources"), [(0, 0), (1, 0), (1, 1), (50, 7), (300, 3)])
def test_it_reads_as_the_messages_made_one_by_one(positions: int, sources: int) -> None:
    rng = np.random.default_rng(positions)
    for heads in (HEADS, ()):
        columns = _columns(rng, positions, sources, heads)
        assert pb.Slate.FromString(encode(columns)) == _expected(columns)


def test_extreme_numbers_and_long_texts_arrive_as_they_are() -> None:
    columns = ItemColumns(
        item_index_S=np.array([7, 3], np.int32),
        item_ids=["x" * 20_000, "y"],
        categories=["", "z" * 300],
        creators=["", ""],
        score_S=np.array([-1e6, np.finfo(np.float64).tiny]),
        propensity_S=np.array([1.0, 0.0]),
        heads=("a" * 200,),
        probability_ST=np.array([[np.inf], [np.finfo(np.float32).max]], np.float32),
        by_source={"s": np.array([3, 9, 7], np.int32), "t": np.array([7], np.int32)},
    )
    slate = pb.Slate.FromString(encode(columns))
    assert slate == _expected(columns)
    assert [list(item.sources) for item in slate.items] == [["t", "s"], ["s"]]
    assert not slate.items[0].head_probabilities
