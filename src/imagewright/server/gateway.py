"""From the model that a client names to the one that draws: what a name stands for, who may use it, what it costs, what
draws it, and what is tried next."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import sqlalchemy as sa

from imagewright.engines.engine import Engine, ModelInfo
from imagewright.engines.hosted.base import HostedEngine
from imagewright.errors import ImagewrightError
from imagewright.provenance import record
from imagewright.request import Adjustment, ImageRequest, ImageResult
from imagewright.server import allowance, routes, usage
from imagewright.server.errors import ApiError
from imagewright.server.jobs import Job
from imagewright.server.prices import Prices, usage_of
from imagewright.server.routes import Route, Target
from imagewright.server.security import Caller, tell
from imagewright.server.settings import Settings
from imagewright.server.usage import Bill
from imagewright.watch import Watch
from imagewright.workshop import Workshop

# Ids that clients send by default, whatever server they talk to: they get this server's default model.
_WORLD = re.compile(r"(dall-e-[23]|gpt-image-[\w.-]+|chatgpt-image-[\w.-]+)\Z")
_LOCAL = ("embedded", "trained", "pretrained")  # engines whose models may be paths
_MANY = 1000  # names
_K = TypeVar("_K")
_V = TypeVar("_V")
_FRESH = 5.0  # seconds that what a name stands for is believed


@dataclass(frozen=True)
class Choice:
    """What a client's model name stands for: `model` of ours, drawn in `pool`; `estimate` in µ$ (None: nobody knows);
    `plan` where there is more to it than that one model (routes.plan_of)."""

    model: str
    pool: str = "local"
    estimate: int | None = 0
    adjustments: tuple[Adjustment, ...] = ()
    plan: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Found:
    """A model of ours, by its full name. `relays`: the operator has its service's files passed on as they are."""

    name: str
    engine: Engine
    info: ModelInfo
    relays: bool

    @property
    def is_hosted(self) -> bool:
        return self.info.is_hosted


class Gateway:
    """Routes, rights and prices between the front desk and the workshop."""

    def __init__(self, settings: Settings, workshop: Workshop) -> None:
        self.settings, self.workshop = settings, workshop
        self.prices, self.routes = Prices(settings.prices), routes.read(settings.routes)
        self._known: dict[tuple[str | None, str | None], tuple[float, _Found]] = {}
        self._meant: dict[str | None, tuple[float, str | None]] = {}

    def models(self, caller: Caller | None = None) -> list[tuple[str, ModelInfo]]:
        """The names that a caller may ask for, with what they stand for: the operator's first, then all others here."""
        here = [model for listing in self.workshop.catalog.listings() for model in listing.models]
        first = {name: route.targets[0] for name, route in self.routes.items()}
        named = {name: first.get(target, target) for name, target in self.settings.models.items()} | first
        given = [(name, found.info) for name, target in named.items() if (found := self._here(target))]
        all_here = [*given, *((model.name, model) for model in here if model.name not in named)]
        if caller is None:
            return all_here
        return [(name, info) for name, info in all_here if _may(caller, name, [f"{info.engine}/{info.name}"])]

    def choose(self, caller: Caller, asked: str | None, request: ImageRequest, relay: bool = False) -> Choice:
        """What draws `request`. `relay`: whoever asks can do with the service's own files.

        Raises ApiError (400, 403, 404), UnsupportedError.
        """
        route = self._route(asked)
        if route is not None:
            choice = self._routed(route, asked, caller, request, relay)
        else:
            choice = self._single(asked, caller, request, relay)
        if choice.estimate is None and caller.budget is not None:
            raise ApiError(
                400,
                f"What {choice.model} costs is not known here, and this key has a budget.",
                f'The operator can say it under [prices."{choice.model}"].',
                param="model",
                code="price_unknown",
            )
        if choice.estimate is not None:
            tell(**{"x-imagewright-estimate": allowance.dollars(choice.estimate)})
        return choice

    def remembers(self, asked: str | None, technique: str | None) -> bool:
        """Whether what a name stands for need not be looked up again just now."""
        now = time.monotonic()
        if (route := self._route(asked)) is not None:
            return all(self._known.get((one, None), (0.0,))[0] > now for one in route.targets)
        until, meant = self._meant.get(asked, (0.0, None))
        return until > now and self._known.get((meant, technique), (0.0,))[0] > now

    def drawer(self, caller: Caller, asked: str | None, request: ImageRequest) -> ModelInfo:
        """The model that `choose` would give `request` to first. Raises as `choose` does."""
        return self._find(self.choose(caller, asked, request).model, None).info

    def make(self, work: Sequence[tuple[Job, ImageRequest, Watch]]) -> list[ImageResult | Exception]:
        """The pictures of jobs, or why there are none."""
        if all(job.plan is None for job, _, _ in work):
            asked = [replace(request, model=job.model) for job, request, _ in work]
            return self.workshop.make_many(asked, [watch for _, _, watch in work])
        return [self._made(job, request, watch) for job, request, watch in work]

    def reserve(self, connection: sa.Connection, caller: Caller, job: Job) -> None:
        """Set aside what the job may cost, in the transaction that accepts it. Raises ApiError (429)."""
        allowance.take(connection, caller, job)

    def bill(self, request: ImageRequest, result: ImageResult) -> Bill:
        """What a result did cost, and what the log keeps of it."""
        found = self._find(f"{result.engine}/{result.model}", None)
        cost = self.prices.cost(found.name, found.is_hosted, request, result)
        return Bill(model=found.name, images=len(result), tokens=usage_of(result), seconds=result.seconds, cost=cost)

    def settle(self, connection: sa.Connection, job: Job, bill: Bill) -> None:
        """Charge what the job did cost, free the rest and write it down, in the transaction that ends it."""
        allowance.settle(connection, job, bill.cost or 0)
        usage.enter(connection, job, bill)

    def _single(self, asked: str | None, caller: Caller, request: ImageRequest, relay: bool) -> Choice:
        default = self._find(self._target(asked), request.technique)
        is_world = asked is not None and _WORLD.match(asked) is not None
        is_named = asked is not None and (not is_world or asked in self.settings.models)
        found = default if is_named or request.technique else self._able(default, request)
        said = (_stands_in(asked, found.info.name),) if asked is not None and is_world else ()
        if found is not default:
            said = (Adjustment("model", default.info.name, found.info.name, "the default model takes no pictures"),)
        _check(caller, asked, [found.name])
        estimate = self.prices.estimate(found.name, found.is_hosted, request)
        if not found.is_hosted:
            return Choice(found.name, "local", estimate, said)
        plan = None
        if relay and _is_plain(request) and found.relays:
            plan = {**routes.plan_of(Route("", ()), [_as_target(found, estimate)], [], found.name), "relay": True}
        return Choice(found.name, "hosted", estimate, said, plan)

    def _able(self, found: _Found, request: ImageRequest) -> _Found:
        """`found`, or where it cannot take the request's pictures the first of this machine's models that can."""
        needs = [name for name in ("image", "mask") if getattr(request, name) is not None]
        if not needs or all(getattr(found.info.capabilities, need) for need in needs):
            return found
        for listing in self.workshop.catalog.listings():
            for info in listing.models:
                if not info.is_hosted and all(getattr(info.capabilities, need) for need in needs):
                    return self._find(f"{info.engine}/{info.name}", None)
        return found

    def _route(self, asked: str | None) -> Route | None:
        """The route that a name is, or stands for."""
        if asked in self.routes:
            return self.routes[asked]
        name = self.settings.models.get(asked or "", asked)
        if asked is None or (name == asked and _WORLD.match(asked)):
            name = self.settings.default_model
        return self.routes.get(name or "")

    def _routed(self, route: Route, asked: str | None, caller: Caller, request: ImageRequest, relay: bool) -> Choice:
        found, missing = self._found(route)
        _check(caller, asked or route.name, list(found))
        targets = [_as_target(one, self.prices.estimate(one.name, one.is_hosted, request)) for one in found.values()]
        left, skipped = routes.select(route, targets, request)
        estimates = [target.estimate for target in left]
        known = [estimate for estimate in estimates if estimate is not None]
        used = [found[target.model] for target in left]
        plan = routes.plan_of(route, left, [*missing, *skipped], route.targets[0])
        plan["relay"] = relay and _is_plain(request) and all(_may_relay(one, route) for one in used)
        return Choice(
            left[0].model,
            "local" if any(not one.is_hosted for one in used) else "hosted",
            max(known) if len(known) == len(estimates) else None,  # whichever target it will be
            () if asked in (None, route.name) else (_stands_in(str(asked), route.name),),
            plan,
        )

    def _found(self, route: Route) -> tuple[dict[str, _Found], list[dict[str, Any]]]:
        """The targets of a route that can be called, and why the others cannot. Raises what the first one raises."""
        found: dict[str, _Found] = {}
        missing: list[dict[str, Any]] = []
        for target in route.targets:
            try:
                one = self._find(target, None)
                found[one.name] = one
            except ImagewrightError as error:
                if "error" not in route.on or (len(missing) + 1 == len(route.targets)):
                    raise
                missing.append({"target": target, "reason": "error", "message": error.message})
        return found, missing

    def _made(self, job: Job, request: ImageRequest, watch: Watch) -> ImageResult | Exception:
        try:
            if job.plan is None:
                return self._draw(replace(request, model=job.model), watch)
            draw = self._relay if job.plan["relay"] else self._draw
            return routes.attempt(job.plan, request, watch, draw)
        except Exception as error:
            return error

    def _draw(self, request: ImageRequest, watch: Watch) -> ImageResult:
        [done] = self.workshop.make_many([request], [watch])
        if isinstance(done, Exception):
            raise done
        return done

    def _relay(self, request: ImageRequest, watch: Watch) -> ImageResult:
        """The service's own files (`info["original"]`), of which only the heads were read."""
        found = self._find(request.model, None)
        assert isinstance(found.engine, HostedEngine)
        result = found.engine.generate(replace(request, model=found.info.name), watch, decode=False)
        records = []
        for image, made in zip(result.images, result.records, strict=True):
            _, media_type = image.info["original"]
            told = replace(request, output_format=media_type.removeprefix("image/"))
            records.append(record.finish({**made, "relayed": True}, told, image, ()))
        return replace(result, records=tuple(records))

    def _target(self, asked: str | None) -> str | None:
        """The model of ours that a name stands for; None is the catalog's first. Raises ApiError (404)."""
        until, meant = self._meant.get(asked, (0.0, None))
        if time.monotonic() > until:
            meant = self._meaning(asked)
            _remember(self._meant, asked, meant)
        return meant

    def _meaning(self, asked: str | None) -> str | None:
        if asked is None:
            return self.settings.default_model
        if asked in self.settings.models:
            return self.settings.models[asked]
        if _WORLD.match(asked):
            return self.settings.default_model
        if asked in self._served() or self._is_passed_on(asked):
            return asked
        raise ApiError(
            404,
            f"The model {asked!r} does not exist or you do not have access to it.",
            "GET /v1/models lists those that are here.",
            param="model",
            code="model_not_found",
        )

    def _served(self) -> set[str]:
        here = [model for listing in self.workshop.catalog.listings() for model in listing.models]
        return {model.name for model in here} | {f"{model.engine}/{model.name}" for model in here}

    def _is_passed_on(self, asked: str) -> bool:
        """Whether it is a model of a hosted service, also one that is not listed here. Never a path of this machine."""
        name, _, rest = asked.partition("/")
        if not rest or name in _LOCAL or all(name != listing.engine for listing in self.workshop.catalog.listings()):
            return False
        engine = self.workshop.catalog.engine(name)
        return isinstance(engine, HostedEngine) and engine.find(rest).is_hosted

    def _here(self, name: str) -> _Found | None:
        try:
            return self._find(name, None)
        except ImagewrightError:  # its key or its extra is missing
            return None

    def _find(self, name: str | None, technique: str | None) -> _Found:
        until, found = self._known.get((name, technique), (0.0, None))
        if found is None or time.monotonic() > until:
            engine, own_name = self.workshop.catalog.find(name, technique)
            info = engine.find(own_name)
            relays = isinstance(engine, HostedEngine) and engine.provider(info).options.get("outputs") == "relay"
            found = _Found(f"{info.engine}/{info.name}", engine, info, relays)
            _remember(self._known, (name, technique), found)
            _remember(self._known, (found.name, None), found)
        return found


def _remember(known: dict[_K, tuple[float, _V]], name: _K, value: _V) -> None:
    if len(known) >= _MANY:  # clients choose the names
        known.clear()
    known[name] = (time.monotonic() + _FRESH, value)


def _may(caller: Caller, asked: str | None, models: Sequence[str]) -> bool:
    """Whether a key may use a name: the name itself is allowed, or all that it stands for."""
    if caller.models is None:
        return True

    def allowed(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in caller.models or ())

    return (asked is not None and allowed(asked)) or all(allowed(model) for model in models)


def _check(caller: Caller, asked: str | None, models: Sequence[str]) -> None:
    if not _may(caller, asked, models):
        raise ApiError(
            403,
            f"This key may not use the model {asked or models[0]!r}.",
            "Choose another model: GET /v1/models lists those of this key.",
            param="model",
            code="model_not_allowed",
        )


def _as_target(found: _Found, estimate: int | None) -> Target:
    return Target(found.name, found.info.capabilities, estimate)


def _may_relay(found: _Found, route: Route) -> bool:
    """Whether the operator has a service's files passed on, for it or for the route."""
    return found.relays or (route.outputs == "relay" and isinstance(found.engine, HostedEngine))


def _is_plain(request: ImageRequest) -> bool:
    """Whether nothing is left to be done to the pictures when a service has drawn them."""
    edits = request.image is not None or request.mask is not None
    chooses = request.best_of > 1 or request.min_match is not None or request.min_realism is not None
    return not edits and not chooses and request.output_format != "svg" and request.background in ("auto", "opaque")


def _stands_in(asked: str, used: str) -> Adjustment:
    return Adjustment("model", asked, used, "this server's model for that name")
