"""Requests that are no message of their method: INVALID_ARGUMENT, where gRPC itself says UNKNOWN with a traceback."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class UndecodableRequests(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpcio has no types
    """Refuses what cannot be decoded in one sentence; every other request passes unchanged."""

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """The method's handler, with its decoding guarded."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None or handler.request_deserializer is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _guarded(handler.unary_unary),
            request_deserializer=_lenient(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


def _lenient(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """The message, or the error for the guard to tell: an exception here would end the call before any of our code."""

    def decoded(body: bytes) -> Any:
        try:
            return decode(body)
        except DecodeError as error:
            return error

    return decoded


def _guarded(answer: Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def answered(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if isinstance(request, DecodeError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{request}; send what serving/ranking.proto says.")
        return await answer(request, context)

    return answered
