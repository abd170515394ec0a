"""One TLS context for both network transports."""

from __future__ import annotations

import os
import ssl
import warnings

import certifi

from llm_cost_ops.config import TLSConfig
from llm_cost_ops.exceptions import ConfigurationError

__all__ = ["ssl_context"]


def ssl_context(tls: TLSConfig | None, *, verify: bool, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    """The context for a client: TLS 1.2 or newer, certificates and host names checked.

    Authorities come from `tls.ca_file`, else from SSL_CERT_FILE or SSL_CERT_DIR, else from certifi.
    With `verify=False` nothing is checked, and a warning says so.
    """
    authorities = (tls.ca_file if tls is not None else None) or os.environ.get("SSL_CERT_FILE")
    folder = os.environ.get("SSL_CERT_DIR")
    try:
        if authorities or folder:
            context = ssl.create_default_context(cafile=authorities or None, capath=folder or None)
        else:
            context = ssl.create_default_context(cafile=certifi.where())
        if tls is not None and tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"tls: the certificates can't be read: {error}", parameter="tls") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if not verify:
        warnings.warn("verify_ssl=False: TLS certificates are not verified", stacklevel=4)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
