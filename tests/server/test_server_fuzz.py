"""No input crashes the server: requests made up from its own description, and all kinds of values where text is asked.

benchmarks/fuzz.py does the same with many more cases, and by chance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from served import failed, served
from strangers import ADMIN, body_of, routes

EACH = 8  # of right and of wrong cases of an operation
ODD = [  # JSON texts
    *(
        '"\\u0000"',
        '"a\\u0000b"',
        '"\\\\\\u0000"',
        '"\\r\\nSet-Cookie: a=b"',
        '"\\ud800"',
        '"a\\udfff"',
        '"\\u202e\\u200b"',
    ),
    *(
        "NaN",
        "[NaN]",
        "Infinity",
        "-Infinity",
        "1e999",
        "1" + "0" * 400,
        "-1" + "0" * 5000,
        "1e-320",
        "0.5",
        "-1",
        "true",
    ),
    *('""', "[]", "{}", "null", "[[]]", '{"a":{}}', "[null]", '"data:image/png;base64,AAAA"', '{"$ref":"#"}', '"%00"'),
    *(
        "[" * 60 + "]" * 60,
        "[" * 200 + "]" * 200,
        "[" * 900 + "]" * 900,
        "[" * 100_000,
        '{"a":' * 300 + "1" + "}" * 300,
        '{"a":1,"a":2}',
    ),
    *('"' + "x" * 50_000 + '"', '"' + "(" * 1000 + '"', '"' + "((((a:1.5)" * 100 + '"', '"' + "{a,b}" * 20 + '"'),
    *('"../../../etc/passwd"', '"file:///etc/passwd"', '"/etc/passwd"', '"<script>alert(1)</script>"', '"=cmd()"'),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server"), admin_key=ADMIN) as found:
        found.headers["authorization"] = f"Bearer {ADMIN}"
        yield found


def test_cases_made_up_from_the_description(client: httpx.Client) -> None:
    """No 5xx, no status or body that the description does not have, nothing wrong accepted, nothing refused late."""
    pytest.importorskip("schemathesis")
    from fuzzing import fuzz

    found = fuzz(client, EACH)
    assert found.wrong == {}
    assert found.cases >= 300
    assert not [status for _, status in found.statuses if status >= 500]


def fields(client: httpx.Client) -> list[tuple[str, str, str, dict[str, object]]]:
    """Every field of every JSON body: method, path, name, and the other fields of a body that is right."""
    described = client.get("/v1/openapi.json").json()
    found = []
    for route in routes(client.app):  # type: ignore[attr-defined]
        operation = described["paths"].get(route.path, {}).get(route.method.lower(), {})
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        schema = content["schema"]
        if "$ref" in schema:
            schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        path = route.at(**dict.fromkeys(route.objects, "x"))
        right = body_of(route).get("json", {})
        names = [*schema["properties"], "unknown_one"]
        found += [(route.method, path, name, {k: v for k, v in right.items() if k != name}) for name in names]
    return found


def test_odd_values_everywhere(client: httpx.Client) -> None:
    """Each value in each field of each body, where one asks for no work; never a 5xx, errors always with four keys."""
    asked = 0
    for index, (method, path, name, others) in enumerate(fields(client)):
        for value in ODD[index % 6 :: 6]:  # some of them, in turn
            begin = json.dumps(others)[:-1] + (", " if others else "")
            text = f"{begin}{json.dumps(name)}: {value}}}"
            answer = client.request(method, path, content=text, headers={"content-type": "application/json"})
            assert answer.status_code < 500, (path, name, value[:80], answer.text)
            if answer.status_code >= 400:
                failed(answer, answer.status_code)
            asked += 1
    assert asked > 700


def test_bodies_that_are_no_objects(client: httpx.Client) -> None:
    for method, path, _, _ in fields(client)[::5]:
        for text in (*ODD, "", "{", "\0", "\xff", "[" + "0," * 300_000 + "0]", '{"prompt": "a"} {}'):
            content = text.encode("latin-1")
            answer = client.request(method, path, content=content, headers={"content-type": "application/json"})
            if text not in ("{}", '{"a":1,"a":2}') or answer.status_code >= 400:
                failed(answer, 404 if answer.status_code == 404 else 400)


def test_odd_queries(client: httpx.Client) -> None:
    for path in ("/v1/pictures", "/v1/files", "/v1/jobs", "/v1/usage", "/v1/admin/usage"):
        for name in (
            "limit",
            "after",
            "since",
            "until",
            "prompt",
            "model",
            "seed",
            "min_score",
            "order",
            "purpose",
            "by",
            "key",
        ):
            for value in (
                "nan",
                "inf",
                "-inf",
                "1e400",
                "-1",
                "9" * 50,
                "%00",
                "%ED%A0%80",
                "'",
                "%22",
                "a" * 3000,
                "*",
                "",
                "%0d%0a",
            ):
                answer = client.get(f"{path}?{name}={value}")
                assert answer.status_code < 500, (path, name, value, answer.text)
                if answer.status_code >= 400:
                    failed(answer, answer.status_code)
