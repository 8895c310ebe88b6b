"""Words for a picture: the names that fit best, with colour, background and style.

Each of some 1,700 names (assets/names.txt, from emojibase) is a candidate; the judge of words says how well it fits,
and the judge of concepts adds what it knows. The colour is named where most of the thing has it, the background where
the whole border has one colour; both are counted in the pixels. Nothing else is known here: of a picture that shows
something without a name in the list, the captions are guesses at what it looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.data.captions import article, with_article
from imagewright.data.recolour import COLOURS, named_shares
from imagewright.errors import RequestError
from imagewright.refine.judge import Floats, Judges

SIDE = 128  # pixels, at which colours are counted
CONCEPT = 0.5  # weight of the judge of concepts (log probability) beside the logits of the judge of words
COLOURED = 0.6  # share of the visible thing that has a colour which is named
PLAIN = 0.9  # share of the border that has one colour, if the background is named
SURE = 0.5  # probability of the style that is named
OPAQUE = 200  # alpha of a border that is a background
MOST = 100  # captions


@dataclass(frozen=True)
class Caption:
    """Words for a picture, the `name` in them, and the `score`: the judge's probability that they fit it rather than
    another picture. Names that mean nearly the same all score high: the order says more than the number."""

    text: str
    name: str
    score: float


def describe(image: Image.Image, n: int = 4, judges: Judges | None = None) -> list[Caption]:
    """The `n` captions that fit best, the best first. Raises RequestError where nothing can be seen."""
    if not 1 <= n <= MOST:
        raise RequestError(f"{n} captions.", f"Ask for 1 to {MOST}.")
    pixels = reduced(image)
    if not pixels[..., 3].any():
        raise RequestError("Nothing can be seen in this picture: it is transparent everywhere.", "Give another one.")
    judges = judges or shipped()
    known = vocabulary(judges)
    look = judges.look([image])[0]
    seen = judges.identify([image])
    fits = vectors(judges) @ look  # (names,)
    concepts = dict(zip(judges.labels["concepts"], seen["concept"][0], strict=True))
    fits = fits + CONCEPT * np.log([concepts.get(base, 0) + 1e-6 for base in known])
    best = np.argsort(-fits, kind="stable")[:n]
    names = [list(known.values())[i] for i in best]
    style = style_of(judges, seen["style"][0])
    texts = [caption(name, colourable(judges), pixels, style) for name in names]
    scores = judges.probability(judges.read(texts) @ look)
    # to five digits, because those behind them depend on how many texts are read at once
    return [Caption(text, name, round(float(score), 5)) for text, name, score in zip(texts, names, scores, strict=True)]


@cache
def shipped() -> Judges:
    """The judges that come with the package."""
    return Judges()


@cache
def vocabulary(judges: Judges) -> dict[str, str]:
    """The names by base (code points as the judges write them); those that scenes use, where these have one."""
    lines = (files("imagewright") / "assets" / "names.txt").read_text("utf-8").splitlines()
    pairs = (line.split(" ", 1) for line in lines)
    listed = {"-".join(f"{ord(char):04X}" for char in sign): name for sign, name in pairs}
    return {**listed, **{base: name for base, name in judges.labels["things"] if base in listed}}


@cache
def vectors(judges: Judges) -> Floats:
    """The judge's reading (names, D) of the vocabulary: a second or two, once."""
    return judges.read(list(vocabulary(judges).values()))


@cache
def colourable(judges: Judges) -> frozenset[str]:
    """Names of things that may be said to have a colour."""
    return frozenset(name for _, name in judges.labels["things"])


def reduced(image: Image.Image) -> NDArray[np.uint8]:
    """The picture in small (h, w, 4), straight alpha."""
    small = image.convert("RGBA").convert("RGBa")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small.convert("RGBA"))


def style_of(judges: Judges, probabilities: Floats) -> str | None:
    """The style that the picture is drawn in, where the judge is sure enough."""
    best = int(probabilities.argmax())
    name = str(judges.labels["styles"][best])
    return name if probabilities[best] >= SURE and name not in ("any", "") else None


def caption(name: str, coloured: frozenset[str], pixels: NDArray[np.uint8], style: str | None) -> str:
    """ "a red apple on a white background, flat style"."""
    ground = background_of(pixels)
    text = with_article(name)
    if name in coloured:
        colour = colour_of(pixels, ground)
        text = article(f"{colour} {name}" if colour and not set(name.split()) & set(COLOURS) else name)
    text += f" on {article(f'{ground} background')}" if ground else ""
    return f"{text}, {style} style" if style else text


def background_of(pixels: NDArray[np.uint8]) -> str | None:
    """The colour's name of an opaque border that has one."""
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])[None]  # (1, n, 4)
    if (rim[..., 3] < OPAQUE).any():
        return None
    return _most(named_shares(rim), PLAIN)


def colour_of(pixels: NDArray[np.uint8], ground: str | None) -> str | None:
    """The colour's name that most of what is seen has, the background's colour left aside."""
    shares = {name: share for name, share in named_shares(pixels).items() if name != ground}
    whole = sum(shares.values())
    return _most({name: share / whole for name, share in shares.items()}, COLOURED)


def _most(shares: dict[str, float], least: float) -> str | None:
    best = max(shares, key=lambda name: shares[name], default="")
    return best if shares.get(best, 0) >= least else None
