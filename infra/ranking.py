"""How this machine's commands reach the ranking service: with its TLS and the caller's key, as the settings say."""

from pathlib import Path

import grpc

from infra.settings import Settings
from serving.client import RankingClient, open_channel
from serving.tls import ClientTls


def ranking_client(settings: Settings, timeout_s: float = 5.0) -> RankingClient:
    """A client of the stack's service. Raises `serving.tls.TlsError` when a file cannot be used."""
    key = settings.serving_api_key.get_secret_value()
    return RankingClient(settings.grpc_address, timeout_s, api_key=key, tls=_tls(settings))


def ranking_channel(settings: Settings) -> grpc.Channel:
    """A connection to the stack's service. Raises as `ranking_client`."""
    return open_channel(settings.grpc_address, _tls(settings))


def _tls(settings: Settings) -> ClientTls | None:
    if not settings.serving_tls_cert:
        return None
    return ClientTls(
        ca=_file(settings.serving_ca),
        certificate=_file(settings.serving_client_cert),
        key=_file(settings.serving_client_key),
    )


def _file(path: str) -> Path | None:
    return Path(path) if path else None
