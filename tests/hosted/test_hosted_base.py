"""What all hosted engines share: records, keys, what goes wrong, and the pictures that come back."""

from __future__ import annotations

import logging
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import pytest
from example_service import KEY, SIZE, ExampleEngine, ExampleService, made
from hosting import Only, config, hole, photo
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from standin import Reply, as_json, drawn

from imagewright.config import Config
from imagewright.engines.hosted import breaker, wire
from imagewright.errors import (
    ConfigError,
    CredentialError,
    ImagewrightError,
    ModelNotFoundError,
    ModerationError,
    ProviderError,
    ProviderTimeoutError,
    QuotaError,
)
from imagewright.request import ImageRequest
from imagewright.watch import Watch
from imagewright.workshop import Workshop

REQUEST = ImageRequest(prompt="a red cube", model="one", seed=5)
TROUBLE = as_json({"error": {"message": "overloaded"}}, 503)


def test_a_picture_comes_with_its_record(service: ExampleService, engine: ExampleEngine) -> None:
    result = made(engine)
    assert result.images[0].size == SIZE
    record = result.records[0]
    assert (record["engine"], record["provider"], record["model"]) == ("example", "example", "one")
    assert (record["request_id"], record["seed"], record["technique"]) == ("req-1", 5, "hosted")
    assert service.asked[0].headers["user-agent"].startswith("imagewright/")


def test_connections_are_kept(service: ExampleService, engine: ExampleEngine) -> None:
    peers = set()
    original = wire._Network.connect_tcp

    def counted(self: wire._Network, *args: object, **options: object) -> object:
        peers.add(object())
        return original(self, *args, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire._Network, "connect_tcp", counted)
        for _ in range(5):
            made(engine)
    assert len(peers) == 1


def test_one_engine_serves_many_threads(service: ExampleService, engine: ExampleEngine) -> None:
    with ThreadPoolExecutor(16) as pool:
        seeds = list(pool.map(lambda seed: made(engine, seed=seed).records[0]["seed"], range(48)))
    assert seeds == list(range(48))
    assert sorted(asked.json()["seed"] for asked in service.asked) == list(range(48))


def test_a_httpx_transport_can_be_given() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(418, json={"error": {"message": "a teapot", "code": "teapot"}})

    engine = ExampleEngine(config("example", "https://example.invalid/v1", key=KEY), httpx.MockTransport(answer))
    with pytest.raises(ProviderError, match="a teapot") as caught:
        made(engine)
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (418, "teapot", False)


# Keys


def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch, service: ExampleService) -> None:
    engine = ExampleEngine(Config())
    with pytest.raises(CredentialError) as caught:
        made(engine)
    assert "EXAMPLE_API_KEY" in caught.value.fix and "[providers.example]" in caught.value.fix
    with pytest.raises(CredentialError):
        engine.models()
    monkeypatch.setenv("EXAMPLE_API_KEY", KEY)
    monkeypatch.setenv("EXAMPLE_BASE_URL", f"{service.url}/v1")
    assert made(engine).images[0].size == SIZE
    engine.close()


def test_a_key_goes_nowhere_unprotected(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unprotected") as caught:
        ExampleEngine(config("example", "http://far.invalid/v1", key=KEY)).models()
    assert "insecure = true" in caught.value.fix and KEY not in str(caught.value)
    assert ExampleEngine(config("example", "http://far.invalid/v1", key=KEY, insecure=True)).models()
    assert ExampleEngine(config("example", "https://far.invalid/v1", key=KEY)).models()


def test_an_unknown_model_is_said(engine: ExampleEngine) -> None:
    with pytest.raises(ModelNotFoundError, match="one, later, each"):
        made(engine, model="nothing")


def test_a_wrong_key_is_said_once_and_not_shown(service: ExampleService, engine: ExampleEngine) -> None:
    service.next.append(as_json({"error": {"message": f"Incorrect key: {KEY}"}}, 401))
    with pytest.raises(CredentialError, match=r"Incorrect key: \*\*\*") as caught:
        made(engine)
    assert caught.value.status == 401
    assert len(service.asked) == 1


def test_no_key_is_anywhere(service: ExampleService, engine: ExampleEngine, caplog: pytest.LogCaptureFixture) -> None:
    """At the most talkative: in no log, message, record, picture or text form, whatever goes wrong."""
    troubles = [
        as_json({"error": {"message": f"bad {KEY}"}}, 400),
        as_json({"error": {"message": f"who is {KEY}?", "code": KEY}}, 403),
        Reply(500, f"<html>{KEY}</html>".encode(), {}, "text/html"),
        Reply(200, b"<html>", {}, "text/html"),
        Reply(hang_up=True),
        Reply(200, b'{"b64": "', {}, cut=3),
        as_json({"b64": f"not base64 {KEY}"}),
    ]
    seen: list[str] = []
    with caplog.at_level(logging.DEBUG):
        for trouble in troubles:
            breaker.forget()
            service.next.extend([trouble] * 3)
            with pytest.raises(ImagewrightError) as caught:
                made(engine)
            service.next.clear()
            error: BaseException | None = caught.value
            while error is not None:
                seen += [str(error), repr(error), str(vars(error))]
                error = error.__cause__ or error.__context__
        result = Workshop(Only(engine)).make(REQUEST)
    seen += [repr(result), str(result.records), str(result.images[0].info), repr(engine), repr(vars(engine))]
    assert "example" in "".join(seen)
    assert not [text for text in (*seen, caplog.text) if KEY in text]


def test_the_key_goes_to_the_service_only(service: ExampleService, engine: ExampleEngine) -> None:
    call = engine.call(Watch())
    for url in ("https://elsewhere.example/x", "http://127.0.0.1:1/x", f"{service.url}.evil.example/v1/x"):
        with pytest.raises(ProviderError, match="the key is not sent there"):
            call.get(url)
    assert not service.asked
    made(engine, model="later")
    assert [one for one in service.asked if one.path.startswith("/files")]  # which refuses a key


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example/a.png",
        "https://10.0.0.1/a.png",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/a.png",
        "https://127.0.0.1/a.png",
        "file:///etc/passwd",
        "ftp://pictures.example/a",
        "//pictures.example/a",
        "",
        None,
        7,
    ],
)
def test_pictures_are_not_fetched_from_just_anywhere(url: object) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    engine = ExampleEngine(config("example", "https://example.invalid/v1", key=KEY), httpx.MockTransport(answer))
    with pytest.raises(ProviderError, match="is not fetched from"):
        engine.call(Watch()).fetch(url)


def test_pictures_are_fetched_below_the_hosts_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.host, request.headers.get("x-key")))
        return httpx.Response(200, content=b"picture")

    monkeypatch.setattr(ExampleEngine, "result_hosts", ("files.example",))
    monkeypatch.setattr(ExampleEngine, "own_hosts", ("api.example",))
    engine = ExampleEngine(config("example", "https://example.invalid/v1", key=KEY), httpx.MockTransport(answer))
    call = engine.call(Watch())
    assert call.fetch("https://eu.files.example/1") == b"picture"
    call.get("https://eu.api.example/poll")
    assert asked == [("eu.files.example", None), ("eu.api.example", KEY)]
    for url in ("https://evilfiles.example/1", "https://files.example.evil/1"):
        with pytest.raises(ProviderError):
            call.fetch(url)


# Trouble


@pytest.mark.parametrize(
    ("trouble", "kind", "attempts"),
    [
        (as_json({"error": {"message": "busy", "code": "rate_limit_exceeded"}}, 429), QuotaError, 3),
        (as_json({"error": {"message": "no money", "code": "insufficient_quota"}}, 429), QuotaError, 1),
        (as_json({"error": {"message": "pay"}}, 402), QuotaError, 1),
        (TROUBLE, ProviderError, 3),
        (Reply(500, b"<html>oops</html>", {}, "text/html"), ProviderError, 1),  # the picture may have been charged
        (Reply(504, b""), ProviderTimeoutError, 1),
        (Reply(200, b'{"b64": "aaaa', {}, cut=5), ProviderError, 1),
        (Reply(hang_up=True), ProviderError, 1),
        (Reply(301, b"", {"location": "/elsewhere"}), ProviderError, 1),
        (Reply(200, b"<html>hello</html>", {}, "text/html"), ProviderError, 1),
        (as_json([1]), ProviderError, 1),
        (as_json({"error": {"message": "no", "code": "moderation_blocked"}}, 400), ModerationError, 1),
        (as_json({"error": {"message": "no", "code": "moderation_blocked"}}, 503), ModerationError, 1),
        (as_json({"error": "text only"}, 400), ProviderError, 1),
        (as_json({"error": {"message": 3, "code": None}}, 400), ProviderError, 1),
        (as_json({"error": {"message": "stop"}}, 503, x_should_retry="false"), ProviderError, 1),
        (as_json({"error": {"message": "more"}}, 500, x_should_retry="true"), ProviderError, 3),
    ],
)
def test_what_goes_wrong_has_a_name(
    service: ExampleService, engine: ExampleEngine, trouble: Reply, kind: type[ProviderError], attempts: int
) -> None:
    service.next.extend([trouble] * 5)
    with pytest.raises(ProviderError) as caught:
        made(engine)
    assert type(caught.value) is kind
    assert caught.value.provider == "example"
    assert caught.value.fix
    assert len(service.asked) == attempts


def test_what_only_looks_is_asked_again(service: ExampleService, engine: ExampleEngine) -> None:
    made(engine, model="later")
    service.asked.clear()
    half = Reply(200, b'{"percent": 40}', {}, cut=4)
    service.next.extend([as_json({"id": "7"}), Reply(500), half, as_json({"percent": 1}), Reply(hang_up=True), TROUBLE])
    assert made(engine, model="later").images[0].size == SIZE
    assert service.count("/v1/later") == 1
    assert service.count("/v1/later/7") >= 6


def test_a_refusal_for_the_content_names_what_it_found(service: ExampleService, engine: ExampleEngine) -> None:
    details = {"categories": ["violence", "self-harm"], "moderation_stage": "input"}
    body = {"error": {"message": "blocked", "code": "moderation_blocked", "moderation_details": details}}
    service.next.append(as_json(body, 400))
    with pytest.raises(ModerationError, match="violence, self-harm") as caught:
        made(engine)
    assert (caught.value.code, caught.value.retryable, caught.value.status) == ("moderation_blocked", False, 400)
    with pytest.raises(ModerationError):
        made(engine, prompt="forbidden")


@pytest.mark.parametrize("header", ["retry_after", "retry_after_ms"])
def test_retry_after_is_kept(service: ExampleService, engine: ExampleEngine, header: str) -> None:
    wait = {"retry_after": "1", "retry_after_ms": "1000"}[header]
    service.next.append(as_json({"error": {"message": "slowly"}}, 429, **{header: wait}))
    start = time.monotonic()
    made(engine)
    assert 1.0 <= time.monotonic() - start < 3.0
    assert len(service.asked) == 2


def test_a_long_retry_after_is_handed_on(service: ExampleService, engine: ExampleEngine) -> None:
    later = "Wed, 01 Jan 2098 00:00:00 GMT"
    for wait, least in (("90", 90), (later, 1e9)):
        service.next.append(as_json({"error": {"message": "tomorrow"}}, 429, retry_after=wait))
        with pytest.raises(QuotaError) as caught:
            made(engine)
        assert caught.value.retryable
        assert caught.value.retry_after is not None and caught.value.retry_after >= least
    assert len(service.asked) == 2


@pytest.mark.parametrize("nonsense", ["soon", "-5", "1e999", "²"])
def test_a_retry_after_that_says_nothing_is_no_wait(
    service: ExampleService, engine: ExampleEngine, nonsense: str
) -> None:
    if nonsense == "²":
        nonsense = nonsense.encode().decode("latin-1")
    service.next.append(as_json({"error": {"message": "hm"}}, 429, retry_after=nonsense))
    made(engine)
    assert len(service.asked) == 2


def test_nobody_there(engine: ExampleEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    gone = ExampleEngine(config("example", f"http://127.0.0.1:{port}/v1", key=KEY))
    with pytest.raises(ProviderError, match="cannot be reached") as caught:
        made(gone)
    assert caught.value.retryable


def test_too_large_an_answer_is_not_read(
    service: ExampleService, engine: ExampleEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_ANSWER", 10_000)
    service.next.append(Reply(200, b"A" * 20_000))
    with pytest.raises(ProviderError, match="more than"):
        made(engine)


# Pictures


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + b"\0" * 50,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html>no</html>",
        drawn(kind="BMP"),
        drawn(kind="PNG")[:30],
    ],
)
def test_what_is_no_picture_is_said(service: ExampleService, engine: ExampleEngine, data: bytes) -> None:
    service.picture = data
    with pytest.raises(ProviderError, match="no picture"):
        made(engine)


def test_a_picture_too_large_is_not_read(service: ExampleService, engine: ExampleEngine) -> None:
    head = drawn((1, 1))
    service.picture = head[:16] + (30_000).to_bytes(4, "big") * 2 + head[24:]
    with pytest.raises(ProviderError, match="no picture"):
        made(engine)


@pytest.mark.parametrize("edit", [False, True])
def test_a_damaged_picture_is_said(service: ExampleService, engine: ExampleEngine, edit: bool) -> None:
    whole = drawn(SIZE)
    service.picture = whole[: len(whole) - 40]
    fields = {"image": photo(), "mask": hole()} if edit else {}
    with pytest.raises(ProviderError, match="damaged picture"):
        made(engine, **fields)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_file_as_it_came_is_at_hand(service: ExampleService, engine: ExampleEngine, kind: str) -> None:
    service.picture = drawn(SIZE, kind=kind)
    result = engine.generate(REQUEST, decode=False)
    assert result.images[0].info["original"] == (service.picture, f"image/{kind.lower()}")
    assert result.size is None
    finished = Workshop(Only(engine)).make(REQUEST)
    assert finished.images[0].mode == "RGB" and finished.images[0].size == SIZE


def test_a_files_own_words_are_not_believed(service: ExampleService, engine: ExampleEngine) -> None:
    lies = PngInfo()
    for name in ("record", "original", "imagewright", "svg", "provider"):
        lies.add_text(name, "a lie")
    out = BytesIO()
    photo(SIZE).save(out, "PNG", pnginfo=lies)
    service.picture = out.getvalue()
    result = made(engine)
    assert set(result.images[0].info) == {"original"}
    assert result.records[0]["provider"] == "example"
    assert "a lie" not in str(result.records)


def test_another_size_is_said(service: ExampleService, engine: ExampleEngine) -> None:
    service.picture = drawn((80, 40))
    assert made(engine).adjustments == ()  # as none was asked for
    result = made(engine, size=SIZE)
    assert result.images[0].size == (80, 40) and result.size is None
    assert [(one.field, one.requested, one.used) for one in result.adjustments] == [("size", SIZE, (80, 40))]
    assert Workshop(Only(engine)).make(REQUEST).images[0].size == (80, 40)


def test_what_the_mask_keeps_stays(service: ExampleService, engine: ExampleEngine) -> None:
    picture, mask = photo(), hole()
    result = made(engine, image=picture, mask=mask)
    kept = mask.getchannel("A").point(lambda alpha: 255 if alpha else 0)
    black = Image.new("RGB", picture.size)
    ours = Image.composite(result.images[0], black, kept)
    assert ours.tobytes() == Image.composite(picture, black, kept).tobytes()
    assert result.images[0].tobytes() != picture.tobytes()
    assert result.records[0]["changed_outside_mask"] == 0
    assert result.records[0]["provider"] == "example"
    assert result.records[0]["strength"] is None


# Several pictures


def test_several_are_asked_one_by_one_with_their_own_seeds(service: ExampleService, engine: ExampleEngine) -> None:
    result = made(engine, model="each", n=5, seed=2**32 - 2)
    assert [record["seed"] for record in result.records] == [2**32 - 2, 2**32 - 1, 0, 1, 2]
    assert sorted(asked.json()["seed"] for asked in service.asked) == [0, 1, 2, 2**32 - 2, 2**32 - 1]


def test_those_that_came_are_kept(service: ExampleService, engine: ExampleEngine) -> None:
    service.next.append(as_json({"error": {"message": "no", "code": "moderation_blocked"}}, 400))
    result = made(engine, model="each", n=3)
    assert len(result) == len(result.records) == 2
    (said,) = result.adjustments
    assert (said.field, said.requested, said.used) == ("n", 3, 2)
    assert "refused" in said.reason


def test_where_none_came_the_first_reason_is_said(service: ExampleService, engine: ExampleEngine) -> None:
    service.next.extend([as_json({"error": {"message": "no", "code": "moderation_blocked"}}, 400)] * 3)
    with pytest.raises(ModerationError):
        made(engine, model="each", n=3)


def test_a_proxy_of_the_environment_is_used(service: ExampleService, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in os.environ if one.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", service.url)
    engine = ExampleEngine(config("example", "http://far.invalid/v1", key=KEY, insecure=True))
    assert made(engine).images[0].size == SIZE
    assert service.asked[0].headers["host"] == "far.invalid"
    monkeypatch.setenv("no_proxy", "far.invalid")
    direct = ExampleEngine(config("example", "http://far.invalid/v1", key=KEY, insecure=True))
    with pytest.raises(ProviderError, match="cannot be reached"):
        made(direct)
    engine.close()
    direct.close()
