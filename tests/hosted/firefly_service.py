"""A stand-in for Adobe Firefly Services: tokens that end, uploads, jobs, and pictures that are stored elsewhere."""

from __future__ import annotations

import json
import threading
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs

from PIL import Image
from standin import Asked, Refused, Reply, StandIn, as_json, as_picture, drawn, route

SCOPES = {"openid", "AdobeID", "firefly_api", "ff_apis"}
SIZES_3 = {
    (2048, 2048),
    (1024, 1024),
    (2304, 1792),
    (1792, 2304),
    (2688, 1536),
    (2688, 1512),
    (1344, 768),
    (1344, 756),
    (1152, 896),
    (896, 1152),
}
SIZES_4 = {(2048, 2048), (2304, 1792), (1792, 2304), (2688, 1536), (1440, 2560)}
SIZES_FILL = SIZES_3 - {(2688, 1512), (1344, 756)}
VERSIONS = {"image3": SIZES_3, "image4_standard": SIZES_4, "image4_ultra": SIZES_4}
RATIOS = {"1:1", "4:3", "3:4", "16:9", "9:16", "auto"}
_SOME = {"prompt", "numVariations", "seeds"}
FIELDS = {
    "/v3/images/generate-async": _SOME
    | {"size", "contentClass", "negativePrompt", "promptBiasingLocaleCode", "style", "structure", "visualIntensity"},
    "/v4/images/generate-async": _SOME | {"aspectRatio", "resolutionLevel", "referenceBlobs", "modelSpecificPayload"},
    "/v3/images/fill-async": _SOME | {"image", "mask", "negativePrompt", "promptBiasingLocaleCode", "size"},
    "/v3/images/expand-async": _SOME | {"image", "mask", "placement", "size"},
}
NEEDED = {"generate": {"prompt"}, "fill": {"image", "mask"}, "expand": {"image"}}
CODES = {401: "unauthorized", 403: "access_error", 404: "unknown_job_id", 422: "validation_error", 429: "rate_limited"}


class Wrong(Refused):
    """A field that is not as it should be."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(422, message)
        self.field = field


class Firefly(StandIn):
    """`forbidden` in the words is a 451, `withheld` a job that fails, `partly` drops words. A job is done after `looks`
    looks. `statusUrl` and pictures are at `elsewhere` and `stored` where these are given. `spent`: no quota is left."""

    client, secret = "client-7", "p8e-canary-firefly-aa"
    small = 32  # its pictures are so much smaller than the real ones
    looks = 2
    lasts = 86399
    elsewhere = stored = ""
    spent = False

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[str] = []
        self.uploads: dict[str, Image.Image] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def failure(self, status: int, message: str) -> Reply:
        return as_json({"error_code": CODES.get(status, "bad_request"), "message": message}, status)

    @route("POST", "/ims/token/v3")
    def token(self, asked: Asked) -> Reply:
        form = {name: found[0] for name, found in parse_qs(asked.body.decode()).items()}
        given = (form.get("client_id"), form.get("client_secret"), form.get("grant_type"))
        if given != (self.client, self.secret, "client_credentials") or not set(form["scope"].split(",")) >= SCOPES:
            return as_json({"error": "invalid_client", "error_description": "invalid client_secret parameter"}, 400)
        self.tokens.append(f"token-canary-{len(self.tokens)}-" + "x" * 900)
        return as_json({"access_token": self.tokens[-1], "token_type": "bearer", "expires_in": self.lasts})

    def _identify(self, asked: Asked) -> None:
        self.demand(asked.headers.get("x-api-key") == self.client, 403, "Api Key is required")
        good = self.tokens and asked.headers.get("authorization") == f"Bearer {self.tokens[-1]}"
        self.demand(good, 401, "Oauth token is not valid")

    @route("POST", "/v2/storage/image")
    def upload(self, asked: Asked) -> Reply:
        self._identify(asked)
        self.demand(asked.headers.get("content-type") == "image/png", 415, "invalid content type")
        name = f"upload-{len(self.uploads)}"
        self.uploads[name] = Image.open(BytesIO(asked.body), formats=("PNG",))
        return as_json({"images": [{"id": name}]})

    @route("POST", "/v3/images/*")
    def make(self, asked: Asked) -> Reply:
        return self._make(asked)

    @route("POST", "/v4/images/*")
    def make_four(self, asked: Asked) -> Reply:
        return self._make(asked)

    def _make(self, asked: Asked) -> Reply:
        self._identify(asked)
        self.demand(asked.path in FIELDS, 404, "no such operation")
        if self.spent:
            refused = {"error_code": "access_error", "message": "quota"}
            return Reply(403, json.dumps(refused).encode(), {"x-access-error": "quota_exhausted"})
        body = asked.json()
        try:
            size = self._check(asked, body)
        except Wrong as wrong:
            errors = [{"loc": ["body", wrong.field], "msg": wrong.message, "type": "value_error", "ctx": {}}]
            told = {"error_code": "validation_error", "message": "invalid", "validation_errors": errors}
            return as_json(told, 422)
        self.demand("forbidden" not in body.get("prompt", ""), 451, "The prompt is not allowed")
        with self._lock:
            job = f"urn:ff:jobs:{len(self.jobs)}"
            self.jobs[job] = {"body": body, "size": size, "looks": self.looks, "status": "running"}
        at = self.elsewhere or self.url
        told = {"jobId": job, "statusUrl": f"{at}/v3/status/{job}", "cancelUrl": f"{at}/v3/cancel/{job}"}
        return as_json(told, 202, x_request_id="ff-1")

    @route("GET", "/v3/status/*")
    def status(self, asked: Asked) -> Reply:
        self._identify(asked)
        name = asked.path.removeprefix("/v3/status/")
        self.demand(name in self.jobs, 404, "unknown job")
        job = self.jobs[name]
        job["looks"] -= 1
        if job["status"] == "running" and job["looks"] >= 0:
            return as_json({"status": "running", "jobId": name, "progress": 40})
        if "withheld" in job["body"].get("prompt", ""):
            failed = {"status": "failed", "jobId": name, "error_code": "image_unsafe", "message": "withheld"}
            return as_json(failed)
        at = self.stored or self.url
        seeds = job["body"].get("seeds") or [1]
        places = [f"{at}/stored/{name}/{number}.png" for number in range(len(seeds))]
        outputs = [{"seed": seed, "image": {"url": url}} for seed, url in zip(seeds, places, strict=True)]
        width, height = job["size"]
        result = {"size": {"width": width, "height": height}, "outputs": outputs, "contentClass": "art"}
        if "partly" in job["body"].get("prompt", ""):
            result["promptHasDeniedWords"] = True
        return as_json({"status": "succeeded", "jobId": name, "result": result})

    @route("PUT", "/v3/cancel/*")
    def cancel(self, asked: Asked) -> Reply:
        self._identify(asked)
        self.jobs[asked.path.removeprefix("/v3/cancel/")]["status"] = "cancelled"
        return as_json({}, 202)

    @route("GET", "/stored/*")
    def store(self, asked: Asked) -> Reply:
        self.demand("authorization" not in asked.headers and "x-api-key" not in asked.headers, 400, "only one auth")
        width, height = self.jobs[asked.path.split("/")[2]]["size"]
        return as_picture(drawn((width // self.small, height // self.small), "#aa1133"))

    def _check(self, asked: Asked, body: dict[str, Any]) -> tuple[int, int]:
        """The size that will be drawn."""
        for name in set(body) - FIELDS[asked.path]:
            raise Wrong(name, "extra fields not permitted")
        kind = asked.path.rpartition("/")[2].removesuffix("-async")
        for name in NEEDED[kind] - set(body):
            raise Wrong(name, "field required")
        five = asked.path.startswith("/v4")
        _right(1 <= len(body.get("prompt", "x")) <= (1500 if five else 1024), "prompt", "too long")
        _right(len(body.get("negativePrompt", "")) <= 1024, "negativePrompt", "too long")
        count, seeds = body.get("numVariations", 1), body.get("seeds", [])
        _right(1 <= count <= (1 if five else 4), "numVariations", "too many")
        _right(len(seeds) == count == len(set(seeds)), "seeds", "as many as numVariations, and each another")
        for name in {"image", "mask"} & set(body):
            self._source(name, body[name])
        if five:
            _right(asked.headers.get("x-model-version") == "image5", "x-model-version", "must be image5")
            _right(body.get("aspectRatio") in RATIOS, "aspectRatio", "not supported")
            _right(body.get("resolutionLevel") in {"1MP", "2.4MP", "4MP"}, "resolutionLevel", "not supported")
            across, down = (int(part) for part in body["aspectRatio"].split(":"))
            return 2048 * across // max(across, down), 2048 * down // max(across, down)
        size = (body["size"]["width"], body["size"]["height"]) if "size" in body else (2048, 2048)
        if kind == "generate":
            self._style(asked, body, size)
        elif kind == "fill":
            _right(size in SIZES_FILL, "size", "not supported")
            image, mask = (self.uploads[body[name]["source"]["uploadId"]] for name in ("image", "mask"))
            _right(image.size == mask.size and mask.mode == "L", "mask", "must be of the image's size")
        else:
            _right(max(size) <= 3999, "size", "at most 3999")
            inset = body["placement"]["inset"]
            image = self.uploads[body["image"]["source"]["uploadId"]]
            placed = (size[0] - inset["left"] - inset["right"], size[1] - inset["top"] - inset["bottom"])
            _right(placed == image.size, "placement", "the image would be scaled")
        return size

    def _style(self, asked: Asked, body: dict[str, Any], size: tuple[int, int]) -> None:
        version = asked.headers.get("x-model-version", "image3")
        _right(version in VERSIONS and size in VERSIONS.get(version, ()), "size", "not supported")
        _right(body.get("contentClass", "art") in ("photo", "art"), "contentClass", "photo or art")
        style = body.get("style", {})
        _right(set(style) <= {"presets", "strength", "imageReference"}, "style", "extra fields not permitted")
        _right(0 < style.get("strength", 1) <= 100, "style/strength", "1 to 100")
        if "imageReference" in style:
            self._source("style/imageReference", style["imageReference"])

    def _source(self, name: str, value: dict[str, Any]) -> None:
        _right(value.get("source", {}).get("uploadId") in self.uploads, f"{name}/source", "no such upload")


def _right(fulfilled: object, field: str, message: str) -> None:
    if not fulfilled:
        raise Wrong(field, message)
