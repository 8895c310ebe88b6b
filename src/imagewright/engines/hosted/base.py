"""What all hosted engines share: a request goes out, pictures come back, and what goes wrong has a name.

A service's own file says which models it has, and turns a request into its wire form and its answer into pictures:

    class Example(HostedEngine):
        name, base_url = "example", "https://api.example.com/v1"

        def listed(self): ...                              # its models, without asking it
        def headers(self, provider): ...                   # its key
        def draw(self, request, model, call): ...          # call.post(...), call.poll(...), picture(...)

Here is the rest: the key is looked up, every call keeps one deadline, is ended by a stop, is sent again only where that
is safe, and goes nowhere but to the service; a refusal for what the words or pictures show is never sent again; what
comes back is checked before it is believed. Keys are in no message, no log and no record.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from PIL import Image

from imagewright.config import Config, Provider, Secret, read, variables_of
from imagewright.engines.engine import Engine, ModelInfo, seed_of
from imagewright.engines.hosted.answers import Answer, Refusal, openai_refusal, picture
from imagewright.errors import ConfigError, CredentialError, ImagewrightError, ProviderError
from imagewright.pictures import decode as decoded
from imagewright.request import Adjustment, Capabilities, ImageRequest, ImageResult
from imagewright.watch import Watch

if TYPE_CHECKING:  # httpx is loaded with the first call
    import httpx

    from imagewright.engines.hosted.call import Call
    from imagewright.engines.hosted.fitting import Widened

AT_ONCE = 4  # calls of one request for several pictures, where the service makes one a call
MANY = 1000  # models that are remembered

__all__ = ["Answer", "HostedEngine", "Refusal", "hosted_model", "picture"]

_T = TypeVar("_T")


class HostedEngine(Engine):
    """Makes pictures through a hosted service. Subclasses give `listed`, `headers` and `draw`.

    `provider_name` is the service's name in the configuration, `base_url` its address unless that says otherwise.
    `may_repeat`: HTTP statuses after which the service says that the same POST may be sent again. `result_hosts`: the
    hosts (and those below them) that pictures are fetched from (empty: any, by https). `own_hosts`: further hosts that
    may be sent the key.
    """

    name: ClassVar[str]
    provider_name: ClassVar[str] = ""
    base_url: ClassVar[str] = ""
    may_repeat: ClassVar[frozenset[int]] = frozenset({429, 503})
    result_hosts: ClassVar[tuple[str, ...]] = ()
    own_hosts: ClassVar[tuple[str, ...]] = ()
    needs_key: ClassVar[bool] = True
    concurrency = 32  # that wait for the service at once

    def __init__(self, config: Config | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self._given, self._transport = config, transport
        self._transports: dict[str, httpx.BaseTransport] = {}
        self._known: dict[str | None, ModelInfo] = {}
        self._lock = Lock()

    @abstractmethod
    def listed(self) -> Sequence[ModelInfo]:
        """The models that are known here, the default first; the service is not asked."""

    @abstractmethod
    def headers(self, provider: Provider) -> Mapping[str, str]:
        """What proves to the service who calls."""

    @abstractmethod
    def draw(self, request: ImageRequest, model: ModelInfo, call: Call) -> tuple[list[Image.Image], list[Adjustment]]:
        """The pictures (of `picture`) for an adapted request, see Engine._generate; fewer than `n` only if said."""

    def unlisted(self, name: str) -> ModelInfo | None:
        """A model of the service that is not known here: passed on by its name. None: there is no such model."""
        return None

    def refusal(self, status: int, body: Any) -> Refusal:
        """What an error body (its JSON, or None) says. As OpenAI writes it, unless overridden."""
        return openai_refusal(status, body)

    def refusal_in(self, answer: Answer) -> Refusal:
        """What an answer that is no success says: its body, unless its headers tell more."""
        return self.refusal(answer.status, answer.json_or_none())

    # From here on: what services need not write.

    @property
    def config(self) -> Config:
        """The user's configuration, read when it is first needed."""
        if self._given is None:
            self._given = read()
        return self._given

    def provider(self, model: ModelInfo | None = None) -> Provider:
        """How the service of a model is reached. Raises CredentialError where its key is missing."""
        return self._keyed(self.config.provider(self.provider_name or self.name))

    def call(self, watch: Watch, model: ModelInfo | None = None) -> Call:
        """What asks the service, until its timeout or the watch's stop. Raises CredentialError."""
        from imagewright.engines.hosted.call import Call

        provider = self.provider(model)
        return Call(self, provider, self._wire(provider), watch)

    def _keyed(self, provider: Provider) -> Provider:
        provider = replace(provider, base_url=provider.base_url or self.base_url)
        if self.needs_key and not self.has_key(provider):
            raise self.no_key()
        if self.has_key(provider) and not _protected(provider):
            raise ConfigError(
                f"The key of {provider.name} would be sent unprotected.",
                f"Use https in its base_url, or say insecure = true under [providers.{provider.name}].",
            )
        return provider

    def secrets(self, provider: Provider) -> list[str]:
        """What must be in no message: the key, and every other secret of the service's table."""
        found = [provider.key, *provider.options.values()]
        return [secret.reveal() for secret in found if isinstance(secret, Secret) and secret.reveal()]

    def has_key(self, provider: Provider) -> bool:
        """Whether what it takes to call is there."""
        return provider.key is not None

    def no_key(self) -> CredentialError:
        """Says which key is missing, and where to put it."""
        name = self.provider_name or self.name
        variable = variables_of(name)["key"][0]
        return CredentialError(
            "It needs a key.", f"Set {variable}, or key under [providers.{name}] in the configuration.", provider=name
        )

    def models(self) -> Sequence[ModelInfo]:
        """The models that are known here. Raises CredentialError without a key."""
        self.provider()
        return self.listed()

    def find(self, name: str | None) -> ModelInfo:
        """The model called `name`, also one that is not known here. Raises ModelNotFoundError, CredentialError."""
        model = self._known.get(name)
        if model is None:
            model = self._looked_up(name)
            if len(self._known) < MANY:  # clients of a server choose the names
                self._known[name] = model
        self.provider(model)
        return model

    def _looked_up(self, name: str | None) -> ModelInfo:
        if name is not None and all(model.name != name for model in self.listed()):
            model = self.unlisted(name)
            if model is not None:
                return model
        return super().find(name)

    def generate(self, request: ImageRequest, watch: Watch = Watch(), *, decode: bool = True) -> ImageResult:
        """As Engine.generate. Pictures come in the size that the service drew; without `decode` they may still be
        files (`info["original"]`: the bytes and their type) of which only the head was looked at."""
        result = super().generate(request, watch)
        for image in result.images if decode else ():
            self._whole(image)
        return result if request.image is not None else _as_drawn(result, request)

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        call = self.call(watch, model)
        try:
            images, said = self.draw(request, model, call)
        except KeyboardInterrupt:
            call.end()
            raise
        if not images:
            raise call.error(f"{call.service} answered without a picture.", retryable=True)
        for image in images:
            image.info.setdefault("record", {})["provider"] = call.service
            if request.image is not None:
                self._whole(image)
        return images, said

    def _whole(self, image: Image.Image) -> None:
        try:
            decoded(image)
        except ImagewrightError as error:
            name = self.provider_name or self.name
            raise ProviderError(f"{name} answered with a damaged picture.", "Ask again.", provider=name) from error

    def cut_back(self, image: Image.Image, widened: Widened | None) -> Image.Image:
        """The part of `image` where the picture is that was widened for the service (None: all of it)."""
        if widened is None:
            return image
        self._whole(image)
        return widened.cut_back(image)

    def each(
        self, request: ImageRequest, one: Callable[[ImageRequest], _T], at_once: int = AT_ONCE
    ) -> tuple[list[_T], list[Adjustment]]:
        """What `one` gives for each picture of a request alone (n=1, its own seed), several at a time.

        Where only some fail the others are kept, and that is said; where all do, the first's error is raised.
        """
        if request.n == 1:
            return [one(request)], []
        seeds = [None if request.seed is None else seed_of(request, index) for index in range(request.n)]
        pool = ThreadPoolExecutor(min(at_once, request.n))
        try:
            tasks = [pool.submit(one, replace(request, n=1, seed=seed)) for seed in seeds]
            errors = [error for task in tasks if (error := task.exception())]
        finally:  # at once where it was interrupted: `_generate` then ends the calls in flight
            pool.shutdown(wait=False, cancel_futures=True)
        stopped = next((error for error in errors if not isinstance(error, ProviderError)), None)
        if stopped is not None or len(errors) == request.n:
            raise stopped or errors[0]
        made = [task.result() for task in tasks if not task.exception()]
        return made, [Adjustment("n", request.n, len(made), str(error)) for error in errors[:1]]

    def _wire(self, provider: Provider) -> httpx.BaseTransport:
        from imagewright.engines.hosted import wire

        with self._lock:
            if provider.name not in self._transports:
                self._transports[provider.name] = self._transport or wire.transport(provider.base_url)
            return self._transports[provider.name]

    def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        with self._lock:
            transports, self._transports = self._transports, {}
        for transport in transports.values():
            transport.close()


@lru_cache(maxsize=64)
def _sends_in_clear(base_url: str) -> bool:
    at = urlsplit(base_url)
    return at.scheme != "https" and at.hostname not in ("localhost", "127.0.0.1", "::1")


def _protected(provider: Provider) -> bool:
    """Whether nobody on the way can read what is sent."""
    return bool(provider.options.get("insecure")) or not _sends_in_clear(provider.base_url)


def _as_drawn(result: ImageResult, request: ImageRequest) -> ImageResult:
    """The result in the size that the service drew, which is said where another size or shape was asked for."""
    drawn = result[0].size
    if (request.size or request.aspect) is None or drawn == result.size:
        return replace(result, size=None)
    said = Adjustment("size", result.size, drawn, "the service drew it in this size")
    records = tuple({**one, "adjustments": [*one["adjustments"], asdict(said)]} for one in result.records)
    return replace(result, size=None, adjustments=(*result.adjustments, said), records=records)


def hosted_model(engine: str, name: str, summary: str, can: Capabilities, **extra: Any) -> ModelInfo:
    """A model of a service, as the catalog lists it."""
    return ModelInfo(
        name=name,
        engine=engine,
        technique="hosted",
        summary=summary,
        licence="terms of the service",
        capabilities=can,
        extra=extra,
    )
