"""Drawings: near their picture, clean of all else, with their record and a credential."""

from __future__ import annotations

import builtins
import importlib.util
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from editing.scenes import alpha, ring
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import imagewright
from imagewright import tools, vector
from imagewright.errors import MissingExtraError, OutputError, PictureError, RequestError
from imagewright.pictures import encode, open_picture
from imagewright.provenance import credentials, metadata
from imagewright.provenance.seal import seal

resvg = pytest.importorskip("resvg_py")
pytest.importorskip("vtracer")
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="8" height="8">'


def rendered(svg: str, size: tuple[int, int]) -> Image.Image:
    return Image.open(BytesIO(bytes(resvg.svg_to_bytes(svg_string=svg, width=size[0], height=size[1]))))


@pytest.mark.parametrize("side", [16, 64, 300, 700])
def test_a_flat_picture_is_drawn_nearly_as_it_is(side: int) -> None:
    truth = ring(side)
    drawing = vector.trace(truth)
    again = rendered(drawing.svg, truth.size)
    assert np.abs(alpha(again) - alpha(truth)).mean() < 0.02  # the hole of the ring stays clear
    assert alpha(again)[0, 0] == 0 == alpha(again)[side // 2, side // 2]
    assert drawing.step["psnr"] > 20 and drawing.step["paths"] >= 1
    assert vector.read(drawing.svg.encode()).size == (str(side), str(side))
    larger = rendered(drawing.svg, (4 * side, 4 * side))  # a drawing has no size of its own
    assert tuple(np.asarray(larger)[2 * side, side, :3]) == pytest.approx((0xC0, 0x20, 0x20), abs=8)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (5, 3)])
def test_tiny_pictures_and_odd_shapes(size: tuple[int, int]) -> None:
    drawing = vector.trace(Image.new("RGB", size, "#3060c0"))
    assert vector.read(drawing.svg.encode()).size == tuple(map(str, size))


def test_the_same_picture_gives_the_same_drawing() -> None:
    assert vector.trace(ring(64)).svg == vector.trace(ring(64)).svg


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(RequestError, match="nothing to draw"):
        vector.trace(Image.new("RGBA", (8, 8)))


def test_only_known_elements_attributes_and_values_pass() -> None:
    bad = f"""{HEAD}<script>alert(1)</script><style>@import url(https://x)</style><!-- hello -->
      <a xlink:href="javascript:alert(1)"><path d="M0 0"/></a><image xlink:href="https://x/y.png"/>
      <foreignObject><body xmlns="http://www.w3.org/1999/xhtml" onload="x()"/></foreignObject><use href="#a"/>
      <g onclick="x()" fill="url(#a)" transform="translate(1,2) scale(2)" style="fill:red">
        <path d="M0 0 L8 8Z" fill="#ff0000" id="a" onmouseover="x()">words<animate attributeName="d"/></path>
        <path d="M0 0 javascript:x" fill="red;x:url(y)"/></g></svg>"""
    clean = vector.written(vector.cleaned(vector.parsed(bad)))
    root = ElementTree.fromstring(clean)
    assert [element.tag.rpartition("}")[2] for element in root.iter()] == ["svg", "g", "path", "path"]
    group, first, second = list(root.iter())[1:]
    assert group.attrib == {"transform": "translate(1,2) scale(2)"}
    assert first.attrib == {"d": "M0 0 L8 8Z", "fill": "#ff0000"} and second.attrib == {}
    for word in ("script", "http://www.w3.org/1999", "url", "href", "on", "words", "style", "image"):
        assert f"{word}=" not in clean and f"<{word}" not in clean
    assert "words" not in clean and "hello" not in clean


@pytest.mark.parametrize(
    "text",
    [
        f'<!DOCTYPE svg [<!ENTITY a "b">]>{HEAD}&a;</svg>',
        f'<!DOCTYPE svg SYSTEM "file:///etc/passwd">{HEAD}</svg>',
        "<html/>",
        '<svg width="1"/>',
        "<svg",
        "",
        "\0",
    ],
)
def test_documents_with_entities_and_other_texts_are_refused(text: str) -> None:
    with pytest.raises(PictureError):
        vector.parsed(text)


@given(data=st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(PictureError):
        vector.read(HEAD.encode() + data + b"</svg>")


def made(**fields: Any) -> imagewright.ImageResult:
    return imagewright.generate("rød <b> & \u202e ]]> fox", model="fake/blocks", seed=1, output_format="svg", **fields)


def test_a_generated_drawing_carries_its_record_and_a_credential() -> None:
    result = made(plain=True)
    record = result.records[0]
    step = record["refine"][-1]
    assert step["step"] == "vectorise" and step["mean_difference"] >= 0
    sealed = seal(result[0], record)
    assert sealed.warning == ""
    assert metadata.read_svg(sealed.data).record == record
    assert credentials.read(sealed.data, "svg").state == "trusted"
    changed = sealed.data.replace(b'fill="#', b'fill="#0', 1)
    assert changed != sealed.data and credentials.read(changed, "svg").state == "invalid"
    assert rendered(sealed.data.decode(), result[0].size).size == result[0].size


def test_without_metadata_the_file_is_only_the_drawing() -> None:
    result = made()
    data = seal(result[0], result.records[0], with_metadata=False).data
    assert data.decode() == result[0].info["svg"] == vector.trace(result[0]).svg
    found = metadata.read_svg(data)
    assert found.record is None and found.digital_source_type is None
    assert b"metadata" not in data


def test_a_missing_tracer_is_said_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(vector, "find_spec", lambda name: None if name == "vtracer" else real(name))
    monkeypatch.setattr("imagewright.engines.engine.Engine.generate", None)  # would fail if it were called
    with pytest.raises(MissingExtraError, match=r"imagewright\[svg\]"):
        made()


def test_without_a_renderer_the_difference_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "resvg_py":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert set(vector.trace(ring(32)).step) == {"step", "paths", "traced"}


def test_pixels_and_drawings_are_not_mixed_up(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="SVG"):
        encode(ring(16), "svg")
    drawing = tools.vectorise(ring(16))
    (tmp_path / "a.svg").write_bytes(seal(drawing[0], drawing.records[0]).data)
    with pytest.raises(PictureError, match="is an SVG"):
        open_picture(tmp_path / "a.svg")
    with pytest.raises(RequestError, match="svg"):
        imagewright.ImageRequest(prompt="x", output_format="bmp")  # type: ignore[arg-type]


def test_a_large_picture_is_traced_smaller_and_shown_at_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "LARGEST", 128)
    drawing = vector.trace(ring(200).crop((0, 0, 200, 131)))
    assert drawing.step["traced"] == [512, 336] and drawing.step["psnr"] > 20
    assert vector.read(drawing.svg.encode()).size == ("200", "131")
    assert rendered(drawing.svg, (200, 131)).size == (200, 131)
