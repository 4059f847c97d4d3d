"""The gate before `RankingService`: whose call it is, whether it may be made, and whether it comes too often.

Health and reflection pass: load balancers have no key, and the contract is no secret.
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from serving.callers import ANONYMOUS, Caller, Callers, CallersError, read_callers
from serving.file_stamp import stamp_of
from serving.guard_metrics import GuardMetrics
from serving.observation import API_KEY
from serving.observed_requests import METHODS_OF
from serving.rates import Rates
from serving.refusals import refuse_for_now

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How soon a change of the callers file holds, from the next call on."""

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Refusal = Callable[[Any, grpc.aio.ServicerContext], Awaitable[None]]


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpcio has no types
    """Admits calls by key, method and rate. Without a callers file everybody is admitted."""

    def __init__(
        self, *, file: Path | None, rates: Rates, metrics: GuardMetrics, monotonic_s: Callable[[], float]
    ) -> None:
        """Reads the file. Raises `CallersError` for a bad one."""
        self._file = file
        self._rates = rates
        self._metrics = metrics
        self._monotonic_s = monotonic_s
        self._looked_at = stamp_of(file)
        self._look_at_s = monotonic_s() + LOOK_EVERY_S
        self._callers = None if file is None else read_callers(file)

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """The method's handler, or one that refuses the call before its message is read."""
        if not details.method.startswith(METHODS_OF):
            return await continuation(details)
        refusal = await self._refusal(details)
        return await continuation(details) if refusal is None else grpc.unary_unary_rpc_method_handler(refusal)

    async def _refusal(self, details: grpc.HandlerCallDetails) -> Refusal | None:
        callers = self._current()
        if callers is None:
            self._metrics.calls.labels(ANONYMOUS, "admitted").inc()
            return None
        key = next((value for name, value in details.invocation_metadata or () if name == API_KEY), None)
        caller = callers.of(key) if isinstance(key, str) else None
        if caller is None:
            outcome, what = ("unknown_key", "is not known") if key else ("no_key", "is missing")
            self._metrics.calls.labels("", outcome).inc()
            return _refused(
                grpc.StatusCode.UNAUTHENTICATED, f"the API key in the metadata {API_KEY} {what}; send yours"
            )
        return await self._refusal_of(caller, details.method.removeprefix(METHODS_OF))

    async def _refusal_of(self, caller: Caller, method: str) -> Refusal | None:
        if method not in caller.methods:
            self._metrics.calls.labels(caller.name, "method").inc()
            allowed = ", ".join(caller.methods)
            reason = f"{caller.name} may not call {method}; allowed: {allowed}; ask the service's owner for more"
            return _refused(grpc.StatusCode.PERMISSION_DENIED, reason)
        retry_after_ms = await self._rates.retry_after_ms(caller)
        if retry_after_ms:
            self._metrics.calls.labels(caller.name, "rate").inc()
            why = f"{caller.name} sent more than {caller.requests_per_second} requests a second"
            return lambda _, context: refuse_for_now(context, why, retry_after_ms)
        self._metrics.calls.labels(caller.name, "admitted").inc()
        return None

    def _current(self) -> Callers | None:
        """The callers of the file as it is now, or as it was before it became a bad one."""
        if self._file is not None and self._monotonic_s() >= self._look_at_s:
            self._look_at_s = self._monotonic_s() + LOOK_EVERY_S
            stamp = stamp_of(self._file)
            if stamp != self._looked_at:
                self._looked_at = stamp
                self._read(self._file)
        return self._callers

    def _read(self, file: Path) -> None:
        try:
            self._callers = read_callers(file)
        except CallersError as error:
            self._metrics.callers_refused.inc()
            _log.error("callers refused, those before go on: %s", error)
        else:
            _log.info("%d callers may call from now on", len(self._callers))


def _refused(code: grpc.StatusCode, reason: str) -> Refusal:
    async def refuse(_: Any, context: grpc.aio.ServicerContext) -> None:
        await context.abort(code, reason)

    return refuse
