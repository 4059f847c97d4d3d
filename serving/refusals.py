"""How a call is refused that may come again."""

import grpc


async def refuse_for_now(context: grpc.aio.ServicerContext, why: str, retry_after_ms: int) -> None:
    """Ends the call with RESOURCE_EXHAUSTED and the hint that callers, and gRPC's own retries, read."""
    hint = str(retry_after_ms)
    context.set_trailing_metadata((("retry-after-ms", hint), ("grpc-retry-pushback-ms", hint)))
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{why}; retry after {hint} ms")
