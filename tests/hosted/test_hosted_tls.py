"""Protected connections: made, ended by a stop, and refused where the service's certificate is not trusted."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from example_service import KEY, SIZE, ExampleEngine, ExampleService
from hosting import config
from standin import Reply

from imagewright.engines.hosted import wire
from imagewright.errors import ProviderError, ProviderTimeoutError, StoppedError
from imagewright.request import ImageRequest
from imagewright.watch import Stop, Watch

REQUEST = ImageRequest(prompt="a red cube", model="one")


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a stand-in")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, secret


class ProtectedService(ExampleService):
    """As the example, by https."""

    def __init__(self, chain: Path, secret: Path) -> None:
        super().__init__()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, secret)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProtectedService]:
    chain, secret = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    wire._tls.cache_clear()
    with ProtectedService(chain, secret) as running:
        yield running
    wire._tls.cache_clear()


def engine_of(service: ProtectedService, timeout: float = 20.0) -> ExampleEngine:
    return ExampleEngine(config("example", f"{service.url}/v1", timeout, key=KEY))


def test_a_trusted_service_is_spoken_to(service: ProtectedService) -> None:
    engine = engine_of(service)
    for _ in range(2):
        assert engine.generate(REQUEST).images[0].size == SIZE
    engine.close()


def test_a_stranger_gets_no_key(service: ProtectedService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path / "other")[0]))
    wire._tls.cache_clear()
    engine = engine_of(service)
    with pytest.raises(ProviderError, match="CERTIFICATE_VERIFY_FAILED"):
        engine.generate(REQUEST)
    assert not service.asked
    engine.close()


@pytest.mark.parametrize("slow", [Reply(200, b"{}", wait=30), Reply(200, b" " * 5000, drip=0.02)])
def test_a_stop_ends_what_is_in_flight(service: ProtectedService, slow: Reply) -> None:
    engine = engine_of(service)
    service.next.append(slow)
    stop = Stop()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(StoppedError):
        engine.generate(REQUEST, Watch(stop=stop))
    assert time.monotonic() - start < 1.0
    timer.join()
    assert engine.generate(REQUEST).images[0].size == SIZE
    engine.close()


def test_nothing_hangs_past_the_deadline(service: ProtectedService) -> None:
    engine = engine_of(service, timeout=0.5)
    service.next.append(Reply(200, b" " * 5000, drip=0.02))
    start = time.monotonic()
    with pytest.raises(ProviderTimeoutError):
        engine.generate(REQUEST)
    assert time.monotonic() - start < 1.0
    engine.close()
