"""CometAPI in OpenAI's form: many makers' models with one key. Its Midjourney is in midjourney.py.

Its rules for errors: 429, 500, 503, 504 and 524 may be sent again; 500 with the code `invalid_request` is the caller's
mistake; a wrong path gives a redirect or HTML. `qwen-image` draws one picture a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from imagewright.engines.hosted.answers import Refusal
from imagewright.engines.hosted.families import PLAIN, Family
from imagewright.engines.hosted.openai import OpenAIForm

_ONE = replace(PLAIN, each=True)


def comet_refusal(refusal: Refusal) -> Refusal:
    """What an error of CometAPI means, whatever its status says."""
    return replace(refusal, ours=True) if refusal.code == "invalid_request" else refusal


class CometAPIEngine(OpenAIForm):
    """CometAPI's pictures but Midjourney's."""

    name = "cometapi"
    base_url = "https://api.cometapi.com/v1"
    may_repeat = frozenset({429, 500, 503, 504, 524})
    known: ClassVar[Mapping[str, str]] = {
        "gpt-image-2": "OpenAI's, through CometAPI",
        "gpt-image-2.6-sunburst": "OpenAI's, through CometAPI",
        "gpt-image-2.6-flare": "OpenAI's, through CometAPI: quicker",
        "qwen-image": "Qwen, through CometAPI: good at writing",
        "qwen-image-edit": "Qwen, through CometAPI: edits",
    }

    def family(self, name: str) -> Family:
        return _ONE if name.startswith("qwen-image") else super().family(name)

    def refusal(self, status: int, body: Any) -> Refusal:
        return comet_refusal(super().refusal(status, body))
