"""The bare floor of a request: a gRPC server that runs the ranker's graph on ready inputs and returns ready bytes.

`python -m tests.bench.serving_floor PORT BUNDLE CANDIDATES ANSWER_FILE`, in the service's own environment.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from features.specs import Entity, features_of
from models.bundle import Bundle
from models.history import user_history
from models.item_table import ItemTable
from models.ranker_inputs import RankerInputs, RankerLayout, assemble_request

METHOD = "/bench.Floor/Echo"


def request_inputs(layout: RankerLayout, table: ItemTable, candidates: int) -> RankerInputs:
    """Inputs of one request's size, with drawn features."""
    rng = np.random.default_rng(0)

    def drawn(entity: Entity, rows: int) -> Any:
        return rng.gamma(0.5, 10, (rows, len(features_of(entity))))

    return assemble_request(
        layout=layout,
        item_table=table,
        item_index_C=rng.choice(len(table), candidates, replace=False).astype(np.int32),
        instant_ms=int(table.published_at_ms.max()),
        user_features_F=drawn(Entity.USER, 1)[0],
        user_category_CF=drawn(Entity.USER_CATEGORY, candidates),
        item_CF=drawn(Entity.ITEM, candidates),
        creator_CF=drawn(Entity.CREATOR, candidates),
        category_CF=drawn(Entity.CATEGORY, candidates),
        history=user_history((), table),
        device="phone",
    )


async def serve(port: int, bundle_path: Path, candidates: int, answer: bytes) -> None:
    """Answers until the process is ended."""
    bundle = Bundle.load(bundle_path)
    inputs = request_inputs(bundle.ranker.layout, bundle.item_table, candidates)

    async def echo(_: bytes, __: Any) -> bytes:
        bundle.ranker.logits(inputs)
        return answer

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Floor", {"Echo": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]).read_bytes()))
