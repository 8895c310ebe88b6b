"""Looking inside trained runs: the way between two pictures, style mixing, what layers do, and projection.

All work on a technique's codes (`code`, `invert`, `mix`, `render`), so that they are the same for every family; style
mixing and layers need a generator with a style a layer (StyleGAN, arXiv:1812.04948 and 1912.04958).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from math import log10
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from imagewright.data.batch import STYLES
from imagewright.data.loader import square
from imagewright.errors import OutputError, RequestError, UnsupportedError
from imagewright.models.technique import Cond, Prompted, Technique, Words
from imagewright.pictures import open_picture, save_atomic
from imagewright.refine.upscale import lay_on, resample
from imagewright.source import to_picture
from imagewright.watch import Progress

FILMS = (".webp", ".gif", ".mp4")
FAITHFUL = {"guidance": 1.0, "truncation": 1.0, "steps": 50, "sampler": "ddim"}  # a code of a picture gives it back


@runtime_checkable
class Layered(Protocol):
    """A generator with a style a layer: `styles` are W+ (B, layers, w)."""

    @property
    def layers(self) -> int:
        """How many layers there are."""

    def styles(self, code: Tensor, words: Words, **options: Any) -> Tensor:
        """W+ of codes."""

    def mix_layers(self, ws_a: Tensor, ws_b: Tensor, layers: range) -> Tensor:
        """`ws_a` with the styles of `layers` from `ws_b`."""

    def synthesise(self, ws: Tensor, words: Words, noise: Tensor | None = None) -> Tensor:
        """x in the encoder's space."""


@dataclass(frozen=True)
class End:
    """Where a film starts or ends: a code (1, ...), the words that it is read with (None: the model reads none), and
    whether it comes from a picture."""

    code: Tensor
    words: Words | None
    picture: bool = False


@dataclass(frozen=True)
class Projection:
    """A picture, what the model makes of its code, how they differ, and how near they are (PSNR in dB)."""

    original: Image.Image
    again: Image.Image
    difference: Image.Image
    psnr: float

    @property
    def pictures(self) -> list[Image.Image]:
        """The three, for a sheet."""
        return [self.original, self.again, self.difference]


def words_for(technique: Technique, prompt: str, style: str | None = None) -> Words | None:
    """One row of encoded words. Raises UnsupportedError for a prompt that the model cannot read."""
    if not isinstance(technique, Prompted):
        if prompt:
            raise UnsupportedError("This model reads no words.", 'Give "" as the prompt, and other seeds.')
        return None
    if style is not None and style not in STYLES:
        raise UnsupportedError(f"There is no style {style!r}.", f"There are: {', '.join(STYLES[1:])}.")
    with torch.no_grad():
        return technique.prompted([prompt], [STYLES.index(style) if style else 0])


def pixels_of(path: Path, side: int) -> Tensor:
    """A picture file as pixels (1, 4, side, side). Raises PictureError."""
    open_picture(path)  # says what is wrong with it
    return torch.from_numpy(square(path, side)).permute(2, 0, 1)[None].float() / 127.5 - 1


def end(technique: Technique, what: str, seed: int, style: str | None = None) -> End:
    """An end of a film: the picture file `what`, inverted and read without words, or the prompt `what` with `seed`
    (where the technique draws without a code, the code of the picture that it draws)."""
    if what and Path(what).is_file():
        words = words_for(technique, "")
        return End(_inverted(technique, pixels_of(Path(what), technique.pixels), words), words, picture=True)
    words = words_for(technique, what, style)
    try:
        return End(technique.code(seed), words)
    except NotImplementedError:
        drawn = technique.sample(Cond([what], [STYLES.index(style) if style else 0]), [seed])
        return End(_inverted(technique, drawn, words), words, picture=True)


def film(
    technique: Technique,
    start: End,
    stop: End,
    frames: int,
    *,
    options: dict[str, Any] | None = None,
    there_and_back: bool = False,
    progress: Progress | None = None,
) -> list[Image.Image]:
    """`frames` pictures on the way from `start` to `stop`, evenly spaced; then back, without the ends twice."""
    faithful = _faithful(technique) if start.picture or stop.picture else {}
    faithful.pop("guidance", None)  # without words there is nothing to be guided by
    given = {**faithful, **(options or {})}
    pictures = []
    for index in range(frames):
        share = index / max(1, frames - 1)
        code = technique.mix(start.code, stop.code, share)
        words = start.words.mix(stop.words, share) if start.words and stop.words else None
        pictures.append(_picture(_rendered(technique, code, words, given)))
        if progress is not None:
            progress(index + 1, frames)
    return pictures + pictures[-2:0:-1] if there_and_back else pictures


def save_film(pictures: Sequence[Image.Image], path: Path, *, side: int = 256, fps: int = 12) -> None:
    """Write a .webp, .gif or .mp4 that runs for ever (mp4: once), on white, `side` pixels wide (rounded to even).

    Raises RequestError for another ending, OutputError where an mp4 is asked for and there is no ffmpeg.
    """
    check_film(path)
    size = (side // 2 * 2, side // 2 * 2)
    frames = [lay_on(resample(picture, size)[0], "white", "png")[0] for picture in pictures]
    if path.suffix.lower() == ".mp4":
        save_atomic(_mp4(frames, fps), path)
        return
    out = BytesIO()
    first, *rest = frames
    quality = {"quality": 90, "method": 4} if path.suffix.lower() == ".webp" else {}
    first.save(out, path.suffix[1:].upper(), save_all=True, append_images=rest, duration=1000 // fps, loop=0, **quality)
    save_atomic(out.getvalue(), path)


def check_film(path: Path) -> None:
    """Whether a film can be written to `path`: before it is drawn."""
    if path.suffix.lower() not in FILMS:
        raise RequestError(f"A film cannot end in {path.suffix!r}.", f"Name it {' or '.join(FILMS)}.")
    if path.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise OutputError("An MP4 needs the program ffmpeg.", "Install it, or name a .webp or .gif file.")


def _mp4(frames: Sequence[Image.Image], fps: int) -> bytes:
    width, height = frames[0].size
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "film.mp4"
        data = b"".join(frame.convert("RGB").tobytes() for frame in frames)
        done = subprocess.run(["ffmpeg", "-v", "error", *source, *target, str(file)], input=data, capture_output=True)
        if done.returncode:
            raise OutputError(
                f"ffmpeg failed: {done.stderr.decode(errors='replace').strip()[-200:]}", "Use .webp or .gif."
            )
        return file.read_bytes()


def project(technique: Technique, pixels: Tensor, prompt: str = "") -> Projection:
    """`pixels` (1, 4, H, W), inverted and made again. Raises UnsupportedError where the technique cannot."""
    words = words_for(technique, prompt)
    code = _inverted(technique, pixels, words)
    again = _rendered(technique, code, words, _faithful(technique))
    error = (again - pixels) / 2  # (1, 4, H, W) in [-1, 1]
    mse = float(error.square().mean())
    difference = error.abs().amax(1)[0].mul(255).clamp(0, 255).byte().numpy()
    psnr = float("inf") if mse == 0 else -10 * log10(mse)
    return Projection(_picture(pixels), _picture(again), Image.fromarray(255 - difference), psnr)


def mixed(
    technique: Technique, rows: Sequence[int], columns: Sequence[int], layers: range, words: Words | None
) -> list[list[Image.Image]]:
    """A table of pictures: the first row and column are the seeds' own, and cell (r, c) is row seed r with the styles
    of `layers` from column seed c. The corner is the mean of all. Raises UnsupportedError, RequestError."""
    generator, words = _layered(technique), cast(Words, words)
    _check_layers(layers, generator.layers)
    of_rows = [_styles(generator, technique.code(seed), words) for seed in rows]
    of_columns = [_styles(generator, technique.code(seed), words) for seed in columns]
    corner = torch.cat([*of_rows, *of_columns]).mean(0, keepdim=True)
    table = [[corner, *of_columns]]
    table += [[ws, *(generator.mix_layers(ws, other, layers) for other in of_columns)] for ws in of_rows]
    return [[_picture(_synthesised(generator, ws, words)) for ws in row] for row in table]


def layer_rows(
    technique: Technique, seed: int, others: Sequence[int], words: Words | None, parts: int = 4
) -> list[tuple[range, list[Image.Image], float]]:
    """What each range of layers controls: the picture of `seed` with the styles of that range from each of `others`,
    and the mean change of its pixels (0 to 1). The layers are cut into `parts`. Raises UnsupportedError."""
    generator, words = _layered(technique), cast(Words, words)
    ws = _styles(generator, technique.code(seed), words)
    base = _synthesised(generator, ws, words)
    donors = [_styles(generator, technique.code(other), words) for other in others]
    rows = []
    for layers in cut(generator.layers, parts):
        changed = [_synthesised(generator, generator.mix_layers(ws, donor, layers), words) for donor in donors]
        change = float(torch.cat([(pixels - base).abs() / 2 for pixels in changed]).mean())
        rows.append((layers, [_picture(base), *(_picture(pixels) for pixels in changed)], change))
    return rows


def cut(layers: int, parts: int) -> list[range]:
    """`layers` cut into at most `parts` ranges of nearly the same length."""
    parts = min(parts, layers)
    edges = [round(layers * part / parts) for part in range(parts + 1)]
    return [range(low, high) for low, high in pairwise(edges)]


def parse_layers(text: str) -> range:
    """'0-3' or '2' as a range with its end. Raises RequestError."""
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text.strip(), re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
    if last < first:
        raise RequestError(f"Cannot read the layers {text!r}.", "Write them as FIRST-LAST, for example 0-3.")
    return range(first, last + 1)


def _check_layers(layers: range, there_are: int) -> None:
    if layers.stop > there_are:
        raise RequestError(f"This model has no layer {layers.stop - 1}.", f"It has 0 to {there_are - 1}.")


def _layered(technique: Technique) -> Layered:
    if not isinstance(technique, Layered):
        raise UnsupportedError(
            f"A {type(technique).__name__} has no style a layer.", "Give the run of a style-based GAN."
        )
    return technique


@torch.no_grad()
def _styles(generator: Layered, code: Tensor, words: Words) -> Tensor:
    return generator.styles(code, words)


@torch.no_grad()
def _synthesised(generator: Layered, ws: Tensor, words: Words) -> Tensor:
    encoder: Any = cast(Any, generator).encoder
    pixels: Tensor = encoder.decode(generator.synthesise(ws, words)).float().clamp(-1, 1)
    return pixels


def _inverted(technique: Technique, pixels: Tensor, words: Words | None) -> Tensor:
    try:
        return technique.invert(pixels, cast(Words, words), **_faithful(technique))
    except NotImplementedError as error:
        raise UnsupportedError(str(error), "Give the run of another technique.") from error


def _rendered(technique: Technique, code: Tensor, words: Words | None, options: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return technique.render(code, cast(Words, words), **options).float().clamp(-1, 1)


def _faithful(technique: Technique) -> dict[str, Any]:
    return {name: value for name, value in FAITHFUL.items() if name in technique.sampling}


def _picture(pixels: Tensor) -> Image.Image:
    return to_picture(pixels.detach().cpu().numpy())
