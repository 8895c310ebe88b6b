"""OpenAI's engine against a service that refuses what OpenAI refuses."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hosting import Only, config, hole, photo
from openai_service import KEY, USAGE, OpenAIService
from PIL import Image
from standin import Reply, as_events, as_json

from imagewright import cli
from imagewright.config import VARIABLE
from imagewright.engines.hosted.openai import OpenAIEngine
from imagewright.errors import (
    CredentialError,
    ModerationError,
    PromptError,
    ProviderError,
    QuotaError,
    UnsupportedError,
)
from imagewright.provenance import credentials, metadata
from imagewright.request import ImageRequest, ImageResult
from imagewright.watch import Watch
from imagewright.workshop import Workshop


@pytest.fixture
def service() -> Iterator[OpenAIService]:
    with OpenAIService() as running:
        yield running


@pytest.fixture
def engine(service: OpenAIService) -> Iterator[OpenAIEngine]:
    found = OpenAIEngine(config("openai", f"{service.url}/v1", key=KEY, organization="org-7"))
    yield found
    found.close()


def made(engine: OpenAIEngine, **fields: object) -> ImageResult:
    return engine.generate(ImageRequest(**{"prompt": "a red cube", "model": "gpt-image-2", **fields}))


def adjusted(result: ImageResult) -> dict[str, tuple[object, object]]:
    return {one.field: (one.requested, one.used) for one in result.adjustments}


def test_the_plainest_request(service: OpenAIService, engine: OpenAIEngine) -> None:
    result = made(engine)
    (asked,) = service.asked
    assert asked.json() == {
        "model": "gpt-image-2",
        "prompt": "a red cube",
        "size": "1024x1024",
        "output_format": "png",
        "n": 1,
    }
    assert asked.headers["openai-organization"] == "org-7"
    assert result.images[0].size == (1024, 1024)
    assert result.adjustments == ()
    record = result.records[0]
    assert (record["provider"], record["request_id"], record["usage"]) == ("openai", "req-good", USAGE)
    assert record["seed"] is None and "cost" not in record


def test_several_pictures_count_their_usage_once(service: OpenAIService, engine: OpenAIEngine) -> None:
    result = made(engine, n=3)
    assert len(service.asked) == 1
    assert [record.get("usage") for record in result.records] == [USAGE, None, None]
    assert {record["request_id"] for record in result.records} == {"req-good"}


@pytest.mark.parametrize(
    ("model", "size", "drawn"),
    [
        ("gpt-image-2", (1920, 1088), (1920, 1088)),
        ("gpt-image-2", (1920, 1080), (1920, 1088)),
        ("gpt-image-2", (100, 100), (816, 816)),
        ("gpt-image-2.6-flare", (3840, 2160), (3840, 2160)),
        ("gpt-image-2.5-flare", (4096, 4096), (2880, 2880)),
        ("gpt-image-2", (4000, 300), (1904, 640)),
        ("gpt-image-1-mini", (1920, 1080), (1536, 1024)),
        ("gpt-image-1", (600, 1000), (1024, 1536)),
        ("chatgpt-image-latest", (1000, 1000), (1024, 1024)),
        ("dall-e-2", (300, 300), (256, 256)),
        ("dall-e-3", (1000, 600), (1792, 1024)),
    ],
)
def test_sizes_become_the_nearest_that_the_model_draws(
    engine: OpenAIEngine, model: str, size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    result = made(engine, model=model, size=size)
    assert result.images[0].size == drawn
    assert adjusted(result) == ({} if size == drawn else {"size": (size, drawn)})


def test_any_size_asked_for_is_one_that_openai_takes(service: OpenAIService, engine: OpenAIEngine) -> None:
    rng = np.random.default_rng(3)
    can = {name: engine.find(name).capabilities for name in ("gpt-image-2", "gpt-image-1-mini", "dall-e-3")}
    from imagewright.editing.shapes import nearest

    for width, height in rng.integers(1, 4097, (3000, 2)).tolist():
        for name, one in can.items():
            got = nearest((width, height), one)
            assert service._size_good(name, f"{got[0]}x{got[1]}"), (name, width, height, got)
            assert nearest(got, one) == got


def test_a_shape_asked_for(engine: OpenAIEngine) -> None:
    assert made(engine, aspect=(3, 2)).images[0].size == (1248, 832)
    assert made(engine, aspect=(3, 2), model="gpt-image-1-mini").images[0].size == (1536, 1024)


@pytest.mark.parametrize(
    ("model", "asked", "sent"),
    [
        ("gpt-image-2", "auto", None),
        ("gpt-image-2", "high", "high"),
        ("gpt-image-2", "max", "high"),
        ("gpt-image-2", "hd", "high"),
        ("gpt-image-2", "standard", "medium"),
        ("gpt-image-2.6-sunburst", "max", "max"),
        ("gpt-image-2.5-flare", "xhigh", "xhigh"),
        ("dall-e-3", "high", "hd"),
        ("dall-e-3", "low", "standard"),
        ("dall-e-2", "hd", "standard"),
    ],
)
def test_qualities(service: OpenAIService, engine: OpenAIEngine, model: str, asked: str, sent: str | None) -> None:
    result = made(engine, model=model, quality=asked)
    assert service.asked[0].json().get("quality") == sent
    assert adjusted(result) == ({} if sent in (asked, None) else {"quality": (asked, sent)})


def test_what_openai_has_not_is_said(service: OpenAIService, engine: OpenAIEngine) -> None:
    result = made(
        engine,
        seed=7,
        negative_prompt="blur",
        num_inference_steps=30,
        guidance_scale=4.0,
        provider_options={"input_fidelity": "high", "user": "u1", "api_base": "http://evil", "model": "x"},
    )
    said = adjusted(result)
    foreign = {f"provider_options.{name}" for name in ("input_fidelity", "api_base", "model")}
    assert set(said) == {"seed", "negative_prompt", "num_inference_steps", "guidance_scale"} | foreign
    body = service.asked[0].json()
    assert (body["user"], body["model"]) == ("u1", "gpt-image-2")
    assert not {"seed", "negative_prompt", "input_fidelity", "api_base"} & set(body)
    assert "u1" not in json.dumps(result.records[0])


def test_options_of_its_own(service: OpenAIService, engine: OpenAIEngine) -> None:
    options = {"moderation": "low", "complexity": "high", "safety_identifier": "abc"}
    result = made(engine, model="gpt-image-2.6-flare", provider_options=options)
    assert options.items() <= service.asked[0].json().items()
    assert result.records[0]["provider_options"] == {"moderation": "low", "complexity": "high"}
    result = made(
        engine, model="gpt-image-1", image=photo(), provider_options={"moderation": "low", "input_fidelity": "high"}
    )
    assert service.asked[1].texts()["input_fidelity"] == "high"
    assert adjusted(result) == {"provider_options.moderation": ("low", None)}


@pytest.mark.parametrize(
    ("model", "background", "output_format", "sent"),
    [
        ("gpt-image-2.6-flare", "transparent", "png", ("transparent", "png")),
        ("gpt-image-2.6-flare", "transparent", "webp", ("transparent", "webp")),
        ("gpt-image-2.6-flare", "#ff0000", "jpeg", ("transparent", "png")),
        ("gpt-image-2.6-flare", "white", "png", ("transparent", "png")),
        ("gpt-image-2.6-flare", "opaque", "jpeg", ("opaque", "jpeg")),
        ("gpt-image-2", "transparent", "png", (None, "png")),
        ("gpt-image-2", "auto", "svg", (None, "png")),
        ("gpt-image-2", "auto", "webp", (None, "webp")),
    ],
)
def test_backgrounds_and_formats(
    service: OpenAIService,
    engine: OpenAIEngine,
    model: str,
    background: str,
    output_format: str,
    sent: tuple[str | None, str],
) -> None:
    made(engine, model=model, background=background, output_format=output_format, size=(1024, 1024))
    body = service.asked[0].json()
    assert (body.get("background"), body["output_format"]) == sent


def test_a_colour_is_laid_below(engine: OpenAIEngine) -> None:
    request = ImageRequest(prompt="x", model="gpt-image-2.6-flare", background="#ffffff", output_format="jpeg")
    picture = Workshop(Only(engine)).make(request).images[0]
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture)[0, 0].astype(int) - (0x90, 0xBB, 0xE5)).max() <= 2


def test_the_file_goes_through_as_it_came(service: OpenAIService, engine: OpenAIEngine) -> None:
    request = ImageRequest(prompt="x", model="gpt-image-2", output_format="webp", output_compression=60)
    result = engine.generate(request, decode=False)
    data, kind = result.images[0].info["original"]
    assert kind == "image/webp" and data[8:12] == b"WEBP"
    assert service.asked[0].json()["output_compression"] == 60


# Edits


def test_an_edit_with_a_mask(service: OpenAIService, engine: OpenAIEngine) -> None:
    picture, mask = photo((300, 200)), hole((300, 200), (100, 50, 180, 120))
    result = made(engine, image=picture, mask=mask, prompt="a moon")
    (asked,) = service.asked
    assert asked.path == "/v1/images/edits"
    texts, files = asked.texts(), asked.files()
    assert texts["prompt"] == "a moon" and texts["output_format"] == "png"
    assert [part.name for part in asked.parts()][-2:] == ["image", "mask"]  # text comes first
    sent = Image.open(BytesIO(files["image"][0].data), formats=("PNG",))
    assert f"{sent.width}x{sent.height}" == texts["size"]
    kept = np.asarray(mask)[..., 1] > 0
    before, after = np.asarray(picture), np.asarray(result.images[0])
    assert (before[kept] == after[kept]).all()
    assert (before[~kept] != after[~kept]).any()
    assert result.records[0]["changed_outside_mask"] == 0
    assert result.records[0]["usage"] == USAGE
    assert "strength" not in {one.field for one in result.adjustments}


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("gpt-image-2", (640, 80)),
        ("gpt-image-1", (90, 1000)),
        ("gpt-image-2.6-flare", (1, 1)),
        ("dall-e-2", (300, 220)),
    ],
)
def test_any_picture_goes_out_in_a_size_of_the_model_and_comes_back_in_its_own(
    engine: OpenAIEngine, model: str, size: tuple[int, int]
) -> None:
    box = (size[0] // 4, size[1] // 4, -(-size[0] // 2), -(-size[1] // 2))
    assert made(engine, model=model, image=photo(size), mask=hole(size, box)).images[0].size == size
    assert made(engine, model=model, image=photo(size)).images[0].size == size


def test_strength_is_not_known(engine: OpenAIEngine) -> None:
    result = made(engine, image=photo(), strength=0.3)
    assert adjusted(result) == {"strength": (0.3, None)}


def test_several_pictures_go_along_in_order(service: OpenAIService, engine: OpenAIEngine) -> None:
    others = (Image.new("RGB", (20, 10), "#112233"), Image.new("RGB", (10, 20), "#445566"))
    made(engine, image=photo((1024, 1024)), images=others)
    made(engine, images=others)
    sizes = [
        [Image.open(BytesIO(part.data), formats=("PNG",)).size for part in asked.files()["image[]"]]
        for asked in service.asked
    ]
    assert sizes == [[(1024, 1024), (20, 10), (10, 20)], [(20, 10), (10, 20)]]


def test_an_instruction_leaves_alone_what_did_not_change(service: OpenAIService, engine: OpenAIEngine) -> None:
    picture = Image.new("RGB", (1024, 1024), service.colour)
    result = made(engine, image=picture, instruction=True, prompt="make it stay")
    assert result.images[0].tobytes() == picture.tobytes()
    assert result.records[0]["changed"] == 0


# Streams


def test_pictures_on_the_way_are_shown(service: OpenAIService, engine: OpenAIEngine) -> None:
    seen: list[tuple[int, tuple[int, int]]] = []
    watch = Watch(preview=lambda index, image: seen.append((index, image.size)), previews=2)
    result = engine.generate(ImageRequest(prompt="x", model="gpt-image-2"), watch)
    assert seen == [(0, (1024, 1024)), (1, (1024, 1024))]
    body = service.asked[0].json()
    assert (body["stream"], body["partial_images"]) == (True, 2)
    assert result.records[0]["usage"] == USAGE
    watch = Watch(preview=lambda index, image: seen.append((index, image.size)), previews=9)
    engine.generate(ImageRequest(prompt="x", model="gpt-image-2", image=photo(), mask=hole()), watch)
    assert service.asked[1].texts()["stream"] == "true"
    assert service.asked[1].texts()["partial_images"] == "3"
    assert seen[2:] == [(0, (96, 64)), (1, (96, 64)), (2, (96, 64))]  # as finished pictures, set back


@pytest.mark.parametrize("model", ["gpt-image-2", "dall-e-2"])
def test_what_does_not_stream_is_drawn_all_the_same(model: str) -> None:
    with OpenAIService(streams=False) as service:
        engine = OpenAIEngine(config("openai", f"{service.url}/v1", key=KEY))
        watch = Watch(preview=lambda index, image: None, previews=2)
        assert engine.generate(ImageRequest(prompt="x", model=model), watch).images[0].size == (1024, 1024)
        engine.close()


def test_several_pictures_are_not_streamed(service: OpenAIService, engine: OpenAIEngine) -> None:
    engine.generate(
        ImageRequest(prompt="x", model="gpt-image-2", n=2), Watch(preview=lambda index, image: None, previews=2)
    )
    assert "stream" not in service.asked[0].json()


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([{"type": "error", "error": {"message": "no", "code": "moderation_blocked"}}], ModerationError),
        ([{"type": "error", "error": {"message": "oops", "code": "server_error"}}], ProviderError),
        ([{"type": "image_generation.partial_image", "partial_image_index": 0, "b64_json": "!!"}], ProviderError),
        ([], ProviderError),
    ],
)
def test_a_stream_may_end_badly(
    service: OpenAIService, engine: OpenAIEngine, events: list[dict[str, object]], kind: type[ProviderError]
) -> None:
    service.next.append(as_events(events))
    with pytest.raises(kind):
        engine.generate(
            ImageRequest(prompt="x", model="gpt-image-2"), Watch(preview=lambda index, image: None, previews=1)
        )
    assert len(service.asked) == 1


def test_a_broken_preview_loses_nothing(service: OpenAIService, engine: OpenAIEngine) -> None:
    final = service._events({"size": "1024x1024", "partial_images": 0}, "image_generation")
    broken = {"type": "image_generation.partial_image", "partial_image_index": 0, "b64_json": "AAAA"}
    service.next.append(as_events([broken, {"type": "something.new"}, *final]))
    seen: list[int] = []
    watch = Watch(preview=lambda index, image: seen.append(index), previews=1)
    assert engine.generate(ImageRequest(prompt="x", model="gpt-image-2"), watch).images[0].size == (1024, 1024)
    assert seen == []


# DALL-E and unknown ids


def test_dall_e_in_its_own_words(service: OpenAIService, engine: OpenAIEngine) -> None:
    result = made(engine, model="dall-e-3", style="natural", n=3)
    assert [asked.json()["n"] for asked in service.asked] == [1, 1, 1]
    body = service.asked[0].json()
    assert (body["response_format"], body["style"]) == ("b64_json", "natural")
    assert "output_format" not in body
    assert result.records[2]["revised_prompt"] == "a red cube, in detail"
    with pytest.raises(UnsupportedError):
        made(engine, model="dall-e-3", image=photo())
    with pytest.raises(UnsupportedError, match="no style"):
        made(engine, style="natural")


def test_a_linked_picture_is_fetched_without_the_key() -> None:
    with OpenAIService(links=True) as service:
        engine = OpenAIEngine(config("openai", f"{service.url}/v1", key=KEY))
        assert made(engine, model="dall-e-2").images[0].size == (1024, 1024)
        service.next.append(as_json({"created": 1, "data": [{"url": f"{service.url}/files/a.png?sig=old"}]}))
        with pytest.raises(ProviderError, match="no longer where") as caught:
            made(engine, model="dall-e-2")
        assert caught.value.code == "expired"
        engine.close()


def test_an_id_not_known_here_is_passed_on(service: OpenAIService, engine: OpenAIEngine) -> None:
    result = made(engine, model="gpt-image-9", provider_options={"complexity": "low"}, size=(1600, 1200))
    assert service.asked[0].json()["model"] == "gpt-image-9"
    assert result.images[0].size == (1600, 1200)
    with pytest.raises(ProviderError, match="gpt-image-99") as caught:
        made(engine, model="gpt-image-99")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


# Trouble


def test_a_refusal_is_not_sent_again(service: OpenAIService, engine: OpenAIEngine) -> None:
    with pytest.raises(ModerationError, match="violence") as caught:
        made(engine, prompt="a forbidden thing")
    assert caught.value.code == "moderation_blocked"
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("reply", "kind", "attempts"),
    [
        (as_json({"error": {"message": "slow", "type": "requests", "code": "rate_limit_exceeded"}}, 429), None, 2),
        (as_json({"error": {"message": "x", "type": "server_error", "code": None}}, 500), None, 2),
        (Reply(502, b"<html>bad gateway</html>", {}, "text/html"), None, 2),
        (as_json({"error": {"message": "x", "code": "billing_hard_limit_reached"}}, 400), QuotaError, 1),
        (as_json({"error": {"message": "x", "code": "insufficient_quota"}}, 429), QuotaError, 1),
        (as_json({"error": {"message": "verify your organization"}}, 403), CredentialError, 1),
        (Reply(504, b"<html>late</html>", {}, "text/html"), ProviderError, 1),
        (as_json({"created": 1, "data": []}), ProviderError, 1),
        (as_json({"created": 1, "data": [{}]}), ProviderError, 1),
        (as_json({"created": 1, "data": [{"b64_json": "R0lGODlhAQABAAAAACw="}]}), ProviderError, 1),
        (as_json({"created": 1, "data": "none"}), ProviderError, 1),
        (as_json({"created": 1}), ProviderError, 1),
    ],
)
def test_trouble(
    service: OpenAIService, engine: OpenAIEngine, reply: Reply, kind: type[ProviderError] | None, attempts: int
) -> None:
    service.next.append(reply)
    if kind is None:
        assert made(engine).images[0].size == (1024, 1024)
    else:
        with pytest.raises(kind):
            made(engine)
    assert len(service.asked) == attempts


def test_a_long_prompt_is_refused_before_it_is_sent(service: OpenAIService, engine: OpenAIEngine) -> None:
    made(engine, prompt="x" * 32_000)
    with pytest.raises(PromptError, match=r"1,000"):
        made(engine, model="dall-e-2", prompt="x" * 1001)
    assert len(service.asked) == 1


# The command line


def test_the_command_line_end_to_end(
    service: OpenAIService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text(f'[providers.openai]\nkey = "{KEY}"\nbase_url = "{service.url}/v1"\n')
    settings.chmod(0o600)
    monkeypatch.setenv(VARIABLE, str(settings))
    out = tmp_path / "fox.png"
    arguments = ["generate", "-m", "openai/gpt-image-2", "a red fox", "--size", "1280x720", "-o", str(out), "--json"]
    with caplog.at_level(logging.DEBUG):
        assert cli.run(arguments) == 0
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert answer["engine"] == "openai" and answer["model"] == "gpt-image-2"
    assert [one["field"] for one in answer["adjustments"]] == []
    data = out.read_bytes()
    credential = credentials.read(data, "png")
    assert credential.state == "trusted"
    assert credential.digital_source_type == "trainedAlgorithmicMedia"
    assert credential.model["provider"] == "openai" and credential.model["model"] == "gpt-image-2"
    image = Image.open(BytesIO(data), formats=("PNG",))
    assert image.size == (1280, 720)
    record = metadata.read(image).record
    assert record is not None and record["request_id"] == "req-good"
    assert KEY not in told.out + told.err + caplog.text
    assert KEY.encode() not in data
    service.next.append(as_json({"error": {"message": f"{KEY} is wrong", "code": "invalid_api_key"}}, 401))
    assert cli.run(arguments) == 2
    told = capsys.readouterr()
    assert "does not accept the key" in told.err and KEY not in told.err


def test_the_list_of_models_knows_which_have_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["models"]) == 0
    (hosted,) = [line for line in capsys.readouterr().out.splitlines() if "with a key" in line]
    assert "openai, cometapi" in hosted and "Set OPENAI_API_KEY" in hosted
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert cli.run(["models"]) == 0
    told = capsys.readouterr().out
    assert "gpt-image-2.6-sunburst" in told and "openai: It needs" not in told


def test_listing_loads_no_network_library() -> None:
    code = (
        "import sys; from imagewright.engines.catalog import Catalog; "
        "Catalog().listings(); print('httpx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
