"""POST /v1/images/generations, and the URLs of pictures."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gatehouse import Paid, shop
from served import failed, opened, served

from imagewright.provenance import metadata
from imagewright.request import Adapter, Capabilities, ImageRequest
from imagewright.server import answers, wire
from imagewright.server.links import PATH
from imagewright.watch import Watch


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server"), models={"my-image": "fake/blocks"}) as client:
        yield client


def generated(api: httpx.Client, **body: Any) -> httpx.Response:
    return api.post("/v1/images/generations", json={"prompt": "a fox", **body})


def test_a_client_that_names_no_model_gets_urls_of_the_default_model(api: httpx.Client) -> None:
    answer = generated(api, n=2, size="64x48")
    body = answer.json()
    assert answer.status_code == 200 and len(body["data"]) == 2
    assert abs(body["created"] - time.time()) < 60
    assert [set(item) for item in body["data"]] == [{"url"}, {"url"}]
    assert body["model"] == answer.headers["x-imagewright-model"] == "fake/painter"
    assert (body["size"], body["output_format"], body["quality"]) == ("64x48", "png", "medium")
    assert body["adjustments"] == json.loads(answer.headers["x-imagewright-adjustments"]) == []
    seeds = body["imagewright"]["seeds"]
    assert seeds[1] == (seeds[0] + 1) % 2**32
    for item in body["data"]:
        assert item["url"].startswith(f"{api.base_url}{PATH}img_")
        shown = httpx.get(item["url"])
        assert shown.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("model", "asked", "key"),
    [
        (None, None, "url"),
        ("dall-e-2", None, "url"),
        ("dall-e-3", None, "url"),
        ("dall-e-3", "b64_json", "b64_json"),
        ("gpt-image-2", None, "b64_json"),
        ("chatgpt-image-latest", None, "b64_json"),
        ("gpt-image-2", "url", "url"),
        ("my-image", None, "b64_json"),
        ("fake/blocks", "url", "url"),
    ],
)
def test_what_is_delivered_follows_the_model_name_unless_told(
    api: httpx.Client, model: str | None, asked: str | None, key: str
) -> None:
    body = generated(api, model=model, response_format=asked).json()
    assert set(body["data"][0]) == {key}
    assert isinstance(body["data"][0][key], str)


def test_which_model_really_drew_is_said(api: httpx.Client) -> None:
    body = generated(api, model="gpt-image-2.6-sunburst").json()
    assert body["model"] == "fake/painter"
    assert body["adjustments"][0]["field"] == "model"
    assert body["adjustments"][0]["requested"] == "gpt-image-2.6-sunburst"
    assert generated(api, model="my-image").json()["model"] == "fake/blocks"


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_format_is_that_asked_for_and_the_record_is_in_it(api: httpx.Client, output_format: str) -> None:
    body = generated(api, model="gpt-image-2", output_format=output_format, output_compression=80, seed=5).json()
    picture = opened(body["data"][0])
    assert picture.format == output_format.upper() and body["output_format"] == output_format
    record = metadata.read(picture).record
    assert record is not None and record["seed"] == 5


def test_backgrounds_are_said(api: httpx.Client) -> None:
    clear = generated(api, model="gpt-image-2", background="transparent").json()
    white = generated(api, model="gpt-image-2", background="white").json()
    assert (clear["background"], white["background"]) == ("transparent", "opaque")


def test_an_svg_comes_as_base64_only(api: httpx.Client) -> None:
    pytest.importorskip("vtracer")
    body = generated(api, model="fake/blocks", output_format="svg", size="32x32").json()
    assert b"<svg" in base64.b64decode(body["data"][0]["b64_json"])
    failed(generated(api, output_format="svg", response_format="url"), 400, param="response_format")
    picture = api.get(f"/v1/pictures/{body['imagewright']['pictures'][0]}")
    assert picture.json()["url"] is None
    failed(api.get(f"/v1/pictures/{picture.json()['id']}/content"), 404)


def test_what_cannot_be_is_refused_with_the_field_named(api: httpx.Client) -> None:
    cases: list[tuple[dict[str, Any], str | None, str]] = [
        ({"output_format": "gif", "frame_count": 4}, "output_format", "invalid_value"),
        ({"frame_count": 4}, "frame_count", "invalid_value"),
        ({"svg": {"model": "x"}}, "svg", "invalid_value"),
        ({"size": "big"}, "size", "invalid_value"),
        ({"size": "0x10"}, "size", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": "2"}, "n", "invalid_value"),
        ({"n": 64, "size": "4096x4096"}, "n", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": "  "}, "prompt", "invalid_value"),
        ({"prompt": "x" * 32_001}, "prompt", "invalid_value"),
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"quality": "best"}, "quality", "invalid_value"),
        ({"partial_images": 2}, "partial_images", "invalid_value"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"imagewright": {"nonsense": 1}}, "imagewright.nonsense", "unknown_parameter"),
        ({"adapters": [{"name": "/etc/passwd"}]}, "adapters", "invalid_value"),
        ({"adapters": [{"model": "/etc/passwd"}]}, "adapters.0.name", "missing_required_parameter"),
        ({"imagewright": {"embeddings": ["/etc/passwd"]}}, "embeddings", "invalid_value"),
        ({"controls": [{"model": "/etc"}]}, "controls", "unknown_parameter"),
        ({"seed": 1, "imagewright": {"seed": 2}}, "imagewright.seed", "invalid_value"),
        ({"model": "no-such-model"}, "model", "model_not_found"),
        ({"model": "../../etc"}, "model", "model_not_found"),
    ]
    for body, param, code in cases:
        status = 404 if code == "model_not_found" else 400
        assert failed(generated(api, **body), status, param=param, code=code, type="invalid_request_error")
    failed(api.post("/v1/images/generations", json={}), 400, param="prompt", code="missing_required_parameter")
    failed(generated(api, model="fake/blocks", style="cubist"), 400, code="unsupported")
    assert "WIDTHxHEIGHT" in failed(generated(api, size="12"), 400)


def test_the_longest_prompt_is_drawn(api: httpx.Client) -> None:
    words = "a fox and " * 3_200
    assert generated(api, prompt=words).status_code == 200


def test_bodies_that_are_no_json_are_said_to_be_none(api: httpx.Client) -> None:
    url = "/v1/images/generations"
    said = failed(api.post(url, content=b'{"prompt":', headers={"content-type": "application/json"}), 400)
    assert "JSON" in said
    failed(api.post(url, content=b'["a"]', headers={"content-type": "application/json"}), 400)
    failed(api.post(url, content=b'{"prompt":"a"}', headers={"content-type": "text/plain"}), 415)
    failed(api.post(url, data={"prompt": "a"}), 415)


def test_routes_and_methods_that_are_not_there_answer_in_the_same_form(api: httpx.Client) -> None:
    failed(api.get("/v1/images/nothing"), 404, code="unknown_url")
    failed(api.get("/v1/images/generations"), 405, code="method_not_allowed")
    answer = api.options("/v1/images/generations")
    failed(answer, 405, code="method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert api.put("/v1/files").headers["allow"] == "GET, POST"
    assert api.head("/v1/images/generations").status_code == 405


def test_our_own_fields_work_at_the_top_and_inside(api: httpx.Client) -> None:
    inside = generated(api, model="my-image", imagewright={"seed": 9, "style": "flat"}).json()
    beside = generated(api, model="my-image", seed=9, style="flat").json()
    assert (
        inside["data"] == beside["data"] or opened(inside["data"][0]).tobytes() == opened(beside["data"][0]).tobytes()
    )
    assert inside["imagewright"]["seeds"] == [9]


def test_what_dalle_had_and_no_other_model_has_is_adjusted(api: httpx.Client) -> None:
    body = generated(api, model="dall-e-3", style="vivid", quality="hd", response_format="b64_json").json()
    assert {one["field"] for one in body["adjustments"]} == {"model", "style"}
    assert body["quality"] == "high"


def test_the_prompt_language_is_read_only_when_asked(api: httpx.Client) -> None:
    words = "a {red} fox --ar 2:1 --seed 3"
    plain = generated(api, prompt=words).json()
    assert "revised_prompt" not in plain["data"][0] and plain["size"] == "16x16"
    read = generated(api, prompt=words, prompt_language=True).json()
    assert read["data"][0]["revised_prompt"] == "a red fox"
    assert read["imagewright"]["seeds"] == [3] and read["size"] == "24x8"
    several = failed(generated(api, prompt="a {red,blue} fox", prompt_language=True), 400, param="prompt")
    assert "2 requests" in several
    failed(generated(api, prompt="/etc/passwd.png a fox", prompt_language=True), 400)


def test_tokens_are_counted_by_the_rule_that_the_server_states(api: httpx.Client) -> None:
    usage = generated(api, prompt="x" * 41, n=2, size="65x32").json()["usage"]
    assert usage["input_tokens_details"] == {"text_tokens": 11, "image_tokens": 0}
    assert usage["output_tokens"] == 2 * 3 * 1
    assert usage["total_tokens"] == 11 + 6


def test_the_end_user_is_echoed_and_kept_nowhere(api: httpx.Client) -> None:
    name = "somebody-3151"
    body = generated(api, safety_identifier=name, user="other-3151").json()
    assert body["safety_identifier"] == name
    app = api.app  # type: ignore[attr-defined]
    folder = app.state.settings.folder
    app.state.database.engine.dispose()
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert name.encode() not in kept and b"other-3151" not in kept
    told = wire.Output(user=name)
    assert told.end_user is not None and name not in told.end_user


def test_adjustments_fit_into_a_header_whatever_was_asked(api: httpx.Client) -> None:
    body = generated(api, model="my-image", negative_prompt="fü\n" * 9_000, seed=1)
    told = json.loads(body.headers["x-imagewright-adjustments"])
    assert told[0]["field"] == "negative_prompt" and len(told[0]["requested"]) <= answers.MAX_TOLD
    assert body.json()["adjustments"][0]["requested"] == "fü\n" * 9_000


def test_a_url_needs_no_key_and_ends(tmp_path: Path) -> None:
    with served(tmp_path, admin_key="sk-test") as api:
        failed(api.post("/v1/images/generations", json={"prompt": "a"}), 401, code="invalid_api_key")
        key = {"authorization": "Bearer sk-test"}
        url = api.post("/v1/images/generations", json={"prompt": "a"}, headers=key).json()["data"][0]["url"]
        for headers in ({}, key, {"authorization": "Bearer sk-wrong"}):
            shown = httpx.get(url, headers=headers)
            assert shown.status_code == 200 and shown.content.startswith(b"\x89PNG")
        _check_headers(shown.headers)
        head = httpx.head(url)
        assert head.status_code == 200 and head.content == b""
        assert head.headers["content-length"] == str(len(shown.content))
        again = httpx.get(url, headers={"if-none-match": shown.headers["etag"]})
        assert again.status_code == 304 and again.content == b""

        links, name = api.app.state.links, url.rpartition("/")[2]  # type: ignore[attr-defined]
        picture, until, seal = name.split(".")
        late = links.name(picture, int(time.time()) - 1)
        wrong = [late, f"{picture}.{int(until) + 1}.{seal}", f"{picture}.{until}.{seal[:-1]}", picture, "..", "é.1.x"]
        for one in wrong:
            failed(httpx.get(f"{api.base_url}{PATH}{one}"), 404)
        api.delete(f"/v1/pictures/{picture}", headers=key).raise_for_status()
        failed(httpx.get(url), 404, code="not_found")


def _check_headers(headers: httpx.Headers) -> None:
    assert headers["content-type"] == "image/png"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert headers["content-disposition"].startswith("inline; filename=")
    assert headers["cache-control"].startswith("private, max-age=3")


def test_a_url_works_from_another_server_of_the_same_store(tmp_path: Path) -> None:
    with served(tmp_path) as one, served(tmp_path, work=False) as other:
        url = one.post("/v1/images/generations", json={"prompt": "a"}).json()["data"][0]["url"]
        name = url.rpartition("/")[2]
        assert other.get(f"{PATH}{name}").content == httpx.get(url).content != b""


def test_urls_start_with_the_public_address_where_there_is_one(tmp_path: Path) -> None:
    with served(tmp_path, public_url="https://pictures.example/iw/") as api:
        url = api.post("/v1/images/generations", json={"prompt": "a"}).json()["data"][0]["url"]
    assert url.startswith("https://pictures.example/iw/v1/images/files/img_")


def test_a_repeated_request_gets_the_same_bytes(api: httpx.Client) -> None:
    headers = {"idempotency-key": "once-only"}
    first, second = (api.post("/v1/images/generations", json={"prompt": "a fox"}, headers=headers) for _ in range(2))
    assert first.status_code == 200 and first.content == second.content


def test_work_in_the_background_answers_with_a_job(api: httpx.Client) -> None:
    for body, headers in (({"background": True}, {}), ({}, {"prefer": "respond-async"})):
        answer = api.post("/v1/images/generations", json={"prompt": "a", **body}, headers=headers)
        assert answer.status_code == 202
        assert answer.json()["id"].startswith("job_") and answer.headers["location"].endswith(answer.json()["id"])
    while (job := api.get(answer.headers["location"]).json())["status"] in ("queued", "in_progress"):
        time.sleep(0.02)
    until = int(job["result"]["data"][0]["url"].split(".")[-2])
    assert abs(until - time.time() - 3600) < 30  # the hour begins when the job is looked at


def test_a_hosted_service_gets_a_hash_of_the_end_user_and_its_own_words_are_told(tmp_path: Path) -> None:
    seen: list[ImageRequest] = []
    usage = {"total_tokens": 9, "input_tokens": 4, "output_tokens": 5, "input_tokens_details": {"text_tokens": 4}}

    def act(request: ImageRequest, watch: Watch) -> dict[str, Any]:
        seen.append(request)
        return {"revised_prompt": "a red fox in the snow", "usage": usage}

    can = Capabilities(size=(8, 8), seed=False, provider_options=("user", "moderation"))
    with served(tmp_path, shop(Paid("service", act, can)), default_model="service/m") as api:
        asked = {"user": "somebody-3151", "moderation": "low", "model": "gpt-image-2"}
        body = generated(api, **asked).json()
        generated(api, moderation="auto").raise_for_status()
    assert set(seen[0].provider_options) == {"user", "moderation"} and seen[1].provider_options == {}
    assert len(seen[0].provider_options["user"]) == 32 and "somebody" not in str(seen[0].provider_options)
    assert body["data"][0]["revised_prompt"] == "a red fox in the snow"
    assert body["usage"] == usage and body["model"] == "service/m"
    told = {one["field"] for one in body["adjustments"]}
    assert told == {"model"}


def test_adapters_go_by_the_names_that_the_operator_gave_them(tmp_path: Path) -> None:
    seen: list[ImageRequest] = []

    def act(request: ImageRequest, watch: Watch) -> dict[str, Any]:
        seen.append(request)
        return {}

    can = Capabilities(size=(8, 8), features=("adapters", "embeddings"))
    named = {"adapters": {"inks": "/loras/inks.safetensors"}, "embeddings": {"soft": "/words/soft.safetensors"}}
    with served(tmp_path, shop(Paid("service", act, can)), default_model="service/m", **named) as api:
        asked = {"adapters": [{"name": "inks", "weight": 0.5}], "embeddings": ["soft"]}
        answer = generated(api, imagewright=asked)
        assert answer.status_code == 200 and "/loras" not in answer.text
        assert "inks" in failed(generated(api, adapters=[{"name": "/loras/inks.safetensors"}]), 400, param="adapters")
    assert seen[0].adapters == (Adapter("/loras/inks.safetensors", 0.5),)
    assert seen[0].embeddings == ("/words/soft.safetensors",) and len(seen) == 1


def test_a_wish_that_only_others_know_is_adjusted(api: httpx.Client) -> None:
    body = generated(api, moderation="low", complexity="high").json()
    assert {one["field"] for one in body["adjustments"]} == {"moderation", "complexity"}
