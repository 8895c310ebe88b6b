"""What pictures cost: an upper bound before the call, the true cost after it. Money is a whole number of µ$.

The operator's prices, in dollars, win over those below; a name may end in `*`:

    [prices."openai/gpt-image-2"]
    tokens = { text = 5, image = 8, output = 30 }                 # for a million tokens
    image = 0.04                                                  # or: for a picture
    image = { low = 0.01, high = 0.17, "high 1536x1024" = 0.25 }  # or: by quality, size or both; else the dearest
    second = 0.002                                                # or: for a second of this machine's work,
    most = 0.05                                                   #     and what a picture may cost at most

What a model of this machine costs nobody says, so it costs nothing; a hosted model without a price has none (None),
which is not nothing. Source of the built-in prices: third parties' notes of OpenAI's list, 2026-11; token counts of
square pictures as seen in answers, which grow with the pixels.

The estimate is a bound: every byte of the words counts as a token, `auto` as high quality and as the largest of the
usual sizes, each picture that is brought along as INPUT tokens, each try of `best_of` and the like as a picture. A
service that tells its cost is believed; tries that were rejected count like the one that was kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from imagewright.errors import ConfigError
from imagewright.refine.choose import most_tries, tries
from imagewright.request import ImageRequest, ImageResult

INPUT = 8_000  # tokens that a picture brought along counts as, at most
SQUARE = 1024 * 1024  # pixels
USUAL = 1536 * 1024  # pixels of the largest size that `auto` may become
_DOLLAR = 1_000_000  # µ$
_SIZE = re.compile(r"\d+x\d+")
_FIELDS = ("tokens", "image", "second", "most")


@dataclass(frozen=True)
class Price:
    """What a model charges: for tokens (text, image, output: µ$ for a million), for a picture (µ$ by "quality WxH",
    "quality" or "WxH"; "" is the price of any), or for a second (µ$); `most` bounds a picture whatever it takes.

    `square`: output tokens of a picture of 1024x1024 by quality.
    """

    tokens: Mapping[str, int] = field(default_factory=dict)
    image: Mapping[str, int] = field(default_factory=dict)
    second: float = 0.0
    most: int = 0
    square: Mapping[str, int] = field(default_factory=dict)

    def bound(self, request: ImageRequest) -> int:
        """What `request` may cost at most, in µ$."""
        drawn = request.n * most_tries(request)
        if self.tokens:
            pixels = request.size[0] * request.size[1] if request.size else USUAL
            square = self.square.get(request.quality, max(self.square.values()))
            output = math.ceil(square * max(pixels, SQUARE) / SQUARE)
            text = len(request.prompt.encode()) + len(request.negative_prompt.encode())
            return drawn * self._of_tokens(text, INPUT * _brought(request), output)
        if self.image:
            return drawn * self._dearest(request.quality, request.size)
        return drawn * self.most

    def cost(self, request: ImageRequest, result: ImageResult) -> int:
        """What a result did cost by its usage, its pictures or its seconds, in µ$."""
        if self.tokens:
            used = _usages(result)
            return sum(self._of_tokens(*tokens) for tokens in used) if used else self.bound(request)
        drawn = [tries(made) for made in result.records]
        if self.image:
            sizes = [image.size for image in result.images]
            return sum(
                count * self._of_picture(request.quality, size) for count, size in zip(drawn, sizes, strict=True)
            )
        return min(sum(drawn) * self.most, math.ceil(self.second * result.seconds))

    def _of_tokens(self, text: int, image: int, output: int) -> int:
        of = self.tokens
        return math.ceil((text * of["text"] + image * of["image"] + output * of["output"]) / 1_000_000)

    def _dearest(self, quality: str, size: tuple[int, int] | None) -> int:
        """The most that a picture may turn out to cost: the service may choose what was left open, or another size."""
        sized = "" if size is None else f"{size[0]}x{size[1]}"
        exact = [price for name, price in self.image.items() if sized in name.split() and quality in name.split()]
        fitting = [
            price
            for name, price in self.image.items()
            if quality == "auto" or quality in name.split() or not set(name.split()) & set(_QUALITIES)
        ]
        return max(exact or fitting or self.image.values())

    def _of_picture(self, quality: str, size: tuple[int, int] | None) -> int:
        sized = "" if size is None else f"{size[0]}x{size[1]}"
        for name in (f"{quality} {sized}", quality, sized, ""):
            if name in self.image:
                return self.image[name]
        return max(self.image.values())


class Prices:
    """The prices of all models, by their full names (ENGINE/MODEL)."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self._given = {name: _read(name, table) for name, table in tables.items()}

    def of(self, model: str, is_hosted: bool) -> Price | None:
        """The price of a model; None where it is not known."""
        for prices in (self._given, _BUILT_IN):
            if model in prices:
                return prices[model]
            for pattern, price in prices.items():
                if fnmatchcase(model, pattern):
                    return price
        return None if is_hosted else _FREE

    def estimate(self, model: str, is_hosted: bool, request: ImageRequest) -> int | None:
        """What `request` may cost at most; None where nobody knows."""
        price = self.of(model, is_hosted)
        return None if price is None else price.bound(request)

    def cost(self, model: str, is_hosted: bool, request: ImageRequest, result: ImageResult) -> int | None:
        """What `result` did cost; None where nobody knows. What the service says comes first."""
        told = _told(result)
        if told is not None:
            return told
        price = self.of(model, is_hosted)
        return None if price is None else price.cost(request, result)


def _brought(request: ImageRequest) -> int:
    single = sum(one is not None for one in (request.image, request.mask))
    return single + len(request.images) + len(request.style_images) + len(request.subject_images)


def _told(result: ImageResult) -> int | None:
    """The dollars that the service named; what a call for several pictures did cost stands with the first of them."""
    told = [
        tries(made) * Decimal(str(made["cost"])) for made in result.records if isinstance(made.get("cost"), int | float)
    ]
    return math.ceil(sum(told) * _DOLLAR) if told else None


def _usages(result: ImageResult) -> list[tuple[int, int, int]]:
    """Tokens of text, of pictures, and out, as often as each picture was drawn."""
    told = [(made["usage"], tries(made)) for made in result.records if isinstance(made.get("usage"), Mapping)]
    return [tokens for usage, count in told for tokens in [_tokens(usage)] * count]


def usage_of(result: ImageResult) -> tuple[int, int]:
    """The tokens that went into a result and that came out of it, as the service counted them."""
    counted = _usages(result)
    return sum(text + image for text, image, _ in counted), sum(output for *_, output in counted)


def _tokens(usage: Mapping[str, Any]) -> tuple[int, int, int]:
    """Text in, pictures in, out."""
    details = usage.get("input_tokens_details")
    parts = details if isinstance(details, Mapping) else {}
    total, image = _count(usage.get("input_tokens")), _count(parts.get("image_tokens"))
    return max(total - image, _count(parts.get("text_tokens"))), image, _count(usage.get("output_tokens"))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _read(model: str, table: Any) -> Price:
    """One table of the configuration. Raises ConfigError."""

    def wrong(fix: str) -> ConfigError:
        return ConfigError(f'[prices."{model}"] cannot be read.', fix)

    def money(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1_000_000:
            raise wrong("Write prices in dollars, as 0.04.")
        return math.ceil(Decimal(str(value)) * _DOLLAR)

    if not isinstance(table, Mapping) or not table or set(table) - set(_FIELDS):
        raise wrong(f"It may have {', '.join(_FIELDS)}.")
    if sum(name in table for name in ("tokens", "image", "second")) != 1:
        raise wrong("Give one of tokens, image and second.")
    if "tokens" in table:
        if not isinstance(table["tokens"], Mapping) or set(table["tokens"]) != {"text", "image", "output"}:
            raise wrong("tokens needs text, image and output.")
        return Price(tokens={name: money(value) for name, value in table["tokens"].items()}, square=_LARGEST)
    if "image" in table:
        image = table["image"] if isinstance(table["image"], Mapping) else {"": table["image"]}
        for name in image:
            if any(part not in _QUALITIES and not _SIZE.fullmatch(part) for part in name.split()):
                raise wrong(f"{name!r} is neither a quality, a size, nor both as in 'high 1024x1024'.")
        return Price(image={name: money(value) for name, value in image.items()})
    if "most" not in table:
        raise wrong("A price for seconds needs most, the price of a picture at most.")
    return Price(second=float(money(table["second"])), most=money(table["most"]))


_QUALITIES = ("low", "medium", "high", "auto")
_FREE = Price()
_LARGEST = {"low": 272, "medium": 1056, "high": 4160}  # the most seen of any of these models
_LISTED = {"text": 5_000_000, "image": 8_000_000, "output": 30_000_000}
_BUILT_IN = {
    "openai/gpt-image-2.5-*": Price(tokens=_LISTED, square={"low": 208, "medium": 439, "high": 1756}),
    "openai/gpt-image-2*": Price(tokens=_LISTED, square=_LARGEST),
}
