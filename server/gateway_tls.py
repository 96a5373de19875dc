"""The certificate and key of what listens, taken up anew when they are renewed."""

import ssl

from common.errors import ConfigurationError
from server.pki import TlsFiles


class Certificates:
    """One certificate and its key; a renewed pair is used from the next connection on."""

    def __init__(self, files: TlsFiles, *, client_certificates: bool) -> None:
        """Load them.

        Raises:
            ConfigurationError: If they cannot be read or do not belong together.
        """
        self._pair = (files.certificate, files.key)
        self._authority = files.authority if client_certificates else None
        self._seen = self._stamp()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or newer, with the newest pair that could be loaded."""
        seen = self._stamp()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = self._load()
            except ConfigurationError:  # half renewed: the other file follows, or the old pair goes on
                return self._context
        return self._context

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        try:
            stats = [path.stat() for path in self._pair]
        except OSError:
            return ()
        return tuple((status.st_mtime_ns, status.st_ino) for status in stats)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        certificate, key = self._pair
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
            if self._authority is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(cafile=self._authority)
        except (OSError, ValueError) as error:
            names = ", ".join(path.name for path in (certificate, key, self._authority) if path is not None)
            fault = f"{certificate.parent}: {names} cannot be used for TLS: {error}"
            raise ConfigurationError(fault, hint="PEM files; the key unencrypted and of this certificate") from error
        return context


def _no_password() -> bytes:
    """OpenSSL would ask on the terminal for an encrypted key's."""
    return b""
