"""Streams of the Images API: real previews, the order of events, errors, and clients that go away."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from io import BytesIO
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from PIL import Image
from served import drawn, events, failed, hole, png, served

from imagewright.engines.catalog import Catalog, _Source
from imagewright.engines.engine import Engine, ModelInfo
from imagewright.errors import ModerationError, StoppedError
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.server import streaming
from imagewright.server.errors import ApiError
from imagewright.server.streaming import Event, EventStream
from imagewright.watch import Watch
from imagewright.workshop import Workshop

STEPS = 40
FACTS = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format"}


class Slow(Engine):
    """Draws in steps that a test can hold up, and shows what there is; `said` is what it was told by its watch."""

    name = "slow"
    concurrency = 8
    pause: ClassVar[float] = 0.0
    steps: ClassVar[list[int]] = []
    stopped: ClassVar[threading.Event] = threading.Event()

    def models(self) -> list[ModelInfo]:
        can = Capabilities(size=(16, 16), steps=True, default_steps=STEPS, image=True, mask=True)
        return [ModelInfo(name="m", engine="slow", technique="noise", summary="", licence="", capabilities=can)]

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        if request.prompt == "forbidden":
            raise ModerationError("It was refused.", "Ask for something else.", provider="slow")
        try:
            for step in range(STEPS):
                time.sleep(self.pause)
                watch.told(step + 1, STEPS)
                self.steps.append(step)
                if (index := watch.due(step, step + 1, STEPS)) is not None:
                    watch.previewed(index, np.full((4, 16, 16), 2 * (step + 1) / STEPS - 1, np.float32))
        except StoppedError:
            self.stopped.set()
            raise
        return [Image.new("RGBA", (16, 16), "white") for _ in range(request.n)], []


class Shelf(Catalog):
    """A catalog with the slow engine only."""

    def __init__(self) -> None:
        super().__init__()
        self._engines = {"slow": Slow()}
        self.__dict__["_sources"] = {"slow": _Source("")}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server"), Workshop(Shelf()), default_model="slow/m") as client:
        yield client


@pytest.fixture(autouse=True)
def slow() -> Iterator[type[Slow]]:
    Slow.pause, Slow.steps = 0.0, []
    Slow.stopped.clear()
    yield Slow
    Slow.pause = 0.0


def streamed(api: httpx.Client, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    asked = {"prompt": "a fox", "stream": True, **body}
    with api.stream("POST", "/v1/images/generations", json=asked) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(events(answer.iter_lines()))


def picture(data: dict[str, Any]) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data["b64_json"])), formats=["PNG", "WEBP", "JPEG"])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_previews_come_first_and_the_picture_last(api: httpx.Client, count: int) -> None:
    found = streamed(api, partial_images=count, output_format="webp")
    names = [name for name, _ in found]
    assert names == ["image_generation.partial_image"] * count + ["image_generation.completed"]
    for index, (name, data) in enumerate(found):
        assert set(data) >= FACTS and data["type"] == name
        assert picture(data).format == "WEBP" and data["size"] == "16x16" and data["output_format"] == "webp"
        if index < count:
            assert data["partial_image_index"] == index
    shades = [picture(data).convert("RGBA").getpixel((8, 8))[3] for _, data in found]  # type: ignore[index]
    assert shades == sorted(shades) and len(set(shades)) == len(shades)  # they show how it came about
    assert found[-1][1]["usage"]["output_tokens"] == 1 and found[-1][1]["model"] == "slow/m"


def test_several_pictures_end_with_an_event_each(api: httpx.Client) -> None:
    done = [data for name, data in streamed(api, n=3, partial_images=1) if name.endswith("completed")]
    assert [data["image_index"] for data in done] == [0, 1, 2]
    assert [data["usage"]["input_tokens"] for data in done] == [2, 0, 0]


def test_edits_have_events_of_their_own_name(api: httpx.Client) -> None:
    fields = {"prompt": "a hat", "stream": "true", "partial_images": "2"}
    files = {"image": png(drawn()), "mask": png(hole())}
    with api.stream("POST", "/v1/images/edits", data=fields, files=files) as answer:
        found = list(events(answer.iter_lines()))
    assert [name for name, _ in found] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    before, kept = np.asarray(drawn()), np.ones((32, 48), bool)
    kept[8:24, 12:30] = False
    for _, data in found:  # also a preview changes nothing outside the mask
        assert (np.asarray(picture(data).convert("RGB"))[kept] == before[kept]).all()


def test_what_is_wrong_before_the_start_is_an_ordinary_error(api: httpx.Client) -> None:
    wrong = {"prompt": "a", "stream": True, "size": "big"}
    failed(api.post("/v1/images/generations", json=wrong), 400, param="size")
    failed(api.post("/v1/images/generations", json={"prompt": "a", "stream": True, "output_format": "svg"}), 400)
    failed(api.post("/v1/images/generations", json={"prompt": "a", "stream": True, "background": True}), 400)


def test_what_goes_wrong_later_is_an_error_event(api: httpx.Client) -> None:
    [(name, data)] = streamed(api, prompt="forbidden", partial_images=2)
    assert name == "error"
    assert data["error"]["code"] == "moderation_blocked" and set(data["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_the_work(api: httpx.Client, slow: type[Slow], stream: bool) -> None:
    slow.pause = 0.05  # 2 s in all
    body = {"prompt": "a", "stream": stream, **({"partial_images": 3} if stream else {})}
    if stream:
        with api.stream("POST", "/v1/images/generations", json=body) as answer:
            next(events(answer.iter_lines()))
    else:
        with pytest.raises(httpx.ReadTimeout):
            api.post("/v1/images/generations", json=body, timeout=0.3)
    begun = time.monotonic()
    assert slow.stopped.wait(5) and time.monotonic() - begun < 1
    assert len(slow.steps) < STEPS


def test_a_long_silence_is_broken_by_comments(api: httpx.Client, slow: type[Slow], monkeypatch: Any) -> None:
    monkeypatch.setattr(streaming, "SILENCE", 0.1)
    slow.pause = 0.01
    with api.stream("POST", "/v1/images/generations", json={"prompt": "a", "stream": True}) as answer:
        lines = list(answer.iter_lines())
    assert ": still at work" in lines and len(list(events(iter(lines)))) == 1


def test_a_stream_that_breaks_says_so_and_tells_no_inner_detail() -> None:
    async def broken() -> AsyncGenerator[Event]:
        yield "first", {"n": 1}
        raise RuntimeError("a secret of the server")

    async def refused() -> AsyncGenerator[Event]:
        raise ApiError(429, "Too much.", code="rate_limit_exceeded")
        yield "never", {}

    sent = asyncio.run(_sent(broken()))
    assert b"secret" not in sent and sent.count(b"event: ") == 2 and b'"type":"server_error"' in sent
    assert b"rate_limit_exceeded" in asyncio.run(_sent(refused()))


async def _sent(found: AsyncGenerator[Event]) -> bytes:
    """All that a stream sends to a client that stays."""
    parts: list[bytes] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: Any) -> None:
        parts.append(message.get("body", b""))

    await EventStream(found)({"type": "http"}, receive, send)
    return b"".join(parts)
