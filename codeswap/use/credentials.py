"""Content Credentials (C2PA): a signed note in the file that says it is a composite with generated faces, and by what.

The certificate is the user's (CODESWAP_CERTIFICATE, a PEM chain, and CODESWAP_KEY, its PKCS#8 key), or one made here
that says in its name that nobody vouches for it.
"""

import datetime
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from codeswap.use.errors import UseError

CERTIFICATE, KEY = "CODESWAP_CERTIFICATE", "CODESWAP_KEY"
LOCAL_NAME = "CodeSwap local signer, not verified by anybody"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
MODEL = "org.codeswap.model"
_ONE_AT_A_TIME = threading.Lock()
_TEN_YEARS = datetime.timedelta(days=3650)


class Credentials(NamedTuple):
    """What a file's manifest says: who signed it, what made it from what, and whether the file is unchanged since."""

    signer: str
    source_type: str | None
    model: dict[str, str]
    intact: bool
    state: str  # of the validation, in C2PA's words; "Valid" with a certificate that is on no trust list


def sign(data: bytes, mime: str, title: str, facts: Mapping[str, str]) -> bytes:
    """An encoded picture with a manifest: an edit with a trained algorithm, `facts` of the model. Raises UseError."""
    out = io.BytesIO()
    with _builder(title, facts) as (builder, signer):
        builder.sign(signer, mime, io.BytesIO(data), out)
    return out.getvalue()


def sign_file(source: Path, target: Path, title: str, facts: Mapping[str, str]) -> None:
    """`source` with the same manifest, as the file `target`: videos do not pass through memory. Raises UseError."""
    with _builder(title, facts) as (builder, signer):
        builder.sign_file(source, target, signer)


@contextmanager
def _builder(title: str, facts: Mapping[str, str]) -> Iterator[tuple[c2pa.Builder, c2pa.Signer]]:
    """The manifest and who signs it; what goes wrong with either is a UseError."""
    action = {
        "action": "c2pa.created",
        "digitalSourceType": SOURCE_TYPE,
        "softwareAgent": {"name": "CodeSwap"},
        "description": "Composite with a generated face: the identity of one person on the picture of another.",
    }
    manifest = {
        "claim_generator_info": [{"name": "CodeSwap"}],
        "title": title,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
            {"label": MODEL, "data": dict(facts)},
        ],
    }
    with _ONE_AT_A_TIME:  # or two threads would each make a local certificate
        chain, key = _identity()
    try:
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, chain, key, None))
        with c2pa.Builder.from_json(json.dumps(manifest)) as builder:
            yield builder, signer
    except c2pa.C2paError as error:
        raise UseError(f"the result cannot be signed ({error}): check {CERTIFICATE} and {KEY}, or unset both") from None


def read_file(path: Path, mime: str) -> Credentials | None:
    """The manifest of a file, verified against its bytes; None when it has none. Raises UseError for a broken one."""
    try:
        with path.open("rb") as file, c2pa.Reader(mime, file) as reader:
            report, state = json.loads(reader.json()), str(reader.get_validation_state())
    except c2pa.C2paError as error:
        if "ManifestNotFound" in str(error) or "no JUMBF" in str(error):
            return None
        raise UseError(f"the Content Credentials cannot be read ({error})") from None
    manifest = report["manifests"][report["active_manifest"]]
    assertions = {entry["label"]: entry["data"] for entry in manifest["assertions"]}
    actions = next((data["actions"] for label, data in assertions.items() if label.startswith("c2pa.actions")), [])
    signature = manifest.get("signature_info", {})
    return Credentials(
        signer=str(signature.get("common_name") or signature.get("issuer") or "unknown"),
        source_type=next((action.get("digitalSourceType") for action in actions), None),
        model={name: str(value) for name, value in assertions.get(MODEL, {}).items()},
        intact=state != "Invalid",
        state=state,
    )


def _identity() -> tuple[bytes, bytes]:
    """The certificate chain and key to sign with, PEM. Raises UseError when only one of both is named or unreadable."""
    places = [os.environ.get(name) for name in (CERTIFICATE, KEY)]
    if any(places) and not all(places):
        raise UseError(f"{CERTIFICATE} and {KEY} belong together: set both, or none for a local certificate")
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "codeswap"
    chain, key = map(Path, places) if all(places) else (folder / "local.pem", folder / "local.key")
    if not any(places) and not (chain.exists() and key.exists()):
        _make_local(chain, key)
    try:
        return chain.read_bytes(), key.read_bytes()
    except OSError as error:
        raise UseError(f"{error.filename} cannot be read ({error.strerror}): it is to sign the result") from None


def _make_local(chain: Path, key: Path) -> None:
    """A root and a signer below it, good for ten years. Verifiers will say that they know neither."""
    now = datetime.datetime.now(datetime.timezone.utc)
    root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name, leaf_name = _name(f"{LOCAL_NAME} (root)"), _name(LOCAL_NAME)
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False,
    )  # fmt: skip

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(root_name).public_key(public)
        return (
            builder.serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + _TEN_YEARS)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    root = (
        certificate(root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage | {"key_cert_sign": True, "crl_sign": True}), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        certificate(leaf_name, leaf_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage | {"digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    chain.parent.mkdir(parents=True, exist_ok=True)
    private = leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, data in (
        (key, private),
        (chain, b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (leaf, root))),
    ):
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.touch(mode=0o600)
        partial.write_bytes(data)
        partial.replace(path)


def _name(text: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "CodeSwap"), x509.NameAttribute(NameOID.COMMON_NAME, text)]
    )
