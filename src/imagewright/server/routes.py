"""Routes: one name for several models, tried one after the other, by the operator's configuration.

    [routes."my-image"]
    targets = ["openai/gpt-image-2", "stability/core", "imagewright-mini"]
    on = ["error", "timeout", "capability"]   # when the next one is tried; also: moderation, price
    order = "listed"                          # or "cheapest"
    timeout = 60                              # seconds that one target may take
    max_cost = 0.10                           # dollars that a request may cost at most

Which targets come into question is settled before any call, from what the models declare: with `capability` in `on`,
those that cannot do what is asked are left out, and so are those that would bend it where another takes it as it is;
with `price`, those that may cost more than `max_cost`. A request that is at fault itself falls back on nothing, and a
refusal for what the words or pictures show only where `moderation` is listed. What was tried and why is told in the
record of the pictures (`routing`, and an adjustment of `model`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from imagewright import errors
from imagewright.engines.engine import adapt
from imagewright.errors import ConfigError, ImagewrightError, StoppedError, UnsupportedError
from imagewright.request import Adjustment, Capabilities, ImageRequest, ImageResult
from imagewright.server.errors import ApiError
from imagewright.watch import Stop, Watch

REASONS = ("error", "timeout", "moderation", "capability", "price")
ORDERS = ("listed", "cheapest")
MAX_TARGETS = 8
Json = dict[str, Any]
_BENT = ("size", "n", "style", "negative_prompt", "background")  # what a better fitting target is looked for


@dataclass(frozen=True)
class Route:
    """What stands under [routes]. `timeout` in seconds, `max_cost` in µ$."""

    name: str
    targets: tuple[str, ...]
    on: frozenset[str] = frozenset({"error", "timeout"})
    order: str = "listed"
    timeout: float | None = None
    max_cost: int | None = None
    outputs: str = "store"


@dataclass(frozen=True)
class Target:
    """A model that a route may use: its full name, what it can do, and what the request may cost there (µ$ or None)."""

    model: str
    can: Capabilities
    estimate: int | None


def read(tables: Mapping[str, Any]) -> dict[str, Route]:
    """The routes of the configuration. Raises ConfigError."""
    return {name: _read(name, table) for name, table in tables.items()}


def select(route: Route, targets: Sequence[Target], request: ImageRequest) -> tuple[list[Target], list[Json]]:
    """The targets to try, in order, and those left out with the reason. Raises ApiError, UnsupportedError."""
    skipped: list[Json] = []
    left = list(targets)
    if route.order == "cheapest":
        left.sort(key=lambda target: float("inf") if target.estimate is None else target.estimate)
    if route.max_cost is not None:
        left = _affordable(route, left, skipped)
    if "capability" in route.on:
        left = _able(left, request, skipped)
    return left, skipped


def attempt(
    plan: Mapping[str, Any],
    request: ImageRequest,
    watch: Watch,
    make: Callable[[ImageRequest, Watch], ImageResult],
) -> ImageResult:
    """The pictures of the first target of `plan` (see `plan_of`) that makes them, with what was tried in the records.

    Raises what the last target raised.
    """
    tried: list[Json] = list(plan["skipped"])
    targets = plan["targets"]
    for model in targets:
        said = _said(plan["first"], model, tried)
        try:
            with _limited(watch, plan["timeout"]) as limited:
                result = make(replace(request, model=model, adjustments=(*request.adjustments, *said)), limited)
        except Exception as error:
            reason = reason_of(error)
            if reason not in plan["on"] or model == targets[-1]:
                raise
            tried.append({"target": model, "reason": reason, "message": _told(error)})
            continue
        routing = [*tried, {"target": model, "reason": "used"}]
        return replace(result, records=tuple({**record, "routing": routing} for record in result.records))
    raise AssertionError("a plan has targets")


def plan_of(route: Route, targets: Sequence[Target], skipped: Sequence[Json], first: str) -> Json:
    """What a job keeps of a route, so that any worker can go through with it: JSON values."""
    return {
        "route": route.name,
        "first": first,
        "targets": [target.model for target in targets],
        "skipped": list(skipped),
        "on": sorted(route.on),
        "timeout": route.timeout,
    }


def reason_of(error: BaseException) -> str | None:
    """Why the next target may be tried after `error`; None where the request itself, or the caller, ended it."""
    if isinstance(error, errors.ModerationError):
        return "moderation"
    if isinstance(error, errors.ProviderTimeoutError):
        return "timeout"
    if isinstance(error, UnsupportedError):
        return "capability"
    if isinstance(error, errors.CredentialError | errors.QuotaError):
        return "error"
    if isinstance(error, errors.ProviderError):
        return None if error.status in (400, 413, 415, 422) else "error"
    if isinstance(error, errors.RequestError | errors.PictureError | StoppedError):
        return None
    return "error"


def _affordable(route: Route, targets: list[Target], skipped: list[Json]) -> list[Target]:
    assert route.max_cost is not None
    dear = [target for target in targets if target.estimate is None or target.estimate > route.max_cost]
    cheap = [target for target in targets if target not in dear]
    if not cheap or (dear and "price" not in route.on):
        raise ApiError(
            400,
            f"This may cost more than ${route.max_cost / 1e6:g}, which {route.name!r} allows.",
            "Ask for fewer or smaller pictures, or a lower quality.",
            code="max_cost_exceeded",
        )
    skipped += [{"target": target.model, "reason": "price", "message": "it may cost too much"} for target in dear]
    return cheap


def _able(targets: list[Target], request: ImageRequest, skipped: list[Json]) -> list[Target]:
    """Those that take the request as it is; if there are none, those that can bend it. Raises UnsupportedError."""
    refusals: dict[str, UnsupportedError] = {}
    bends: dict[str, list[str]] = {}
    for target in targets:
        try:
            _, made = adapt(request, target.can)
        except UnsupportedError as error:
            refusals[target.model] = error
            continue
        known = len(request.adjustments)
        bends[target.model] = [f"{one.field}: {one.reason}" for one in made[known:] if one.field in _BENT]
        if request.background == "transparent" and not target.can.transparent:
            bends[target.model].append("background: it paints one")
    if not bends:
        raise next(iter(refusals.values()))
    whole = [target for target in targets if bends.get(target.model) == []]
    left = whole or [target for target in targets if target.model in bends]
    for target in targets:
        if target not in left:
            refusal = refusals.get(target.model)
            message = refusal.message if refusal else "; ".join(bends[target.model])
            skipped.append({"target": target.model, "reason": "capability", "message": message})
    return left


def _said(first: str, model: str, tried: Sequence[Json]) -> list[Adjustment]:
    if model == first or not tried:
        return []
    return [Adjustment("model", first, model, "; ".join(f"{one['target']}: {one['message']}" for one in tried))]


def _told(error: BaseException) -> str:
    return error.message if isinstance(error, ImagewrightError) else "it failed"


@contextmanager
def _limited(watch: Watch, seconds: float | None) -> Iterator[Watch]:
    """`watch` with a stop of its own after `seconds`, which then becomes a ProviderTimeoutError."""
    if seconds is None:
        yield watch
        return
    stop, late = Stop(), threading.Event()
    if watch.stop is not None:
        watch.stop.then(stop.set)

    def end() -> None:
        late.set()
        stop.set()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield replace(watch, stop=stop)
    except StoppedError as error:
        if late.is_set() and not (watch.stop is not None and watch.stop.is_set()):
            raise errors.ProviderTimeoutError(f"It took more than {seconds:g} s.", "Try again.") from error
        raise
    finally:
        timer.cancel()


def _read(name: str, table: Any) -> Route:
    def wrong(fix: str) -> ConfigError:
        return ConfigError(f'[routes."{name}"] cannot be read.', fix)

    if not isinstance(table, Mapping):
        raise wrong("Write [routes.NAME] and its lines below.")
    if unknown := set(table) - {"targets", "on", "order", "timeout", "max_cost", "outputs"}:
        raise wrong(f"It has no {sorted(unknown)[0]!r}.")
    targets, on = table.get("targets"), table.get("on", ["error", "timeout"])
    if not isinstance(targets, list) or not 1 <= len(targets) <= MAX_TARGETS or len(set(targets)) < len(targets):
        raise wrong(f"Give 1 to {MAX_TARGETS} different targets.")
    if not isinstance(on, list) or set(on) - set(REASONS):
        raise wrong(f"on may have {', '.join(REASONS)}.")
    for option, allowed in (("order", ORDERS), ("outputs", ("store", "relay"))):
        if table.get(option, allowed[0]) not in allowed:
            raise wrong(f"{option} is {' or '.join(allowed)}.")
    timeout, most = table.get("timeout"), table.get("max_cost")
    if any(value is not None and not _is_positive(value) for value in (timeout, most)):
        raise wrong("timeout and max_cost are numbers above 0.")
    return Route(
        name,
        tuple(targets),
        frozenset(on),
        table.get("order", "listed"),
        timeout,
        None if most is None else round(most * 1_000_000),
        table.get("outputs", "store"),
    )


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
