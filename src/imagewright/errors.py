"""Every error that imagewright raises on purpose.

    ImagewrightError
    ├── RequestError              the request cannot be honoured as written
    │   ├── PromptError           the prompt is empty or too long
    │   └── UnsupportedError      the model cannot do this (a mask, an image, a style)
    ├── ModelError
    │   ├── ModelNotFoundError    no such model here
    │   └── ModelCorruptError     its files are missing, truncated or changed
    ├── MissingExtraError         an optional dependency is not installed; names the extra
    ├── DataError                 a data set cannot be read or made
    │   ├── IntegrityError        a download does not match its pinned hash
    │   └── LicenceError          a picture may not be trained on
    ├── TrainingError
    │   ├── OptionError           no such technique, preset or option, or a value that cannot work
    │   ├── DivergedError         NaN, infinity, a run-away loss, a collapse; names the last good checkpoint
    │   └── CheckpointError       no usable checkpoint
    ├── ConfigError               the configuration cannot be used
    ├── ProviderError             a hosted service did not do what was asked
    │   ├── CredentialError       its key is missing or refused
    │   ├── ModerationError       it refused the words or the pictures; asking again is no use
    │   ├── QuotaError            too many requests for now, or no credit left
    │   └── ProviderTimeoutError  no answer in time
    ├── StoppedError              whoever asked has gone away, or cancelled
    ├── PictureError              a picture file cannot be read
    ├── OutputError               a result cannot be written
    └── ProvenanceError           a credential cannot be made or read

Each carries `message` (what happened), `fix` (what to do) and `exit_code` (for the command line: 2 where the
caller can mend the input, 1 elsewhere). This module imports nothing.
"""

from __future__ import annotations


class ImagewrightError(Exception):
    """Base of all errors raised on purpose: `message` says what happened, `fix` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(f"{message} {fix}".strip())
        self.message = message
        self.fix = fix


class RequestError(ImagewrightError):
    """The request cannot be honoured as written."""

    exit_code = 2


class PromptError(RequestError):
    """The prompt is empty or too long."""


class UnsupportedError(RequestError):
    """The chosen model cannot do what was asked, and dropping it in silence would be a lie."""


class ModelError(ImagewrightError):
    """A model cannot be used."""


class ModelNotFoundError(ModelError):
    """No model of that name or path is here."""

    exit_code = 2


class ModelCorruptError(ModelError):
    """A model's files are missing, truncated, changed or of another format version."""


class MissingExtraError(ImagewrightError):
    """An optional dependency is not installed; the fix names the extra."""

    exit_code = 2

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed.", f"Run: pip install 'imagewright[{extra}]'")
        self.extra = extra


class DataError(ImagewrightError):
    """A data set cannot be read or made."""

    exit_code = 2


class IntegrityError(DataError):
    """A file does not match its pinned hash."""


class LicenceError(DataError):
    """A picture may not be trained on; the message names it and the reason."""


class TrainingError(ImagewrightError):
    """Training cannot start or go on."""


class OptionError(TrainingError):
    """There is no such technique, preset or option, or its value cannot work."""

    exit_code = 2


class DivergedError(TrainingError):
    """A loss became NaN, infinite or ran away, or the model collapsed; names the last good checkpoint."""


class CheckpointError(TrainingError):
    """No usable checkpoint: missing, truncated, or of another configuration."""


class ConfigError(ImagewrightError):
    """The configuration cannot be read, or says what cannot work."""

    exit_code = 2


class PictureError(ImagewrightError):
    """A picture file cannot be read: not PNG, JPEG or WebP, truncated, or too large."""

    exit_code = 2


class OutputError(ImagewrightError):
    """A result cannot be written: no such folder, no permission, disk full."""


class ProvenanceError(ImagewrightError):
    """A credential cannot be made or read."""


class ProviderError(ImagewrightError):
    """A hosted service did not do what was asked.

    `provider` is its name here, `status` its HTTP status (None: no answer), `code` its own word for the error,
    `retryable` whether the same request may succeed later, `retry_after` the seconds it asked to wait.
    """

    def __init__(
        self,
        message: str,
        fix: str = "",
        *,
        provider: str = "",
        status: int | None = None,
        code: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, fix)
        self.provider, self.status, self.code = provider, status, code
        self.retryable, self.retry_after = retryable, retry_after


class CredentialError(ProviderError):
    """A hosted service's key is missing, wrong or not allowed to do this."""

    exit_code = 2


class ModerationError(ProviderError):
    """A hosted service, or a rule of the operator, refused the words or the pictures; `code` may name the category."""

    exit_code = 2


class QuotaError(ProviderError):
    """Too many requests for now (`retry_after`), or no credit left (not retryable)."""


class ProviderTimeoutError(ProviderError):
    """A hosted service gave no answer in time. The work may have been done and charged all the same."""


class StoppedError(ImagewrightError):
    """Whoever asked for the picture has gone away, or has cancelled it."""
