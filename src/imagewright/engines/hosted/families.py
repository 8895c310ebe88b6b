"""Which of OpenAI's fields, sizes and qualities a model knows: by its family, which its id tells."""

from __future__ import annotations

from dataclasses import dataclass, replace

from imagewright.request import Capabilities

USER = ("user", "safety_identifier")
OPTIONS = ("moderation", *USER)
EDIT_ONLY, DRAW_ONLY = ("input_fidelity",), ("moderation",)  # options of one of the two ways only
_SQUARE, _WIDE, _HIGH = (1024, 1024), (1536, 1024), (1024, 1536)

_BASE = Capabilities(
    size=_SQUARE,
    any_size=False,
    seed=False,
    strength=False,
    image=True,
    mask=True,
    transparent=True,
    features=("instruction", "images"),
    qualities=("low", "medium", "high"),
    provider_options=OPTIONS,
    max_prompt=32_000,
    max_n=10,
)
_FIXED = replace(_BASE, sizes=(_SQUARE, _WIDE, _HIGH))
_FREE = replace(_BASE, sides=(16, 3840, 16), pixels=(655_360, 8_294_400), ratio=3.0)
_MORE = replace(_FREE, qualities=("low", "medium", "high", "xhigh", "max"))
_DALL_E_2 = replace(
    _BASE,
    sizes=((256, 256), (512, 512), _SQUARE),
    qualities=("standard",),
    transparent=False,
    features=("instruction",),
    provider_options=USER,
    max_prompt=1000,
)
_DALL_E_3 = replace(
    _DALL_E_2,
    sizes=(_SQUARE, (1792, 1024), (1024, 1792)),
    qualities=("standard", "hd"),
    styles=("vivid", "natural"),
    image=False,
    mask=False,
    features=(),
    max_prompt=4000,
)


@dataclass(frozen=True)
class Family:
    """Models with the same fields. `form`: gpt, dall-e, or plain (what any server of this form knows). `each`: one
    picture a call."""

    prefix: str
    can: Capabilities
    form: str = "gpt"
    each: bool = False


FAMILIES = (  # the first whose prefix an id has
    Family("gpt-image-1-mini", _FIXED),
    Family("gpt-image-1", replace(_FIXED, provider_options=(*OPTIONS, "input_fidelity"))),
    Family("chatgpt-image", replace(_FIXED, provider_options=(*OPTIONS, "input_fidelity"))),
    Family("gpt-image-2.5", _MORE),
    Family("gpt-image-2.6", replace(_MORE, provider_options=(*OPTIONS, "complexity"))),
    Family("gpt-image-2", replace(_FREE, transparent=False)),
    Family("dall-e-2", _DALL_E_2, form="dall-e"),
    Family("dall-e-3", _DALL_E_3, form="dall-e", each=True),
)
NEWEST = Family("", replace(_MORE, provider_options=(*OPTIONS, "complexity", "input_fidelity")))
PLAIN = Family(
    "",
    replace(
        _BASE,
        sides=(64, 4096, 1),
        qualities=("low", "medium", "standard", "high", "hd"),
        transparent=False,
        provider_options=("*",),
    ),
    form="plain",
)


def family_of(name: str, otherwise: Family = NEWEST) -> Family:
    """The family of a model's id; an owner in front of it (`owner/id`) does not count."""
    own = name.rpartition("/")[2]
    return next((family for family in FAMILIES if own.startswith(family.prefix)), otherwise)
