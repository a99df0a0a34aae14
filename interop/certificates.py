"""How a fleet's parts speak with each other: in the clear, or with one triple of certificates for all."""

import signal
import ssl

from parts import TARGET, end, wait_until


class Plain:
    """In the clear."""

    scheme, context = "http", None
    # What each program is told of the certificates: our verbs and br, PD, the playground, JuiceFS.
    flags, pd_flags, playground_flags = [], [], []
    query, section = "", ""


class Tls:
    """A triple for this machine, as the playground makes it."""

    scheme = "https"

    def __init__(self, place):
        self.folder = place.path("tls")
        self.playground_flags = ["--tls-dir", self.folder]
        maker = place.spawn(
            "certificates", TARGET / "tikv-pitr-playground", "--data-dir", place.path("maker"),
            "--pd-addr", "127.0.0.1:0", "--store-addr", "127.0.0.1:0", *self.playground_flags,
        )
        said = place.path("certificates.log")
        wait_until("certificates are made", 30, lambda: b"pd_addr" in said.read_bytes())
        end(maker, signal.SIGTERM)
        ca, cert, key = (self.folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
        self.flags = ["--ca", ca, "--cert", cert, "--key", key]
        self.pd_flags = [f"--cacert={ca}", f"--cert={cert}", f"--key={key}"]
        self.query = f"?ca={ca}&cert={cert}&key={key}"
        self.section = f'[security]\nca-path = "{ca}"\ncert-path = "{cert}"\nkey-path = "{key}"\n'
        self.context = ssl.create_default_context(cafile=ca)
        self.context.load_cert_chain(cert, key)
