"""Content Credentials: signed, verified, noticed when broken."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from c2pa import Reader
from PIL import Image

from imagewright.errors import PictureError, ProvenanceError
from imagewright.pictures import encode, open_picture
from imagewright.provenance import credentials, identity, metadata, record
from imagewright.provenance.seal import seal
from imagewright.request import ImageRequest

FORMATS = ["png", "jpeg", "webp"]


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def made(image: Image.Image, output_format: str) -> dict[str, object]:
    request = ImageRequest(prompt="x", output_format=output_format)  # type: ignore[arg-type]
    engine = {"prompt": "a most secret prompt", "seed": 1, "model": "blocks", "model_digest": "ab" * 32}
    return record.finish(engine, request, image, [])


@pytest.mark.parametrize("output_format", FORMATS)
def test_signed_here_is_trusted_and_elsewhere_valid(noise: Image.Image, output_format: str, tmp_path: Path) -> None:
    data = seal(noise, made(noise, output_format), require_credential=True, where=tmp_path / "a").data
    found = credentials.read(data, output_format, tmp_path / "a")
    assert found.state == "trusted" and found.problems == ()
    assert found.digital_source_type == "trainedAlgorithmicMedia"
    assert found.model["model"] == "blocks" and found.model["model_digest"] == "ab" * 32
    assert credentials.read(data, output_format, tmp_path / "b").state == "valid", "no anchor"
    identity.load_or_create(tmp_path / "c")
    assert credentials.read(data, output_format, tmp_path / "c").state == "valid", "another installation"


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_changed_picture_is_invalid(noise: Image.Image, output_format: str, tmp_path: Path) -> None:
    data = bytearray(seal(noise, made(noise, output_format), where=tmp_path).data)
    bare = encode(noise, output_format)
    middle = bytes(data).rindex(bare[-200:-100]) + 50
    data[middle] ^= 4
    assert credentials.read(bytes(data), output_format, tmp_path).state == "invalid"


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_flip_that_changes_a_pixel_is_noticed(noise: Image.Image, output_format: str, tmp_path: Path) -> None:
    good = seal(noise, made(noise, output_format), where=tmp_path).data
    pixels = np.asarray(open_picture(good))
    rng, seen = random.Random(0), 0
    for _ in range(150):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            changed = np.asarray(open_picture(bytes(data)))
        except PictureError:
            continue
        if changed.shape == pixels.shape and np.array_equal(changed, pixels):
            continue
        seen += 1
        assert credentials.read(bytes(data), output_format, tmp_path).state == "invalid"
    assert seen > 20 or output_format == "png", "most flips in a PNG already break its checksum"


@pytest.mark.parametrize("output_format", FORMATS)
def test_unsigned_is_none(noise: Image.Image, output_format: str, tmp_path: Path) -> None:
    assert credentials.read(encode(noise, output_format), output_format, tmp_path).state == "none"
    bare = seal(noise, made(noise, output_format), with_metadata=False, where=tmp_path).data
    assert credentials.read(bare, output_format, tmp_path).state == "none"
    assert bare == encode(noise, output_format)


def test_the_manifest_holds_no_prompt_and_stays_small(noise: Image.Image, tmp_path: Path) -> None:
    text = made(noise, "png")
    unsigned = encode(noise, "png", **metadata.save_options(text, "png"))
    signed = credentials.sign(encode(noise, "png"), "png", text, tmp_path)
    assert b"secret" in unsigned and b"secret" not in signed
    assert len(signed) - len(encode(noise, "png")) < 15_000


def test_a_picture_made_from_a_picture_says_so(noise: Image.Image, tmp_path: Path) -> None:
    made = {"prompt": "x", "seed": 1, "image_sha256": "ab" * 32}
    text = record.finish(made, ImageRequest(prompt="x"), noise, [])
    data = seal(noise, text, require_credential=True, where=tmp_path).data
    found = credentials.read(data, "png", tmp_path)
    assert (found.state, found.digital_source_type) == ("trusted", "compositeWithTrainedAlgorithmicMedia")
    assert metadata.read(open_picture(data)).digital_source_type == found.digital_source_type


@pytest.mark.parametrize("output_format", FORMATS)
def test_garbage_is_not_trusted(output_format: str, tmp_path: Path) -> None:
    assert credentials.read(b"garbage", output_format, tmp_path).state in ("invalid", "none")


def test_an_unwritable_home_warns_or_fails(noise: Image.Image, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("no folder")
    sealed = seal(noise, made(noise, "png"), where=blocker / "identity")
    assert "no credential" in sealed.warning
    assert credentials.read(sealed.data, "png", tmp_path).state == "none"
    with pytest.raises(ProvenanceError):
        seal(noise, made(noise, "png"), require_credential=True, where=blocker / "identity")


def test_the_key_is_private_and_kept(tmp_path: Path) -> None:
    first = identity.load_or_create(tmp_path / "identity")
    assert identity.load_or_create(tmp_path / "identity") == first
    assert (tmp_path / "identity" / "signer.pem").stat().st_mode & 0o777 == 0o600
    assert first.root in identity.anchors(tmp_path / "identity")


def test_the_identity_is_renewed_ahead_and_old_pictures_stay_trusted(noise: Image.Image, tmp_path: Path) -> None:
    ending = identity.create(timedelta(days=29))
    identity._publish(ending, tmp_path / "signer.pem", replaces=None)
    signed_before = _sign_with(ending, noise, tmp_path)
    renewed = identity.load_or_create(tmp_path)
    assert renewed != ending and identity.load_or_create(tmp_path) == renewed
    assert credentials.read(signed_before, "png", tmp_path).state == "trusted"


def _sign_with(who: identity.Identity, image: Image.Image, where: Path) -> bytes:
    """Signs with an identity that is about to end, as an earlier run would have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "load_or_create", lambda _: who)
        return credentials.sign(encode(image, "png"), "png", {}, where)


def test_a_damaged_identity_is_said(tmp_path: Path) -> None:
    (tmp_path / "signer.pem").write_text("rubbish")
    with pytest.raises(ProvenanceError, match="damaged"):
        identity.load_or_create(tmp_path)


START = "import sys; from pathlib import Path; from imagewright.provenance import identity\n\
sys.stdin.readline(); sys.stdout.buffer.write(identity.load_or_create(Path(sys.argv[1])).chain)"


def test_two_processes_at_once_agree_on_one_identity(tmp_path: Path) -> None:
    start = [sys.executable, "-c", START, str(tmp_path / "identity")]
    both = [subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for process in both:
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.flush()
    chains = [process.communicate(timeout=60)[0] for process in both]
    assert chains[0] == chains[1] == identity.load_or_create(tmp_path / "identity").chain
    assert len(list((tmp_path / "identity" / "anchors").iterdir())) == 1
    assert not list((tmp_path / "identity").glob("*.part"))


def test_an_edited_picture_keeps_the_credentials_of_those_it_was_made_from(noise: Image.Image, tmp_path: Path) -> None:
    before = seal(noise, made(noise, "png"), require_credential=True, where=tmp_path).data
    text = {**made(noise, "png"), "image_sha256": "ab" * 32}
    after = seal(noise, text, require_credential=True, where=tmp_path, parents=[before, encode(noise, "jpeg")]).data
    found = credentials.read(after, "png", tmp_path)
    assert (found.state, found.digital_source_type) == ("trusted", "compositeWithTrainedAlgorithmicMedia")
    with Reader("image/png", BytesIO(after)) as reader:
        first, second = reader.get_active_manifest()["ingredients"]
    assert (first["relationship"], second["relationship"]) == ("parentOf", "componentOf")
    assert "active_manifest" in first and "active_manifest" not in second


def test_a_broken_parent_does_not_break_the_picture_made_from_it(noise: Image.Image, tmp_path: Path) -> None:
    before = seal(noise, made(noise, "webp"), require_credential=True, where=tmp_path).data
    broken = before.replace(b"imagewright local signer", b"imagewright other signer")
    assert broken != before
    text = {**made(noise, "png"), "image_sha256": "ab" * 32}
    after = seal(noise, text, require_credential=True, where=tmp_path, parents=[broken]).data
    assert credentials.read(after, "png", tmp_path).state in ("trusted", "valid")


def test_a_picture_changed_without_a_model_says_so(noise: Image.Image, tmp_path: Path) -> None:
    text = record.of_tool(False, size=[8, 8])
    data = seal(noise, text, require_credential=True, where=tmp_path).data
    found = credentials.read(data, "png", tmp_path)
    assert (found.state, found.digital_source_type) == ("trusted", "algorithmicallyEnhanced")
