"""The planner that asks a language model, against a stand-in of one on loopback."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import reading
from hosted.standin import Asked, Reply, StandIn, as_json, route

from imagewright import config
from imagewright.config import Secret
from imagewright.conversation.local import LocalPlanner
from imagewright.conversation.planner import PREVIOUS, Plan
from imagewright.conversation.remote import RemotePlanner, configured
from imagewright.errors import ConfigError

KEY = "sk-canary-7788"
PLAN = {
    "steps": [
        {"action": "edit", "target": 1, "words": "make the cat golden", "shows": "a golden cat", "topic": "cat"},
        {"action": "expand", "target": 0, "words": "", "shows": "a golden cat", "expand": {"left": 25, "right": 25}},
    ],
    "understood": "The first cat in gold, wider.",
}


def said(arguments: Any, as_text: bool = False) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    call = {"id": "c", "type": "function", "function": {"name": "plan", "arguments": text}}
    message = {"role": "assistant", "content": text} if as_text else {"content": None, "tool_calls": [call]}
    return {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}


class Model(StandIn):
    """A chat model that answers what it is told to."""

    answer: Any = said(PLAN)

    @route("POST", "/v1/chat/completions")
    def chat(self, asked: Asked) -> Reply:
        self.demand(asked.headers.get("authorization") == f"Bearer {KEY}", 401, "no key")
        body = asked.json()
        self.demand(body["tools"][0]["function"]["name"] == "plan", 400, "no tool")
        self.demand(body["tool_choice"]["function"]["name"] == "plan", 400, "no choice")
        return as_json(self.answer)


def planned(service: StandIn, words: str = "the first one in gold and wider", **options: Any) -> Plan:
    planner = RemotePlanner(f"{service.url}/v1", "tiny", Secret(KEY), timeout=2, **options)
    return planner.plan(words, reading.situation("two"), reading.STYLES)


def test_its_plan_is_taken_with_numbers_as_pictures() -> None:
    with Model() as service:
        plan = planned(service)
    first, second = plan.steps
    assert (first.action, first.target, first.words, first.topic) == ("edit", "1", "make the cat golden", "cat")
    assert (second.action, second.target, second.how) == ("expand", PREVIOUS, {"left": "25%", "right": "25%"})
    assert plan.understood == PLAN["understood"] and plan.doubts == ()


def test_it_is_told_what_the_pictures_show_and_never_gets_one_unasked() -> None:
    with Model() as service:
        planned(service)
        planned(service, send_pictures=True)
    system, user = service.asked[0].json()["messages"]
    assert "Picture 1: a cat; topic: cat; 256x256" in system["content"]
    assert "Picture 2 (current): a red car" in system["content"] and "noto, fluent, flat, twemoji" in system["content"]
    assert user == {"role": "user", "content": "the first one in gold and wider"}
    assert b"data:image" not in service.asked[0].body and b"data:image/png;base64," in service.asked[1].body


@pytest.mark.parametrize("around", ["{}", "Sure:\n```json\n{}\n```\nDone."])
def test_a_plan_in_the_text_is_found(around: str) -> None:
    with Model() as service:
        service.answer = said(around.replace("{}", json.dumps(PLAN)), as_text=True)
        assert planned(service).understood == PLAN["understood"]


BAD = {
    "no choices": {"choices": []},
    "no object": [],
    "words": said("I cannot do that.", as_text=True),
    "no steps": said({"steps": [], "understood": ""}),
    "no action": said({"steps": [{"action": "fly", "words": "x"}], "understood": ""}),
    "no such picture": said({"steps": [{"action": "edit", "target": 9, "words": "x"}], "understood": ""}),
    "no number": said({"steps": [{"action": "edit", "target": "1", "words": "x"}], "understood": ""}),
    "no words": said({"steps": [{"action": "generate", "words": " "}], "understood": ""}),
    "many steps": said({"steps": PLAN["steps"] * 9, "understood": ""}),
    "deep": said("[" * 50_000 + '{"a"}', as_text=True),
    "a wrong side": said({"steps": [{"action": "edit", "target": 1, "words": "x", "where": "inside"}]}),
    "a broken expand": said({"steps": [{"action": "expand", "target": 1, "words": "", "expand": [1]}]}),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_plan_leaves_it_to_the_rules_and_says_so(what: str) -> None:
    with Model() as service:
        service.answer = BAD[what]
        plan = planned(service, "make it blue")
    assert plan.steps == LocalPlanner().plan("make it blue", reading.situation("two")).steps
    assert "the rules decided" in plan.doubts[-1] and "127.0.0.1" in plan.doubts[-1]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(401, b'{"error": "sk-secret"}'), "HTTP 401"),
        (Reply(500), "HTTP 500"),
        (Reply(302, b"", {"location": "http://127.0.0.1:1/"}), "HTTP 302"),
        (Reply(200, b"<html>", content_type="text/html"), "cannot be read"),
        (Reply(200, b" " * 300_000), "too long"),
        (Reply(200, b" " * 40, drip=0.1), "no answer in time"),
        (Reply(hang_up=True), "no connection"),
    ],
)
def test_trouble_leaves_it_to_the_rules_and_names_no_secret(reply: Reply, why: str) -> None:
    with Model() as service:
        service.next.append(reply)
        plan = planned(service, "make it blue")
    assert plan.steps[0].words == "make the car blue"
    assert why in plan.doubts[-1] and "sk-" not in plan.doubts[-1]


def test_a_planner_that_is_not_there_or_too_slow_does_not_hold_up() -> None:
    started = time.monotonic()
    plan = RemotePlanner("http://127.0.0.1:9/v1", "tiny", timeout=0.3).plan("a cat", reading.situation(""))
    assert plan.steps[0].action == "generate" and "no connection" in plan.doubts[-1]
    assert time.monotonic() - started < 2


def test_the_configuration_chooses(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"

    def of(text: str) -> Any:
        file.write_text(text)
        file.chmod(0o600)
        return configured(config.read(file).section("planner"))

    assert of("").name == "local"
    found = of('[planner]\nbase_url = "http://127.0.0.1:1/v1/"\nmodel = "tiny"\nkey = "k"\ntimeout = 3\n')
    assert (found.name, found.base_url, found.timeout, found.send_pictures) == (
        "tiny",
        "http://127.0.0.1:1/v1",
        3,
        False,
    )
    assert found.key.reveal() == "k" and "k" not in repr(found.key)
    for wrong in ('base_url = "http://x/v1"', 'base_url = "file:///etc"\nmodel = "a"'):
        with pytest.raises(ConfigError):
            of(f"[planner]\n{wrong}\n")
