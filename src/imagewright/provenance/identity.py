"""The key that signs this installation's pictures, made on first use and kept on this machine.

An own root certificate signs one leaf (EC P-256); the root's private key is thrown away. One file holds the
leaf's key and the chain, readable by its owner only, so that two processes that start at once agree on one
identity. The roots of earlier identities stay as anchors, so that old pictures stay trusted. There is no
time-stamp offline: a signature counts until its certificate ends, hence the long life.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from imagewright.errors import OutputError, ProvenanceError
from imagewright.pictures import save_atomic

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

LIFE = timedelta(days=3650)
ROTATE_BEFORE = timedelta(days=30)
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----\n?", re.DOTALL)


@dataclass(frozen=True)
class Identity:
    """A signer: `key` and `chain` (leaf, then root) as PEM bytes."""

    key: bytes
    chain: bytes

    @property
    def root(self) -> bytes:
        """The root certificate as PEM: what a reader must trust."""
        return _blocks(self.chain)[-1]

    @cached_property
    def expires(self) -> datetime:
        """When the leaf certificate ends (UTC)."""
        from cryptography import x509

        return x509.load_pem_x509_certificate(self.chain).not_valid_after_utc


def folder() -> Path:
    """Where the identity of this user lives."""
    from platformdirs import user_data_dir

    return Path(user_data_dir("imagewright", appauthor=False)) / "identity"


def load_or_create(where: Path) -> Identity:
    """The identity in `where`, made where there is none and renewed 30 days before it ends.

    Raises ProvenanceError where the folder cannot be written or its file is damaged.
    """
    path = where / "signer.pem"
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        current = _read(path) if path.exists() else None
        if current and current.expires - datetime.now(UTC) > ROTATE_BEFORE:
            return current
        return _publish(create(), path, replaces=current)
    except (OSError, OutputError) as error:
        raise ProvenanceError(
            f"The signing identity in {str(where)!r} cannot be read or made: {error}.",
            "Make that folder writable, or use --no-metadata.",
        ) from error


def anchors(where: Path) -> bytes:
    """The root certificates that this installation trusts, as one PEM text; empty where there is none."""
    files = sorted((where / "anchors").glob("*.pem"))
    return b"".join(file.read_bytes() for file in files)


def create(life: timedelta = LIFE) -> Identity:
    """A new root and leaf. Writes nothing."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("imagewright local root", root_key, root_key, "imagewright local root", life)
    leaf = _certificate("imagewright local signer", key, root_key, "imagewright local root", life)
    chain = leaf.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM)
    return Identity(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), chain)


def _certificate(
    name: str, key: EllipticCurvePrivateKey, issuer_key: EllipticCurvePrivateKey, issuer: str, life: timedelta
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(common: str) -> x509.Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "imagewright (self-made)")
        return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common)])

    is_root, now = name == issuer, datetime.now(UTC)
    usage = x509.KeyUsage(not is_root, False, False, False, False, is_root, False, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(is_root, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_root:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])  # what C2PA accepts by default
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _publish(made: Identity, path: Path, replaces: Identity | None) -> Identity:
    anchor = path.parent / "anchors" / f"{sha256(made.root).hexdigest()[:16]}.pem"
    anchor.parent.mkdir(exist_ok=True, mode=0o700)
    save_atomic(made.root, anchor, mode=0o600)
    try:
        save_atomic(made.key + made.chain, path, overwrite=replaces is not None, mode=0o600)
    except FileExistsError:  # another process was first: its identity counts
        anchor.unlink()
        return _read(path)
    return made


def _read(path: Path) -> Identity:
    blocks = _blocks(path.read_bytes())
    if len(blocks) != 3:
        raise ProvenanceError(f"The signing identity {str(path)!r} is damaged.", "Delete that file.")
    return Identity(blocks[0], blocks[1] + blocks[2])


def _blocks(pem: bytes) -> list[bytes]:
    return [match.group(0) for match in _PEM.finditer(pem)]
