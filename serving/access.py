"""What the command line says of who may call, and the parts that it makes."""

import argparse
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from serving.callers import CallersError, read_callers
from serving.gate import Gate
from serving.guard_metrics import GuardMetrics
from serving.rates import Rates, shared_rates
from serving.tls import ServerTls, TlsError

RATE_STORES = ("redis", "rediss", "redis+unix")


class AccessError(ValueError):
    """Flags that do not go together, or a file that cannot be used, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may call. The default admits everybody, which is for the loopback interface."""

    tls: ServerTls | None = None
    callers: Path | None = None
    """The callers file (`serving.callers`); None: everybody may call everything."""
    rate_store: str = ""
    """URL of a Redis that processes share; empty: each process counts by itself."""

    def check(self) -> None:
        """Reads every file. Raises `AccessError` for one that the service cannot start with."""
        try:
            if self.tls is not None:
                self.tls.credentials()
            if self.callers is not None:
                read_callers(self.callers)
        except (TlsError, CallersError) as error:
            raise AccessError(str(error)) from error

    def add_port(self, server: grpc.aio.Server, address: str) -> None:
        """Has the server listen at `host:port`. Raises `RuntimeError` when it cannot, `TlsError` for a bad file."""
        if self.tls is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, self.tls.credentials())

    def gate(self, metrics: GuardMetrics, monotonic_s: Callable[[], float], clock_ms: Callable[[], int]) -> Gate:
        """The interceptor. Raises `CallersError`."""
        rates = Rates(
            monotonic_s,
            shared=shared_rates(self.rate_store) if self.rate_store else None,
            clock_ms=clock_ms,
            on_error=metrics.rate_store_errors.inc,
        )
        return Gate(file=self.callers, rates=rates, metrics=metrics, monotonic_s=monotonic_s)


def add_access_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `access_config` reads."""
    flags = parser.add_argument_group("who may call")
    flags.add_argument("--tls-cert", type=Path, help="PEM certificate chain (default: no TLS)")
    flags.add_argument("--tls-key", type=Path, help="its PEM key")
    flags.add_argument("--client-ca", type=Path, help="PEM CAs; callers must show a certificate that one has signed")
    flags.add_argument("--callers", type=Path, help="callers file, read again when it changes (default: everybody)")
    flags.add_argument(
        "--rate-store",
        type=_rate_store,
        metavar="URL|@FILE",
        help="Redis in which processes count together, or the file that holds its URL (default: each process alone)",
    )
    flags.add_argument("--insecure", action="store_true", help="let everybody on the network call")


def access_config(got: argparse.Namespace) -> AccessConfig:
    """What the flags say. Raises `AccessError` when they do not go together, or would let in the whole network."""
    if (got.tls_cert is None) != (got.tls_key is None):
        raise AccessError("got --tls-cert without --tls-key, or the other way round; give both, or neither")
    if got.client_ca is not None and got.tls_cert is None:
        raise AccessError("got --client-ca without --tls-cert; client certificates need TLS, so give both")
    if got.rate_store is not None and got.callers is None:
        raise AccessError("got --rate-store without --callers, which says the rates; give both")
    if not (_is_loopback(got.host) or got.callers or got.client_ca or got.insecure):
        raise AccessError(
            f"--host {got.host} is open to the network; give --callers or --client-ca, or --insecure to let all in"
        )
    tls = None
    if got.tls_cert is not None:
        tls = ServerTls(certificate=got.tls_cert, key=got.tls_key, client_ca=got.client_ca)
    return AccessConfig(tls=tls, callers=got.callers, rate_store=got.rate_store or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _rate_store(text: str) -> str:
    url = text
    if text.startswith("@"):
        try:
            url = Path(text[1:]).read_text().strip()
        except OSError as error:
            raise argparse.ArgumentTypeError(f"{text[1:]} cannot be read: {error.strerror}") from None
    parts = urlsplit(url)
    if parts.scheme not in RATE_STORES:
        raise argparse.ArgumentTypeError("got no Redis URL; allowed: redis://HOST:PORT/DB, or @FILE that holds one")
    if parts.password and url == text:
        raise argparse.ArgumentTypeError("got a password in a flag, which all users can read; give @FILE instead")
    return url
