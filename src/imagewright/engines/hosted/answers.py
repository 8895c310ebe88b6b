"""What comes back from a hosted service: an answer, what an error in it says, pictures. Believed only when checked."""

from __future__ import annotations

import json
from binascii import Error, a2b_base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from imagewright.errors import PictureError, ProviderError
from imagewright.pictures import MIME, format_of, open_picture

_loads: Any = json.loads
_dumps: Any = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()  # noqa: E731
_quick: Any = None
try:  # a picture in base64 is a long string, that these read many times as fast; of the extra `serve` only
    import orjson
    import pybase64

    _loads, _dumps, _quick = orjson.loads, orjson.dumps, pybase64.b64decode
except ImportError:
    pass

MAX_TOLD = 500  # characters of a service's own message that are passed on
_KEPT = ("icc_profile", "transparency", "exif", "dpi")  # what of a file's own words about itself is needed
_REFUSED = ("moderation_blocked", "content_policy_violation", "content_moderation", "content_filter")
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_user_quota")


@dataclass(frozen=True)
class Answer:
    """An answer as it came: `headers` by lower-case name. `service` is who gave it."""

    service: str
    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    def json(self) -> Any:
        """Its JSON object. Raises ProviderError where it is none."""
        value = self.json_or_none()
        if not isinstance(value, dict):
            what = self.headers.get("content-type", "").partition(";")[0][:80] or "something else"
            raise ProviderError(
                f"{self.service} answered with {what} instead of a JSON object.",
                "Check its base_url in the configuration.",
                provider=self.service,
                status=self.status,
            )
        return value

    def json_or_none(self) -> Any:
        """Its JSON value; None where it is none."""
        try:
            return _loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def request_id(self) -> str | None:
        """The service's own id of the request, to be quoted when asking it about one."""
        found = self.headers.get("x-request-id") or self.headers.get("request-id") or self.headers.get("cf-ray")
        return found[:200] if found else None

    def picture(self, data: bytes, **told: Any) -> Image.Image:
        """A picture of this answer, see `picture`; the record says the request's id."""
        return picture(data, self.service, request_id=self.request_id, **told)


@dataclass(frozen=True)
class Refusal:
    """What an error says. `moderated`: refused for what the words or the pictures show. `no_credit`: there is no money
    left. `ours`: the request is wrong, whatever the status says. `bad_key`: it does not accept the key."""

    message: str
    code: str | None = None
    moderated: bool = False
    no_credit: bool = False
    ours: bool = False
    bad_key: bool = False
    categories: tuple[str, ...] = ()


def openai_refusal(status: int, body: Any) -> Refusal:
    """What `{"error": {"message", "type", "param", "code"}}` says, or what is nearest to it in another body."""
    error = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return Refusal(f"HTTP {status}")
    message = text(error.get("message")) or f"HTTP {status}"
    code = text(error.get("code")) or text(error.get("type")) or None
    details = error.get("moderation_details")
    categories = details.get("categories") if isinstance(details, dict) else None
    return Refusal(
        message,
        code,
        moderated=code in _REFUSED or "safety_violations" in message,
        no_credit=code in _NO_CREDIT,
        categories=tuple(text(one) for one in categories) if isinstance(categories, list) else (),
    )


def text(value: Any) -> str:
    """`value` where it is a string or a number, else nothing: a service may send anything."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value)[:MAX_TOLD]


def string(value: Any) -> str:
    """All of `value` where it is a string, else nothing."""
    return value if isinstance(value, str) else ""


def dumps(value: Any) -> bytes:
    """JSON."""
    encoded: bytes = _dumps(value)
    return encoded


def loads(data: bytes) -> Any:
    """The value of JSON. Raises ValueError."""
    return _loads(data)


def from_base64(value: Any, service: str) -> bytes:
    """The bytes of base64 of either alphabet, also of a data URL. Raises ProviderError."""
    if isinstance(value, str):
        encoded = value.partition(",")[2] if value.startswith("data:") else value
        try:
            if _quick is not None:
                return bytes(_quick(encoded, validate=True))
        except (Error, ValueError):  # it may have line breaks, or the other alphabet
            pass
        try:
            return a2b_base64(encoded.replace("-", "+").replace("_", "/"))
        except (Error, ValueError):
            pass
    raise ProviderError(f"{service} answered with a picture that is no base64.", "Ask again.", provider=service)


def picture(data: bytes, service: str, **told: Any) -> Image.Image:
    """A picture that came as a file; only its head is read yet. `told` goes into its record (request_id, seed, usage,
    cost in US dollars, revised_prompt; None is left out).

    `info["original"]` is (the bytes, their media type). Raises ProviderError where it is no PNG, JPEG or WebP.
    """
    try:
        image = open_picture(data, decode=False)
    except PictureError as error:
        raise ProviderError(
            f"{service} answered with something that is no picture (PNG, JPEG or WebP).", "Ask again.", provider=service
        ) from error
    image.info = {name: image.info[name] for name in _KEPT if name in image.info}
    image.info["original"] = (data, MIME[format_of(image)])
    image.info["record"] = {name: value for name, value in told.items() if value is not None}
    return image
