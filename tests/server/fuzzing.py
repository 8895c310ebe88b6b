"""Requests made up from a server's own description: right ones, wrong ones, and what must hold of every answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import hypothesis
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi import checks

LONGEST = 5.0  # s for a refusal
MANY = ("n", "best_of", "max_tries", "n_iter", "batch_size")
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@dataclass
class Findings:
    """What came of it: answers by operation and status, and what was wrong, by kind, each with a first example."""

    cases: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)


def fuzz(client: httpx.Client, each: int, seed: int | None = None) -> Findings:
    """Up to `each` right and `each` wrong cases of every operation; without a seed always the same ones."""
    schema = schemathesis.openapi.from_dict(client.get("/v1/openapi.json").json())
    found, started = Findings(), time.monotonic()
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]  # a description that cannot be read fails
        asks = list(operation.query) + list(operation.body)
        _fuzz_one(client, operation, GenerationMode.POSITIVE, each if asks else 2, seed, found)
        if asks:  # there is something wrong to say
            _fuzz_one(client, operation, GenerationMode.NEGATIVE, each, seed, found)
    found.seconds = time.monotonic() - started
    return found


def _fuzz_one(
    client: httpx.Client, operation: Any, mode: GenerationMode, each: int, seed: int | None, found: Findings
) -> None:
    @hypothesis.settings(
        max_examples=each,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        if isinstance(case.body, dict):  # a right case may ask for 64 x 64 pictures, which only takes time
            case.body |= {name: 2 for name in MANY if isinstance(asked := case.body.get(name), int) and 2 < asked <= 64}
        began = time.monotonic()
        answer = case.call(base_url=str(client.base_url), headers=dict(_own(client)), timeout=60)
        took = time.monotonic() - began
        found.cases += 1
        found.slowest = max(found.slowest, took)
        found.statuses[operation.label, answer.status_code] += 1
        if took > LONGEST and answer.status_code >= 400:  # many pictures take their time
            found.wrong.setdefault(f"{operation.label}: too slow", f"{took:.1f} s: {case.as_curl_command()}"[:2000])
        try:
            # In a form, what was wrong may have become text, or gone; and AUTOMATIC1111's bodies are read as loosely as
            # that program does, which takes true for a number.
            loose = case.media_type == "multipart/form-data" or case.path.startswith("/sdapi/")
            case.validate_response(answer, checks=CHECKS[:-1] if loose else CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                _note(found, operation.label, failure, case)
        except Failure as failure:
            _note(found, operation.label, failure, case)

    if seed is not None:
        one = hypothesis.seed(seed)(one)
    with suppress(hypothesis.errors.Unsatisfiable):  # there is nothing wrong to say to it
        one()


def _note(found: Findings, label: str, failure: Any, case: Any) -> None:
    found.wrong.setdefault(f"{label}: {failure.title}", f"{failure.message}\n{case.as_curl_command()}"[:2000])


def _own(client: httpx.Client) -> Iterator[tuple[str, str]]:
    if token := client.headers.get("authorization"):
        yield "authorization", token
