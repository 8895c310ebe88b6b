"""The routes that clients of AUTOMATIC1111's web UI use."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from served import drawn, failed, png, served

from imagewright.models.samplers import SAMPLERS
from imagewright.server.a1111 import ALIASES


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server")) as client:
        client.base_url = client.base_url.join("/sdapi/v1/")
        yield client


def sent(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def pictures(answer: httpx.Response) -> list[Image.Image]:
    assert answer.status_code == 200, answer.text
    return [Image.open(BytesIO(base64.b64decode(one)), formats=("PNG",)) for one in answer.json()["images"]]


def told(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.json()["info"])
    return found


def test_pictures_from_words(api: httpx.Client) -> None:
    body = {"prompt": "a (red:1.3) hat", "seed": 7, "width": 32, "height": 16, "batch_size": 2, "n_iter": 2}
    answer = api.post("txt2img", json=body)
    assert [one.size for one in pictures(answer)] == [(32, 16)] * 4
    info = told(answer)
    assert info["all_seeds"] == [7, 8, 9, 10] and info["prompt"] == "a red hat"
    assert "Seed: 7" in info["infotexts"][0] and answer.json()["parameters"]["prompt"] == "a (red:1.3) hat"
    again = api.post("txt2img", json=body)
    assert [one.tobytes() for one in pictures(again)] == [one.tobytes() for one in pictures(answer)]


def test_a_sampler_that_the_model_has_not_got_is_left_out(api: httpx.Client) -> None:
    answer = api.post("txt2img", json={"prompt": "a hat", "sampler_name": "Euler a"})
    assert "sampler" in {one["field"] for one in told(answer)["adjustments"]}


def test_a_seed_of_minus_one_is_another_each_time(api: httpx.Client) -> None:
    seeds = {told(api.post("txt2img", json={"prompt": "a hat", "seed": -1}))["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_what_is_not_done_here_is_said_and_defaults_are_not(api: httpx.Client) -> None:
    usual: dict[str, Any] = {
        "restore_faces": False,
        "s_noise": 1,
        "script_name": None,
        "alwayson_scripts": {"ADetailer": {"args": []}},
    }
    told_of = {one["field"] for one in told(api.post("txt2img", json={"prompt": "a hat", **usual}))["adjustments"]}
    assert not told_of & {*usual, "alwayson_scripts.ADetailer"}
    wanted = {
        "restore_faces": True,
        "script_name": "X/Y/Z plot",
        "sampler_name": "LMS",
        "enable_hr": True,
        "styles": ["punk"],
    }
    wanted |= {"alwayson_scripts": {"ADetailer": {"args": [True, {}]}}}
    answer = api.post("txt2img", json={"prompt": "a hat", "width": 16, "height": 16, **wanted})
    told_of = {one["field"] for one in told(answer)["adjustments"]}
    assert {"restore_faces", "script_name", "sampler", "enable_hr", "style", "alwayson_scripts.ADetailer"} <= told_of
    assert pictures(answer)[0].size == (32, 32)


def test_only_what_is_white_in_the_mask_changes(api: httpx.Client) -> None:
    image, mask = drawn((40, 24)), Image.new("L", (40, 24))
    mask.paste(255, (8, 4, 20, 16))
    kept = np.asarray(mask) == 0
    for inverted in (0, 1):
        body = {"init_images": [f"data:image/png;base64,{sent(image)}"], "mask": sent(mask), "prompt": "a hat"}
        (after,) = pictures(api.post("img2img", json={**body, "inpainting_mask_invert": inverted, "mask_blur": 0}))
        same = (np.asarray(after.convert("RGB")) == np.asarray(image)).all(-1)
        assert same[kept if not inverted else ~kept].all()
        assert not same[~kept if not inverted else kept].all()


def test_a_picture_is_drawn_again(api: httpx.Client) -> None:
    body = {"init_images": [sent(drawn((32, 32)))], "prompt": "a hat", "width": 48, "height": 48}
    answer = api.post("img2img", json={**body, "denoising_strength": 0.4})
    assert pictures(answer)[0].size == (48, 48)
    failed(api.post("img2img", json={**body, "init_images": ["%%%"]}), 400, param="init_images")
    failed(api.post("img2img", json={**body, "init_images": [sent(drawn((8, 8)))[:60]]}), 400, code="invalid_image")
    failed(api.post("img2img", json={"prompt": "a hat"}), 400, code="missing_required_parameter")


def test_a_picture_tells_how_it_was_made(api: httpx.Client) -> None:
    made = api.post("txt2img", json={"prompt": "a hat", "seed": 5}).json()["images"][0]
    answer = api.post("png-info", json={"image": f"data:image/png;base64,{made}"}).json()
    assert answer["info"].startswith("a hat\n") and "Seed: 5" in answer["info"]
    assert answer["parameters"]["seed"] == 5
    assert api.post("png-info", json={"image": sent(drawn())}).json() == {"info": "", "items": {}, "parameters": {}}


def test_the_lists_and_the_choice_of_a_model(api: httpx.Client) -> None:
    names = [one["title"] for one in api.get("sd-models").json()]
    assert "painter" in names and not any("/root" in name or ".onnx" in name for name in names)
    aliases = {alias for one in api.get("samplers").json() for alias in one["aliases"]}
    assert {"Euler", "Euler a", "DPM++ 2M"} <= aliases
    assert list(ALIASES) == list(SAMPLERS)
    assert api.get("options").json()["sd_model_checkpoint"] == "painter"
    assert api.post("options", json={"sd_model_checkpoint": "blocks", "CLIP_stop_at_last_layers": 2}).json() == {}
    assert api.get("options").json()["sd_model_checkpoint"] == "blocks"
    assert told(api.post("txt2img", json={"prompt": "a hat"}))["sd_model_name"] == "blocks"
    one = {"prompt": "a hat", "override_settings": {"sd_model_checkpoint": "painter"}}
    assert told(api.post("txt2img", json=one))["sd_model_name"] == "painter"
    failed(api.post("options", json={"sd_model_checkpoint": "../etc"}), 404, code="model_not_found")
    api.post("options", json={"sd_model_checkpoint": "painter"})


def test_progress_is_told_and_interrupting_ends_the_work(api: httpx.Client) -> None:
    idle = api.get("progress").json()
    assert idle["progress"] == 0 and idle["state"]["job_count"] == 0
    answers: list[httpx.Response] = []
    body = {"prompt": "a hat sleep=0.02", "steps": 500, "override_settings": {"sd_model_checkpoint": "slow/steps"}}
    waiting = threading.Thread(target=lambda: answers.append(api.post("txt2img", json=body)))
    waiting.start()
    seen, until = idle, time.monotonic() + 20
    while not seen["progress"] and time.monotonic() < until:
        seen = api.get("progress").json()
        time.sleep(0.02)
    assert 0 < seen["progress"] < 1 and seen["state"]["sampling_steps"] > seen["state"]["sampling_step"]
    assert seen["state"]["job_count"] == 1 and seen["eta_relative"] > 0
    assert api.post("interrupt").json() == {}
    waiting.join(10)
    failed(answers[0], 499, code="cancelled")
    assert api.get("progress", params={"skip_current_image": "true"}).json()["state"]["job_count"] == 0


def test_a_key_is_the_password_of_any_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(tmp_path_factory.mktemp("keyed"), admin_key="a-long-secret") as client:
        url = "/sdapi/v1/samplers"
        assert client.get(url, auth=("anyone", "a-long-secret")).status_code == 200
        failed(client.get(url, auth=("a-long-secret", "wrong")), 401, code="invalid_api_key")
        failed(client.get(url, headers={"authorization": "Basic %%%"}), 401)
        failed(client.get(url), 401)
