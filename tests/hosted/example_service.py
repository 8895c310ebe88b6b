"""The smallest hosted service there is, and its engine: what the tests of the common base use."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence

from hosting import config
from PIL import Image
from standin import Asked, Reply, StandIn, as_json, as_picture, drawn, route

from imagewright.config import Provider
from imagewright.engines.engine import ModelInfo
from imagewright.engines.hosted.answers import from_base64
from imagewright.engines.hosted.base import HostedEngine, hosted_model
from imagewright.engines.hosted.call import Call
from imagewright.request import Adjustment, Capabilities, ImageRequest, ImageResult

KEY = "sk-canary-77aa01"
SIZE = (64, 64)


class ExampleService(StandIn):
    """One picture a call: at once, by looking (`later`) or by its address (`link`)."""

    def __init__(self, picture: bytes = drawn(SIZE)) -> None:
        super().__init__()
        self.picture, self.looks = picture, 2

    def _known(self, asked: Asked) -> None:
        self.demand(asked.headers.get("x-key") == KEY, 401, f"wrong key {asked.headers.get('x-key')}")

    @route("POST", "/v1/pictures")
    def pictures(self, asked: Asked) -> Reply:
        self._known(asked)
        body = asked.json()
        self.demand("forbidden" not in body["prompt"], 400, "safety_violations=[violence]")
        return as_json({"b64": b64encode(self.picture).decode()}, x_request_id="req-1")

    @route("POST", "/v1/later")
    def later(self, asked: Asked) -> Reply:
        self._known(asked)
        return as_json({"id": "7"})

    @route("GET", "/v1/later/7")
    def look(self, asked: Asked) -> Reply:
        self._known(asked)
        self.looks -= 1
        return as_json({"link": f"{self.url}/files/7.png"} if self.looks < 0 else {"percent": 40})

    @route("GET", "/files/7.png")
    def file(self, asked: Asked) -> Reply:
        self.demand("x-key" not in asked.headers, 500, "the key was sent to where the files are")
        return as_picture(self.picture)


class ExampleEngine(HostedEngine):
    """`one` comes at once, `later` after some looks."""

    name, base_url = "example", "https://example.invalid/v1"

    def headers(self, provider: Provider) -> Mapping[str, str]:
        assert provider.key is not None
        return {"x-key": provider.key.reveal()}

    def listed(self) -> Sequence[ModelInfo]:
        can = Capabilities(size=SIZE, image=True, mask=True, strength=False, max_n=8)
        return [hosted_model(self.name, name, "an example", can) for name in ("one", "later", "each")]

    def draw(self, request: ImageRequest, model: ModelInfo, call: Call) -> tuple[list[Image.Image], list[Adjustment]]:
        if model.name == "each":
            return self.each(request, lambda one: self._one(one, call))
        if model.name == "one":
            return [self._one(request, call) for _ in range(request.n)], []
        task = call.post("later", json={}).json()["id"]

        def look() -> str | None:
            found = call.get(f"later/{task}").json()
            if "percent" in found:
                call.told(found["percent"])
            link: str | None = found.get("link")
            return link

        answer = call.get(f"later/{task}")
        return [answer.picture(call.fetch(call.poll(look, every=0.01)))], []

    def _one(self, request: ImageRequest, call: Call) -> Image.Image:
        answer = call.post("pictures", json={"prompt": request.prompt, "seed": request.seed})
        return answer.picture(from_base64(answer.json()["b64"], call.service), seed=request.seed)


def engine_of(service: StandIn, timeout: float = 20.0) -> ExampleEngine:
    """An engine whose service is the stand-in."""
    return ExampleEngine(config("example", f"{service.url}/v1", timeout, key=KEY))


def made(engine: ExampleEngine, **fields: object) -> ImageResult:
    """What the engine makes of a request with these fields."""
    return engine.generate(ImageRequest(**{"prompt": "a red cube", "model": "one", "seed": 5, **fields}))  # type: ignore[arg-type]
