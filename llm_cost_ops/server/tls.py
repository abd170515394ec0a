"""The certificate that the servers show, and whose certificates they ask for."""

from __future__ import annotations

import ssl

import msgspec

from llm_cost_ops.exceptions import ConfigurationError

__all__ = ["ServerTls"]


class ServerTls(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of PEM files: a certificate with its chain, and its key without a password.

    With `client_ca_file` only clients with a certificate of one of its authorities are let in. The files
    are read once. Raises ConfigurationError, with the option of `serve` as its parameter, when one can't
    be read or they do not belong together.
    """

    cert_file: str
    key_file: str
    client_ca_file: str | None = None

    def __post_init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Asked for a password, OpenSSL would ask the terminal.
            context.load_cert_chain(self.cert_file, self.key_file, lambda: "")
        except (OSError, ValueError) as error:
            raise _unreadable("tls-cert", f"{self.cert_file} and {self.key_file}", error) from None
        if self.client_ca_file is None:
            return
        try:
            context.load_verify_locations(self.client_ca_file)
        except (OSError, ValueError) as error:
            raise _unreadable("tls-client-ca", self.client_ca_file, error) from None


def _unreadable(option: str, files: str, error: Exception) -> ConfigurationError:
    reason = "no such file" if isinstance(error, FileNotFoundError) else error
    return ConfigurationError(f"--{option}: {files} can't be used: {reason}", parameter=option)
