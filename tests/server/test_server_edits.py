"""POST /v1/images/edits, in every form in which clients send it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from served import data_url, drawn, failed, hole, opened, png, served

from imagewright.engines.catalog import Catalog
from imagewright.provenance import metadata

URL = "/v1/images/edits"
PROMPT = {"prompt": "a blue hat", "response_format": "b64_json"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server")) as client:
        yield client


def edited(api: httpx.Client, files: Any, **fields: Any) -> httpx.Response:
    return api.post(URL, data={**PROMPT, **fields}, files=files)


def outside(before: Image.Image, answer: httpx.Response, box: tuple[int, int, int, int]) -> int:
    """How many bytes outside the box differ; and inside it, something must."""
    assert answer.status_code == 200, answer.text
    after = opened(answer.json()["data"][0])
    assert after.size == before.size and after.mode == before.mode
    differs = np.asarray(before).astype(int) != np.asarray(after)
    inside = np.zeros(differs.shape, bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    assert differs[inside].any()
    return int(differs[~inside].sum())


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("model", ["fake/painter", "stickers-diffusion"])
def test_what_the_mask_keeps_comes_back_byte_for_byte(api: httpx.Client, mode: str, model: str) -> None:
    picture, box = drawn((97, 61), mode), (20, 10, 60, 50)
    answer = edited(api, {"image": png(picture), "mask": png(hole((97, 61), box))}, model=model, num_inference_steps=2)
    assert outside(picture, answer, box) == 0


FORMS: dict[str, list[tuple[str, tuple[Any, ...]]]] = {
    "image": [("image", ("a.png", png(drawn()), "image/png")), ("mask", ("m.png", png(hole()), "image/png"))],
    "legacy octets": [
        ("image", ("image", png(drawn()), "application/octet-stream")),
        ("mask", ("mask", png(hole()), "application/octet-stream")),
    ],
    "lists": [("image[]", ("a.png", png(drawn()), "image/png")), ("mask[]", ("m.png", png(hole()), "image/png"))],
    "numbered": [("image[0]", ("a.png", png(drawn()), "image/png")), ("mask", ("m.png", png(hole()), "image/png"))],
    "a lie about the type": [("image", ("a.html", png(drawn()), "text/html")), ("mask", ("../m", png(hole()), "a/b"))],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_way_of_naming_the_parts_is_the_same(api: httpx.Client, form: str) -> None:
    assert outside(drawn(), edited(api, FORMS[form]), (12, 8, 30, 24)) == 0


def test_json_brings_pictures_by_data_url_by_file_and_by_url_of_ours(api: httpx.Client) -> None:
    uploaded = api.post("/v1/files", data={"purpose": "vision"}, files={"file": png(drawn())}).json()["id"]
    made = api.post("/v1/images/generations", json={"prompt": "a", "size": "48x32"}).json()
    first = Image.open(api.get(made["data"][0]["url"]), formats=["PNG"])
    sources = [
        ({"image_url": data_url(drawn())}, drawn()),
        ({"file_id": uploaded}, drawn()),
        ({"file_id": made["imagewright"]["pictures"][0]}, first),
        ({"image_url": made["data"][0]["url"]}, first),
    ]
    for source, picture in sources:
        body = {**PROMPT, "images": [source], "mask": {"image_url": data_url(hole())}}
        assert outside(picture, api.post(URL, json=body), (12, 8, 30, 24)) == 0


def test_without_a_mask_the_words_are_an_instruction_where_the_model_follows_those(api: httpx.Client) -> None:
    body = edited(api, {"image": png(drawn())}, model="fake/painter").json()
    assert body["adjustments"] == []
    record = metadata.read(opened(body["data"][0])).record
    assert record is not None and record["instruction"] is True
    told = edited(api, {"image": png(drawn())}, instruction="false", strength="0.5").json()
    record = metadata.read(opened(told["data"][0])).record
    assert record is not None and record["strength"] == 0.5 and "instruction" not in record


def test_where_it_follows_none_the_words_describe_the_whole_and_that_is_said(api: httpx.Client) -> None:
    models = {info.name: info.capabilities for info in Catalog().engine("embedded").models()}
    plain = next((name for name, can in models.items() if can.image and "instruction" not in can.features), None)
    if plain is None:
        pytest.skip("every model follows instructions")
    body = edited(api, {"image": png(drawn())}, model=plain).json()
    assert [one["field"] for one in body["adjustments"]] == ["instruction"]


def test_where_the_default_model_takes_no_pictures_another_of_this_machine_does(tmp_path: Any) -> None:
    with served(tmp_path, default_model="fake/blocks") as plain:
        for model in ("", "gpt-image-2"):
            fields = {"model": model} if model else {}
            body = edited(plain, {"image": png(drawn()), "mask": png(hole())}, **fields).json()
            assert body["model"] == "embedded/stickers-diffusion"
            assert (body["adjustments"][0]["field"], body["adjustments"][0]["requested"]) == ("model", "blocks")
        failed(edited(plain, {"image": png(drawn())}, model="fake/blocks"), 400, code="unsupported")


def test_for_dalle_2_a_pictures_own_transparency_is_its_mask(api: httpx.Client) -> None:
    picture = drawn(mode="RGBA")
    picture.paste((0, 0, 0, 0), (12, 8, 30, 24))
    answer = edited(api, {"image": png(picture)}, model="dall-e-2")
    assert outside(picture, answer, (12, 8, 30, 24)) == 0
    assert "mask" in [one["field"] for one in answer.json()["adjustments"]]
    opaque = edited(api, {"image": png(drawn())}, model="dall-e-2").json()
    assert [one["field"] for one in opaque["adjustments"]] == ["model"]


def test_several_pictures_are_blended(api: httpx.Client) -> None:
    files = [("image[]", ("a", png(drawn(seed=seed)))) for seed in (1, 2, 3)]
    body = edited(api, files).json()
    record = metadata.read(opened(body["data"][0])).record
    assert record is not None and len(record["images_sha256"]) == 2
    assert "blended" in body["adjustments"][0]["reason"]


def test_style_pictures_come_in_forms_and_json(api: httpx.Client) -> None:
    files = [("image", ("a", png(drawn()))), ("style_images[]", ("b", png(drawn(seed=2))))]
    style = [{"image_url": data_url(drawn(seed=2))}]
    body = {**PROMPT, "images": [{"image_url": data_url(drawn())}], "style_images": style, "instruction": False}
    for answer in (edited(api, files, instruction="false"), api.post(URL, json=body)):
        record = metadata.read(opened(answer.json()["data"][0])).record
        assert record is not None and len(record["style_images_sha256"]) == 1


def test_a_mask_of_the_same_shape_is_resized_and_that_is_said(api: httpx.Client) -> None:
    answer = edited(api, {"image": png(drawn()), "mask": png(hole((96, 64), (24, 16, 60, 48)))})
    assert outside(drawn(), answer, (12, 8, 30, 24)) == 0
    assert answer.json()["adjustments"][0]["field"] == "mask"


def test_forms_hold_our_own_fields_too(api: httpx.Client) -> None:
    body = edited(api, {"image": png(drawn())}, **{"imagewright[seed]": "7", "n": "2", "feather": "3"}).json()
    assert body["imagewright"]["seeds"] == [7, 8]
    told = edited(api, {"image": png(drawn())}, imagewright='{"seed": 9}').json()
    assert told["imagewright"]["seeds"] == [9]
    failed(edited(api, {"image": png(drawn())}, imagewright="9"), 400, code="invalid_json")


def test_sizes_and_formats_are_as_asked(api: httpx.Client) -> None:
    body = edited(api, {"image": png(drawn())}, size="96x64", output_format="webp", output_compression="70").json()
    picture = opened(body["data"][0])
    assert picture.size == (96, 64) and picture.format == "WEBP"
    kept = edited(api, {"image": png(drawn()), "mask": png(hole())}, size="96x64").json()
    assert kept["size"] == "48x32" and kept["adjustments"][0]["field"] == "size"


def test_what_cannot_be_is_refused_with_the_field_named(api: httpx.Client) -> None:
    image = ("image", ("a", png(drawn())))
    grey = Image.new("L", (48, 32))
    cases: list[tuple[list[Any], dict[str, str], int, dict[str, Any]]] = [
        ([("mask", ("m", png(hole())))], {}, 400, {"param": "image", "code": "missing_required_parameter"}),
        ([image, ("mask", ("m", png(grey)))], {}, 400, {"param": "mask", "code": "invalid_mask"}),
        ([image, ("mask", ("m", png(drawn(mode="RGBA"))))], {}, 400, {}),  # nothing transparent in it
        ([image, ("mask", ("m", png(hole((32, 48)))))], {}, 400, {}),
        ([image, ("mask", ("m", png(hole()))), ("mask", ("m", png(hole())))], {}, 400, {"param": "mask"}),
        ([("image", ("a", b"GIF89a..."))], {}, 400, {"param": "image", "code": "invalid_image"}),
        ([("image", ("a", b"<svg xmlns='http://www.w3.org/2000/svg'/>"))], {}, 400, {"param": "image"}),
        ([("image", ("a", png(drawn())[:-200]))], {}, 400, {"param": "image"}),
        ([("image", ("a", b""))], {}, 400, {"param": "image"}),
        ([("image[]", ("a", png(drawn((2, 2)))))] * 17, {}, 400, {"param": "image"}),
        ([image, ("markup", ("a", png(drawn())))], {}, 400, {"param": "markup", "code": "unknown_parameter"}),
        ([image], {"n": "many"}, 400, {"param": "n", "code": "invalid_value"}),
        ([image], {"nonsense": "1"}, 400, {"param": "nonsense", "code": "unknown_parameter"}),
        ([image], {"model": "fake/blocks"}, 400, {"code": "unsupported"}),
        ([image], {"model": "nope"}, 404, {"param": "model", "code": "model_not_found"}),
    ]
    for files, fields, status, keys in cases:
        failed(edited(api, files, **fields), status, **keys)
    failed(api.post(URL, files={"image": png(drawn())}), 400, param="prompt", code="missing_required_parameter")
    failed(api.post(URL, data={**PROMPT, "image": "a.png"}, files={"x": b""}), 400)
    failed(api.post(URL, data=PROMPT), 415, code="unsupported_media_type")
    failed(api.post(URL, content=b"--x", headers={"content-type": "multipart/form-data; boundary=x"}), 400)
    failed(api.post(URL, content=b"--x", headers={"content-type": "multipart/form-data"}), 400)


def test_json_that_names_no_picture_is_refused(api: httpx.Client) -> None:
    wrong: list[tuple[Any, int]] = [
        ({}, 400),
        ({"image_url": "a", "file_id": "b"}, 400),
        ({"image_url": "http://127.0.0.1:1/a.png"}, 400),
        ({"image_url": "file:///etc/passwd"}, 400),
        ({"image_url": "data:image/png;base64,!!"}, 400),
        ({"image_url": "data:nonsense"}, 400),
        ({"file_id": "file-nobodys"}, 404),
        ({"path": "/etc/passwd"}, 400),
    ]
    for source, status in wrong:
        failed(api.post(URL, json={**PROMPT, "images": [source]}), status)
    failed(api.post(URL, json={**PROMPT, "images": []}), 400, param="images")
    failed(api.post(URL, content=b"{", headers={"content-type": "application/json"}), 400, code="invalid_json")
    failed(api.post(URL, json=["a"]), 400, code="invalid_json")


def test_other_peoples_pictures_are_not_there(api: httpx.Client, tmp_path: Any) -> None:
    with served(tmp_path, admin_key="sk-admin") as guarded:
        admin = {"authorization": "Bearer sk-admin"}
        made = guarded.post("/v1/admin/keys", json={"name": "somebody"}, headers=admin).json()
        theirs = {"authorization": f"Bearer {made['token']}"}
        file = {"data": {"purpose": "vision"}, "files": {"file": png(drawn())}}
        mine = guarded.post("/v1/files", headers=admin, **file).json()["id"]
        body = {**PROMPT, "images": [{"file_id": mine}]}
        failed(guarded.post(URL, json=body, headers=theirs), 404, param="images")
        assert guarded.post(URL, json=body, headers=admin).status_code == 200
        for path in (f"/v1/files/{mine}", f"/v1/files/{mine}/content"):
            failed(guarded.get(path, headers=theirs), 404)
        failed(guarded.delete(f"/v1/files/{mine}", headers=theirs), 404)


def test_a_repeated_form_gets_the_same_bytes(api: httpx.Client) -> None:
    def again() -> httpx.Response:
        headers = {"idempotency-key": "edit-once"}
        return api.post(URL, data=PROMPT, files={"image": png(drawn())}, headers=headers)

    first = again()
    assert first.status_code == 200 and again().content == first.content
    assert json.loads(first.content)["model"] == "fake/painter"
