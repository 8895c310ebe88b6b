"""The chain from a request to finished pictures: engine, refine, record. The one place that knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from imagewright import prompt as language
from imagewright import vector
from imagewright.editing import cutout
from imagewright.engines.catalog import Catalog
from imagewright.engines.engine import Engine, adapt
from imagewright.engines.lanes import Seats, at_once
from imagewright.pictures import open_picture
from imagewright.provenance import record
from imagewright.refine import choose, upscale
from imagewright.request import Adjustment, ImageRequest, ImageResult, joined
from imagewright.watch import Preview, Progress, Say, Stop, Tracer, Watch


class Workshop:
    """Makes pictures and keeps engines warm between requests. `say` gets what a user should know on the way."""

    def __init__(
        self, catalog: Catalog | None = None, judges: choose.Judges = choose.shipped_judges, say: Say | None = None
    ) -> None:
        self.catalog, self.judges, self.say = catalog or Catalog(), judges, say
        self._lock, self._seats = Lock(), dict[str, Seats]()

    def make(
        self,
        request: ImageRequest,
        progress: Progress | None = None,
        trace: Tracer | None = None,
        stop: Stop | None = None,
    ) -> ImageResult:
        """Pictures of the asked size and background; their records are also in `info["imagewright"]`. `trace` is
        called with what happens on the way, `stop` ends it (see watch.Watch). From any thread.

        Raises RequestError, ModelError, MissingExtraError, ProviderError and StoppedError.
        """
        return self._make(request, Watch(progress, trace, stop=stop))

    def make_many(self, requests: Sequence[ImageRequest], watches: Sequence[Watch]) -> list[ImageResult | Exception]:
        """`make` for each request with its watch, or the error that it ended with, as many at once as their engines
        take. The pictures are those that each request gets alone. Previews come finished as the pictures do."""
        pairs = zip(requests, watches, strict=True)
        return at_once([partial(self._make, request, watch) for request, watch in pairs], len(requests))

    def _make(self, request: ImageRequest, watch: Watch) -> ImageResult:
        if request.output_format == "svg":
            vector.check()
        engine, model = self.catalog.find(request.model, request.technique)
        request = replace(request, model=model)
        watch = replace(watch, say=watch.say or self.say, preview=_finished(watch.preview, engine, request))
        result = choose.choose(partial(self._draw, engine), request, self.judges, watch)
        request = replace(request, size=result.size, background=result.records[0]["background"])
        if request.background == "transparent":
            result = _cut_out(result)
        adjustments = (*result.adjustments, *upscale.unmet(result.images, request))
        told = {"adjustments": record.plain(adjustments)}
        pairs = zip(result.images, result.records, strict=True)
        finished = [_finish(image, {**made, **told}, request) for image, made in pairs]
        images, records = zip(*finished, strict=True)
        return replace(result, images=images, records=records, adjustments=adjustments)

    def _draw(self, engine: Engine, request: ImageRequest, watch: Watch) -> ImageResult:
        """`engine.generate`, as soon as the engine takes one more."""
        with self._lock:
            seats = self._seats.setdefault(engine.name, Seats(engine.concurrency))
        with seats.one(watch):
            return engine.generate(request, watch)


def _finished(preview: Preview | None, engine: Engine, request: ImageRequest) -> Preview | None:
    """`preview` of pictures of the size and on the background that `request` asks for."""
    if preview is None:
        return None
    adapted, _ = adapt(request, engine.find(request.model).capabilities)

    def show(index: int, image: Image.Image) -> None:
        if adapted.background == "transparent":
            image, _ = cutout.cut_out(image)
        preview(index, _shaped(image, adapted)[0])

    return show


def _cut_out(result: ImageResult) -> ImageResult:
    """The result without the backgrounds of those pictures that came with one and show where it ends."""
    pairs = [cutout.cut_out(image) for image in result.images]
    records = tuple(
        {**made, "refine": [*made.get("refine", ()), *([step] if step else [])]}
        for made, (_, step) in zip(result.records, pairs, strict=True)
    )
    reason = "this model paints a background; it was taken away"
    said = [Adjustment("background", "transparent", "cut out", reason)] if any(step for _, step in pairs) else []
    images = tuple(image for image, _ in pairs)
    return replace(result, images=images, records=records, adjustments=(*result.adjustments, *said))


def _finish(image: Image.Image, made: Mapping[str, Any], request: ImageRequest) -> tuple[Image.Image, dict[str, Any]]:
    image, shaped = _shaped(image, request)
    image, traced = _traced(image, request.output_format)
    steps = [*made.get("refine", ()), *shaped, *([traced] if traced else [])]
    finished = record.finish(made, request, image, steps)
    image.info["imagewright"] = finished
    return image, finished


def _shaped(image: Image.Image, request: ImageRequest) -> tuple[Image.Image, list[upscale.Step]]:
    """The picture at the asked size, on the asked background, and what was done."""
    size = request.size or image.size
    image, resampled = upscale.resample(upscale.as_rgb(image), size)
    image, padded = upscale.pad(image, size, request.background)
    image, laid = upscale.lay_on(image, request.background, request.output_format)
    return image, [step for step in (resampled, padded, laid) if step]


def _traced(image: Image.Image, output_format: str) -> tuple[Image.Image, dict[str, Any] | None]:
    """The picture, with the drawing that an SVG file will hold in `info["svg"]`."""
    if output_format != "svg":
        return image, None
    drawing = vector.trace(image)
    image.info["svg"] = drawing.svg
    return image, drawing.step


def generate(prompt: str, *, plain: bool = False, wildcards: Path | None = None, **fields: Any) -> ImageResult:
    """Pictures for `prompt`, read as the prompt language unless `plain`: "a {red,blue} fox --ar 3:2" gives two.

    `fields` are ImageRequest's (n, size, seed, style, model) and win over the prompt's parameters, which is said.
    `wildcards` is the folder of `__name__` files. Writes no file. Raises RequestError, PictureError, ModelError.
    """
    read = language.plain if plain else partial(language.parse, wildcards=wildcards)
    jobs = read(prompt, seed=fields.get("seed"), n=fields.get("n", 1))
    requests = [job.request(open_picture, **fields) for job in jobs]
    return joined([_shared().make(request) for request in requests])


_shared = cache(Workshop)  # so that the second call finds the model loaded
