"""Midjourney's parameters, as in `--ar 3:2 --no cars`: fields of ImageRequest, or an Adjustment that says why not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import gcd
from pathlib import Path
from typing import Any

from imagewright.errors import PromptError
from imagewright.prompt.weights import weighted
from imagewright.request import MAX_SEED, MAX_SIDE, Adjustment

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_START = re.compile(r"(?:(?<=\s)|^)(--|[\u2012-\u2015]{1,2})([A-Za-z][^\s=]*)(?=[\s=]|$)=?")
_RATIO = re.compile(r"(\d{1,9})\s*[:x/]\s*(\d{1,9})")
_WEIGHT = re.compile(r"::[\d.]*$")


@dataclass
class Found:
    """What the parameters of one prompt say. `fields`: of ImageRequest; `pictures`: paths by the field they fill."""

    fields: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    adjustments: list[Adjustment] = field(default_factory=list)
    repeat: int = 1

    def set(self, name: str, value: Any, by: str) -> None:
        """`value` for a field; a parameter that was there before gives way, and that is said."""
        if name in self.fields and self.fields[name] != value:
            self.adjustments.append(Adjustment(name, self.fields[name], value, f"{by} comes later in the prompt"))
        self.fields[name] = value


@dataclass(frozen=True)
class Parameter:
    """A parameter: its names, what its value looks like (`reader`), and what becomes of it (`meaning`: the field that
    it fills, or the reason why nothing does)."""

    names: tuple[str, ...]
    read: Callable[[Parameter, str, Found], None]
    meaning: str = ""
    low: float = 0
    high: float = 0
    unit: float = 1

    @property
    def said(self) -> str:
        """As it is written."""
        return f"--{self.names[0]}"


def split(text: str) -> tuple[str, list[tuple[Parameter, str]]]:
    """The words of a prompt, and its parameters with their values. Raises PromptError on a parameter not known.

    A parameter begins with two hyphens, or a typographic dash and a known name, after white space; its value reaches
    to the next one. `\\--` is no parameter.
    """
    starts = [match for match in _START.finditer(text) if match[1] == "--" or match[2].lower() in KNOWN]
    if not starts:
        return text, []
    ends = [*(match.start() for match in starts[1:]), len(text)]
    return text[: starts[0].start()], [
        (_known(match[2]), text[match.end() : end].strip()) for match, end in zip(starts, ends, strict=True)
    ]


def _known(name: str) -> Parameter:
    if (found := KNOWN.get(name.lower())) is not None:
        return found
    near = get_close_matches(name.lower()[:40], KNOWN, n=1, cutoff=0.5) or [
        known for known in sorted(KNOWN, key=len, reverse=True) if name.lower().startswith(known)
    ]
    hint = f"Did you mean --{near[0]}?" if near else f"There are: {', '.join(f'--{p.names[0]}' for p in PARAMETERS)}."
    raise PromptError(
        f"Unknown parameter --{name[:40]} in the prompt.",
        rf"{hint} Write \-- for the words themselves, or use --plain.",
    )


def read(parameters: Sequence[tuple[Parameter, str]]) -> Found:
    """The meaning of all parameters of a prompt. Raises PromptError on values that they cannot have."""
    found = Found()
    for parameter, value in parameters:
        parameter.read(parameter, value, found)
    for name, needed in _WEIGHED.items():
        if name in found.fields and needed not in found.pictures:
            lacking = "the prompt brings no such picture"
            found.adjustments.append(Adjustment(name, found.fields.pop(name), None, lacking))
    return found


_WEIGHED = {"style_weight": "style_images", "subject_weight": "subject_images"}


def _value(parameter: Parameter, text: str, what: str) -> PromptError:
    has = f"has {text[:60]!r}" if text else "has nothing"
    return PromptError(f"{parameter.said} needs {what}; it {has}.", "Put the picture's words before all parameters.")


def _number(parameter: Parameter, text: str, whole: bool = False) -> float:
    """The value as a number in the parameter's range."""
    if not re.fullmatch(r"\d{1,12}" if whole else r"\d{1,12}(?:\.\d{0,12})?|\.\d{1,12}", text, re.ASCII):
        raise _value(parameter, text, "a whole number" if whole else "a number")
    if not parameter.low <= float(text) <= parameter.high:
        raise PromptError(f"{parameter.said} is {text}.", f"Use {parameter.low:g} to {parameter.high:g}.")
    return float(text)


def scaled(parameter: Parameter, text: str, found: Found) -> None:
    """A number, divided by the parameter's unit."""
    found.set(parameter.meaning, _number(parameter, text) / parameter.unit, parameter.said)


def whole(parameter: Parameter, text: str, found: Found) -> None:
    """A whole number."""
    found.set(parameter.meaning, int(_number(parameter, text, whole=True)), parameter.said)


def flag(parameter: Parameter, text: str, found: Found) -> None:
    """Nothing: the parameter alone says it."""
    if text:
        raise _value(parameter, text, "no value")
    field_, _, value = parameter.meaning.partition("=")
    found.set(field_, _FLAGS.get(value, value), parameter.said)


_FLAGS: dict[str, Any] = {"": True, "0": 0.0}


def reported(parameter: Parameter, text: str, found: Found) -> None:
    """Any one word or none: nothing here does it, and the reason is said."""
    if len(text.split()) > 1:
        raise _value(parameter, text, "at most one word")
    if parameter.high and text:
        _number(parameter, text)
    found.adjustments.append(Adjustment(parameter.said, text or "on", None, parameter.meaning))


def aspect(parameter: Parameter, text: str, found: Found) -> None:
    """Width by height, as 3:2."""
    match = _RATIO.fullmatch(text)
    if not match:
        raise _value(parameter, text, "a ratio such as 3:2")
    width, height = int(match[1]), int(match[2])
    common = max(1, gcd(width, height))
    width, height = width // common, height // common
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE:
        raise PromptError(f"{parameter.said} is {text}.", f"Use sides of 1 to {MAX_SIDE}, such as 3:2.")
    found.set("aspect", (width, height), parameter.said)


def unwanted(parameter: Parameter, text: str, found: Found) -> None:
    """Words that the picture should not show; several parameters add up."""
    clean = weighted(text)
    if not clean.text:
        raise _value(parameter, text, "words")
    if clean.emphasis or clean.negative:
        said = "weights do not count in what is not wanted"
        found.adjustments.append(Adjustment("negative_prompt", text, clean.text, said))
    before = found.fields.get("negative_prompt")
    found.fields["negative_prompt"] = f"{before}, {clean.text}" if before else clean.text


def pictures(parameter: Parameter, text: str, found: Found) -> None:
    """Picture files, with spaces between; a name with spaces in quotes."""
    paths = []
    for name in _words(parameter, text):
        bare = _WEIGHT.sub("", name)
        if bare != name:
            said = "all pictures of a parameter count alike"
            found.adjustments.append(Adjustment(parameter.said, name, bare, said))
        paths.append(local(bare))
    if not paths:
        raise _value(parameter, text, "a picture file")
    found.pictures[parameter.meaning] = (*found.pictures.get(parameter.meaning, ()), *paths)


def _words(parameter: Parameter, text: str) -> list[str]:
    try:
        return shlex.split(text.replace("\\", "\\\\"))  # a backslash belongs to the path
    except ValueError as error:
        raise _value(parameter, text, "picture files, quoted where they have spaces") from error


def local(name: str) -> Path:
    """A picture on this machine. Raises PromptError for a URL."""
    if re.match(r"[a-z][a-z0-9+.-]*://", name, re.IGNORECASE):
        raise PromptError(f"{name[:80]!r} is on the network.", "Save the picture, and give the file's name.")
    if "\0" in name:
        raise PromptError("A picture's name holds a zero byte.", "Give the file's name.")
    return Path(name)


def image_weight(parameter: Parameter, text: str, found: Found) -> None:
    """How much of the prompt's picture stays: 1 is the usual strength of 0.6, 0 leaves nothing of it."""
    found.set("strength", round(3 / (3 + 2 * _number(parameter, text)), 4), parameter.said)


def style(parameter: Parameter, text: str, found: Found) -> None:
    """One of the model's styles, or `raw`, which is the parameter of that name."""
    if not text or len(text.split()) > 1:
        raise _value(parameter, text, "one word")
    if text.lower() == "raw":
        found.set("stylize", 0.0, "--style raw")
    else:
        found.set("style", text, parameter.said)


def quality(parameter: Parameter, text: str, found: Found) -> None:
    """1: as always; 2: twice the steps; 4: also the better of two tries."""
    if text not in ("1", "2", "4"):
        raise _value(parameter, text, "1, 2 or 4")
    found.set("quality", "auto" if text == "1" else "high", parameter.said)
    if text == "4":
        found.set("best_of", 2, parameter.said)


def repeat(parameter: Parameter, text: str, found: Found) -> None:
    """How often to make it, each time with other seeds."""
    found.repeat = int(_number(parameter, text, whole=True))


_MODELS = "it names a model of Midjourney's; choose one that is here outside of the prompt, with --model"
P = Parameter
PARAMETERS: tuple[Parameter, ...] = (
    P(("ar", "aspect"), aspect),
    P(("chaos", "c"), scaled, "variety", 0, 100, unit=100),
    P(("stylize", "s"), scaled, "stylize", 0, 1000, unit=100),
    P(("weird", "w"), scaled, "weird", 0, 3000, unit=3000),
    P(("exp",), reported, "no model here has it; --stylize is the nearest", 0, 100),
    P(("seed",), whole, "seed", 0, MAX_SEED - 1),
    P(("no",), unwanted),
    P(("quality", "q"), quality),
    P(("stop",), scaled, "stop", 10, 100, unit=100),
    P(("tile",), flag, "tile"),
    P(("raw",), flag, "stylize=0"),
    P(("iw",), image_weight, "strength", 0, 3),
    P(("sref",), pictures, "style_images"),
    P(("sw",), scaled, "style_weight", 0, 1000, unit=100),
    P(("sv",), reported, "there is one way to take a style from a picture", 1, 6),
    P(("oref", "cref"), pictures, "subject_images"),
    P(("ow", "cw"), scaled, "subject_weight", 0, 1000, unit=100),
    P(("p", "profile"), reported, "no taste of yours is kept here"),
    P(("draft",), flag, "quality=low"),
    P(("niji",), reported, _MODELS),
    P(("version", "v"), reported, _MODELS),
    P(("repeat", "r"), repeat, "repeat", 1, 64),
    P(("style",), style),
    *(P((name,), reported, "there is one speed, your machine's") for name in ("fast", "relax", "turbo")),
    P(("stealth",), reported, "pictures stay on this machine anyway"),
    P(("public",), reported, "pictures stay on this machine"),
)  # fmt: skip
KNOWN = {name: parameter for parameter in PARAMETERS for name in parameter.names}
