"""Errors as the server's clients see them: one body with four keys, whatever went wrong.

Source: OpenAI's error object (`message`, `type`, `param`, `code`, all required); SDKs read nothing else. An error that
was not foreseen tells no inner detail.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import sqlalchemy as sa

from imagewright import errors
from imagewright.errors import ImagewrightError

INVALID = "invalid_request_error"
UNREACHABLE = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)  # a database that may come back


class ApiError(ImagewrightError):
    """An answer other than success: HTTP `status`, and the four keys of its body.

    `retry_after` (seconds) becomes the header; `retry` False tells clients not to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        fix: str = "",
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message, fix)
        self.status, self.type, self.param, self.code = status, type, param, code
        self.retry_after, self.retry = retry_after, retry

    def body(self) -> dict[str, Any]:
        """What the client reads."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What a client's retries go by."""
        found = {}
        if self.retry_after is not None:
            found["retry-after"] = str(math.ceil(self.retry_after))
        if self.retry is not None:
            found["x-should-retry"] = str(self.retry).lower()
        return found

    def to_json(self) -> dict[str, Any]:
        """As a failed job keeps it."""
        kept = {"status": self.status, "message": self.message, "fix": self.fix, "type": self.type}
        return kept | {"param": self.param, "code": self.code, "retry_after": self.retry_after, "retry": self.retry}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> ApiError:
        """As `to_json` wrote it."""
        return cls(**kept)


def missing(what: str, param: str) -> ApiError:
    """A field that must be there is not."""
    return ApiError(400, f"Missing required parameter: {what}.", param=param, code="missing_required_parameter")


def unsupported_media_type(given: str, needed: str) -> ApiError:
    """A body of a type that the route does not read."""
    named = given.partition(";")[0].strip()[:80]
    code = "unsupported_media_type"
    return ApiError(415, f"The Content-Type {named!r} is not understood here.", f"Send {needed}.", code=code)


def not_found(what: str) -> ApiError:
    """No such thing here, or none of the caller's."""
    return ApiError(404, f"There is no such {what}.", code="not_found")


_KNOWN: dict[type[ImagewrightError], dict[str, Any]] = {  # the nearest class of an error wins
    errors.PromptError: {"status": 400, "param": "prompt", "code": "invalid_value"},
    errors.UnsupportedError: {"status": 400, "code": "unsupported"},
    errors.RequestError: {"status": 400, "code": "invalid_value"},
    errors.ModelNotFoundError: {"status": 404, "param": "model", "code": "model_not_found"},
    errors.MissingExtraError: {"status": 400, "code": "not_installed"},
    errors.PictureError: {"status": 400, "code": "invalid_image"},
    errors.ModerationError: {"status": 400, "type": "image_generation_user_error", "code": "moderation_blocked"},
    errors.CredentialError: {"status": 502, "type": "server_error", "code": "provider_credential", "retry": False},
    errors.QuotaError: {"status": 429, "type": "requests", "code": "rate_limit_exceeded"},
    errors.ProviderTimeoutError: {"status": 504, "type": "server_error", "code": "provider_timeout"},
    errors.ProviderError: {"status": 502, "type": "server_error", "code": "provider_error"},
    errors.StoppedError: {"status": 499, "code": "cancelled"},
    errors.OutputError: {"status": 507, "type": "server_error", "code": "storage_full", "retry": False},
}


def of(error: BaseException) -> ApiError:
    """`error` as a client may see it."""
    if isinstance(error, ApiError):
        return error
    for kind in type(error).__mro__:
        if facts := _KNOWN.get(kind):
            assert isinstance(error, ImagewrightError)
            return ApiError(message=error.message, fix=error.fix, **(facts | _of_provider(error)))
    if isinstance(error, UNREACHABLE):
        return _of_database(error)
    return ApiError(500, "The server had an error.", "Try again; the operator's log has it.", type="server_error")


def note(log: logging.Logger, what: str, error: BaseException) -> None:
    """Write down that `what` failed, where that was not its client's doing; with all detail where nobody foresaw it."""
    if isinstance(error, ApiError):  # whoever raised it knew why
        return
    if (told := of(error)).status >= 500:
        foreseen = isinstance(error, (ImagewrightError, *UNREACHABLE))
        log.error("%s failed: %s", what, error if foreseen else told, exc_info=None if foreseen else error)


def _of_database(error: Exception) -> ApiError:
    if "disk is full" in str(error) or "No space left" in str(error):
        return ApiError(507, "The server's disk is full.", "Tell the operator.", type="server_error", retry=False)
    return ApiError(
        503, "The server's database cannot be reached.", "Try again in a moment.",
        type="server_error", code="database_unavailable", retry_after=2,
    )  # fmt: skip


def _of_provider(error: ImagewrightError) -> dict[str, Any]:
    """What a hosted service said: how long to wait, that the caller is at fault, that there is no credit left."""
    if not isinstance(error, errors.ProviderError):
        return {}
    found: dict[str, Any] = {} if error.retry_after is None else {"retry_after": error.retry_after}
    if isinstance(error, errors.QuotaError) and not error.retryable:
        found |= {"code": "insufficient_quota", "retry": False}
    if type(error) is errors.ProviderError and error.status in (400, 413, 415, 422):
        found |= {"status": 400, "type": INVALID, "code": error.code}
    return found
