"""Any server that speaks OpenAI's form, by the name that the configuration gives it: `compatible/NAME/MODEL`.

    [providers.mybox]
    kind = "openai"
    base_url = "http://127.0.0.1:9000/v1"
    models = ["flux"]       # those that are listed; any other is passed on
    key = "..."             # if it wants one; MYBOX_API_KEY in the environment wins

`kind = "compatible"` says the same. A key is sent by https only, unless the server is on this machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from imagewright.config import Provider
from imagewright.engines.engine import ModelInfo
from imagewright.engines.hosted.openai import OpenAIForm
from imagewright.errors import ConfigError, ModelNotFoundError

KINDS = ("openai", "compatible")
_HOW = 'Write [providers.NAME] with kind = "openai" and a base_url, and ask for compatible/NAME/MODEL.'


class CompatibleEngine(OpenAIForm):
    """The servers that the user has named."""

    name = "compatible"
    needs_key = False

    def providers(self) -> Sequence[Provider]:
        """The servers of this kind in the configuration. Raises ConfigError."""
        every = [self.config.provider(name) for name in self.config.names()]
        return [provider for provider in every if provider.options.get("kind") in KINDS]

    def listed(self) -> Sequence[ModelInfo]:
        return [
            self.model(f"{provider.name}/{name}", provider.base_url)
            for provider in self.providers()
            for name in provider.options.get("models", ())
            if isinstance(name, str)
        ]

    def models(self) -> Sequence[ModelInfo]:
        """The models that the configuration lists. Raises ModelNotFoundError where it names no server."""
        if not self.providers():
            raise ModelNotFoundError("No server is named in the configuration.", _HOW)
        return self.listed()

    def unlisted(self, name: str) -> ModelInfo | None:
        server, _, model = name.partition("/")
        if not model or all(provider.name != server for provider in self.providers()):
            return None
        return self.model(name)

    def find(self, name: str | None) -> ModelInfo:
        """As Engine.find. Raises ModelNotFoundError with how a server is named."""
        try:
            return super().find(name)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"No server of the configuration has {name!r}.", _HOW) from error

    def wire_name(self, model: ModelInfo) -> str:
        return model.name.partition("/")[2]

    def provider(self, model: ModelInfo | None = None) -> Provider:
        """The server of a model. Raises ConfigError where it has no address, or one that no key should be sent to."""
        assert model is not None
        found = self.config.provider(model.name.partition("/")[0])
        if not found.base_url:
            raise ConfigError(f"{found.name} has no base_url.", f"Add it under [providers.{found.name}].")
        return self._keyed(found)
