"""POST /v1/images/variations."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from PIL import Image
from served import drawn, failed, opened, png, served

from imagewright.provenance import metadata
from imagewright.verbs import SUBTLE

URL = "/v1/images/variations"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server")) as client:
        yield client


def test_a_picture_of_ours_is_drawn_again_with_its_own_words(api: httpx.Client) -> None:
    body = {"prompt": "a green frog", "response_format": "b64_json"}
    made = api.post("/v1/images/generations", json=body).json()["data"][0]
    fields = {"n": "2", "size": "32x32", "response_format": "b64_json"}
    answer = api.post(URL, data=fields, files={"image": png(opened(made), pnginfo=_info(opened(made)))}).json()
    assert len(answer["data"]) == 2 and answer["size"] == "32x32"
    record = metadata.read(opened(answer["data"][0])).record
    assert record is not None and record["prompt"] == "a green frog" and record["strength"] == SUBTLE
    assert answer["adjustments"][0]["reason"] == "from the picture's record"


def _info(image: Image.Image) -> object:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("imagewright", image.info["imagewright"])
    return info


def test_of_a_strangers_picture_it_is_said_what_it_seems_to_show(api: httpx.Client) -> None:
    answer = api.post(URL, files={"image": ("image", png(drawn()), "application/octet-stream")})
    body = answer.json()
    assert body["data"][0]["url"] and body["adjustments"][0]["field"] == "prompt"
    told = api.post(URL, data={"prompt": "a hat", "strength": "0.9"}, files={"image": png(drawn())}).json()
    assert told["adjustments"] == []


def test_what_cannot_be_is_refused(api: httpx.Client) -> None:
    failed(api.post(URL, data={"n": "1"}, files={"other": b""}), 400, code="unknown_parameter")
    failed(api.post(URL, data={"n": "1"}, files={"mask": b""}), 400, param="image")
    failed(api.post(URL, json={"image": "a"}), 415)
    failed(api.post(URL, data={"model": "fake/blocks"}, files={"image": png(drawn())}), 400, code="unsupported")
    clear = Image.new("RGBA", (8, 8))
    failed(api.post(URL, files={"image": png(clear)}), 400)  # nothing to be seen, and no words
