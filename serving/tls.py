"""TLS for server and client, from files that are checked before they are used; no key is ever given as a flag."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


class TlsError(ValueError):
    """A certificate, key or CA file that cannot be used: which, why, and what to give."""


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """PEM files of the server. Renewed files are taken up by the next connection."""

    certificate: Path
    """The chain, the server's own first."""
    key: Path
    client_ca: Path | None = None
    """Whoever connects must show a certificate that one of these signed; None: nobody has to."""

    def credentials(self) -> grpc.ServerCredentials:
        """Checks the files. Raises `TlsError`."""
        first, need_client = self._configuration(), self.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(first, self._renewed, need_client)

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        chain, key = _checked_pair(self.certificate, self.key)
        ca = None if self.client_ca is None else _checked_ca(self.client_ca)
        return grpc.ssl_server_certificate_configuration(((key, chain),), ca)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What the files say now; None, so that the last goes on, while they are being replaced or are bad."""
        try:
            return self._configuration()
        except TlsError:
            return None


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """PEM files of a client."""

    ca: Path | None = None
    """Who may have signed the server's certificate; None: the CAs that gRPC brings."""
    certificate: Path | None = None
    """The client's own, where the server asks for one; with `key`."""
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Checks the files. Raises `TlsError`."""
        if (self.certificate is None) != (self.key is None):
            raise TlsError("TLS: got a certificate without its key, or a key alone; give both, or neither.")
        ca = None if self.ca is None else _checked_ca(self.ca)
        chain, key = (None, None)
        if self.certificate is not None and self.key is not None:
            chain, key = _checked_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(ca, key, chain)


def _checked_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    chain_pem, key_pem = _read(certificate, "certificate"), _read(key, "key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(
            f"TLS certificate {certificate} with key {key}: {_reason(error)}; give a PEM certificate and its own PEM "
            "key without a passphrase."
        ) from None
    return chain_pem, key_pem


def _checked_ca(file: Path) -> bytes:
    pem = _read(file, "CA")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"TLS CA {file}: {_reason(error)}; give the CA's PEM certificate.") from None
    return pem


def _read(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TlsError(f"TLS {what} {file} cannot be read: {error.strerror}; give a readable PEM file.") from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()
