"""/v1/responses: turns that build on each other, what comes along, streams, the background, failures, owners."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from databases import postgres  # noqa: F401
from gatehouse import CENT, Paid, bearer, key_row, new_key, server
from PIL import Image
from served import data_url, drawn, events, failed, hole, png, served

from imagewright.errors import ModerationError
from imagewright.pictures import open_picture
from imagewright.provenance import credentials, metadata
from imagewright.request import Capabilities
from imagewright.server.app import create_app
from imagewright.server.settings import Settings

TOOLS = [{"type": "image_generation"}]
KEYS = {
    *("id", "object", "created_at", "status", "error", "incomplete_details", "instructions", "model", "output"),
    *("parallel_tool_calls", "previous_response_id", "tool_choice", "tools", "temperature", "top_p", "metadata"),
    "usage",
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server"), default_model="embedded/stickers-diffusion") as client:
        yield client


def said(api: Any, words: Any, **body: Any) -> dict[str, Any]:
    """A turn that succeeds."""
    answer = api.post("/v1/responses", json={"model": "chat", "input": words, "tools": TOOLS, **body})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert set(found) >= KEYS and found["object"] == "response", found
    return dict(found)


def calls(response: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in response["output"] if item["type"] == "image_generation_call"]


def text(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def file(response: dict[str, Any], index: int = 0) -> bytes:
    return base64.b64decode(calls(response)[index]["result"])


def user(*parts: dict[str, Any] | str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def test_turns_build_on_each_other_and_undo_is_exact(api: httpx.Client) -> None:
    cat = said(api, "draw a cat, 64x64, seed 3")
    yellow = said(api, "put it on a yellow background", previous_response_id=cat["id"])
    back = said(api, "undo", previous_response_id=yellow["id"])
    assert [response["status"] for response in (cat, yellow, back)] == ["completed"] * 3
    assert (calls(cat)[0]["size"], calls(cat)[0]["action"], calls(yellow)[0]["action"]) == ("64x64", "generate", "edit")
    assert calls(yellow)[0]["revised_prompt"] == "put it on a yellow background"
    assert file(back) == file(cat) != file(yellow) and calls(back)[0]["id"] == calls(cat)[0]["id"]
    assert text(yellow) == "I change picture 1: put it on a yellow background."
    assert cat["model"] == "local" and yellow["previous_response_id"] == cat["id"]
    record = metadata.read(open_picture(file(yellow))).record
    assert record is not None and [step["verb"] for step in record["edits"]["steps"]] == ["set_background"]
    found = credentials.read(file(yellow), "png")
    assert found.state == "trusted" and found.digital_source_type == "compositeWithTrainedAlgorithmicMedia"
    row = api.app.state.store.get(calls(yellow)[0]["id"], None)  # type: ignore[attr-defined]
    assert row.parents == (calls(cat)[0]["id"],)


def test_two_turns_may_go_on_from_one(api: httpx.Client) -> None:
    cat = said(api, "draw a cat, 64x64, seed 3")
    blue, red = (said(api, f"make it {c}", previous_response_id=cat["id"]) for c in ("blue", "red"))
    assert file(blue) != file(red)
    assert file(said(api, "undo", previous_response_id=red["id"])) == file(cat)


def test_an_earlier_call_is_named_by_its_id_or_brought_along(api: httpx.Client) -> None:
    pair = said(api, "draw a cat, 64x64, seed 3")
    call = calls(pair)[0]
    by_id = said(api, [user("make it blue"), {"type": "image_generation_call", "id": call["id"]}])
    assert by_id["imagewright"]["understood"] == "I change picture 1: make the cat blue."
    gone = {**call, "id": "ig_of_another_server"}
    again = said(api, [user("draw a cat"), gone, user("make it blue")])
    assert again["imagewright"]["understood"].endswith("make the cat blue.")
    assert np.array_equal(_pixels(file(by_id)), _pixels(file(again)))
    answer = api.post("/v1/responses", json={"input": [{"type": "image_generation_call", "id": "ig_nothing"}]})
    failed(answer, 404, code="not_found", param="input[0]")


def test_pictures_come_as_data_urls_and_as_files(api: httpx.Client) -> None:
    image = drawn((40, 30), "RGB")
    upload = api.post("/v1/files", data={"purpose": "vision"}, files={"file": ("a.png", png(image), "image/png")})
    for part in ({"image_url": data_url(image)}, {"file_id": upload.json()["id"]}):
        found = said(api, [user("bigger", {"type": "input_image", **part})])
        assert open_picture(file(found)).size == (80, 60)
        items = api.get(f"/v1/responses/{found['id']}/input_items").json()["data"]
        assert items[0]["content"][0] == {"type": "input_text", "text": "bigger"} and "base64" not in str(items)
    chat = {"type": "image_url", "image_url": {"url": data_url(image), "detail": "low"}}
    assert "It looks like" in text(said(api, [user(chat)]))
    refused = api.post("/v1/responses", json={"input": [user("x", {"type": "input_image", "image_url": "http://a/b"})]})
    failed(refused, 400, code="invalid_image_url")


def test_a_mask_says_where_a_change_may_be(api: httpx.Client) -> None:
    image = drawn()
    tool = {**TOOLS[0], "action": "edit", "input_image_mask": {"image_url": data_url(hole())}}
    part = {"type": "input_image", "image_url": data_url(image)}
    found = said(api, [user("a red apple", part)], tools=[tool])
    before, after = np.asarray(image.convert("RGBA")), _pixels(file(found))
    outside = np.asarray(hole())[..., 3] > 0
    assert np.array_equal(before[outside], after[outside]) and not np.array_equal(before, after)


def test_the_tools_fields_win_over_the_words_and_formats_lose_nothing(api: httpx.Client) -> None:
    tool = {**TOOLS[0], "size": "96x64", "output_format": "jpeg", "output_compression": 50, "quality": "low"}
    one = said(api, "draw a cat, 64x64, seed 3", tools=[tool])
    call = calls(one)[0]
    assert (call["size"], call["output_format"], call["background"]) == ("96x64", "jpeg", "opaque")
    assert any(note.startswith("size: the tool's") for note in one["imagewright"]["notes"])
    two = said(api, "make it blue", previous_response_id=one["id"])
    record = metadata.read(open_picture(file(two))).record
    assert record is not None and len(record["edits"]["steps"]) == 1 and not record["adjustments"]
    assert open_picture(file(two)).format == "PNG"
    assert file(said(api, "undo", previous_response_id=two["id"])) == file(one)
    assert calls(said(api, "draw a dog as a jpeg, 64x64"))[0]["output_format"] == "jpeg"


def test_what_the_caller_insists_on_is_done(api: httpx.Client) -> None:
    cat = said(api, "draw a cat, 64x64")
    dog = said(api, "make it blue", previous_response_id=cat["id"], tools=[{**TOOLS[0], "action": "generate"}])
    assert dog["imagewright"]["steps"] == ["generate"]
    forced = said(api, "what is in the picture?", previous_response_id=cat["id"], tool_choice=TOOLS[0])
    assert len(calls(forced)) == 1
    for body in ({"tools": []}, {"tool_choice": "none"}):
        assert calls(said(api, "draw a cat", **body)) == []
    assert "a cat" in text(said(api, "what is in the picture?", previous_response_id=cat["id"], tools=[]))


def test_events_come_in_order_with_real_previews(api: httpx.Client) -> None:
    body = {"input": "draw a cat, 64x64", "stream": True, "tools": [{**TOOLS[0], "partial_images": 2}]}
    with api.stream("POST", "/v1/responses", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = list(events(answer.iter_lines()))
    call = "response.image_generation_call"
    assert [name for name, _ in told] == [
        *("response.created", "response.in_progress", "response.output_item.added"),
        *(f"{call}.in_progress", f"{call}.generating", f"{call}.partial_image", f"{call}.partial_image"),
        *(f"{call}.completed", "response.output_item.done", "response.output_item.added"),
        *("response.content_part.added", "response.output_text.delta", "response.output_text.done"),
        *("response.content_part.done", "response.output_item.done", "response.completed"),
    ]
    assert all(name == data["type"] for name, data in told)
    assert [data["sequence_number"] for _, data in told] == list(range(len(told)))
    first, second = (open_picture(base64.b64decode(data["partial_image_b64"])) for _, data in told[5:7])
    whole = told[-1][1]["response"]
    assert first.size == second.size == (64, 64) and not np.array_equal(np.asarray(first), np.asarray(second))
    assert told[8][1]["item"] == calls(whole)[0] and told[0][1]["response"]["status"] == "in_progress"
    assert whole == api.get(f"/v1/responses/{whole['id']}").json()


def test_work_in_the_background_is_looked_at_later_and_can_be_cancelled(api: httpx.Client) -> None:
    begun = said(api, "draw a cat, 64x64", background=True)
    assert begun["status"] in ("queued", "in_progress") and begun["output"] == []
    done = _waited(api, begun["id"])
    assert done["status"] == "completed" and len(calls(done)) == 1 and done["background"] is True
    slow = said(api, "draw 64 pictures of a cat", background=True)
    busy = {"model": "chat", "previous_response_id": slow["id"], "input": "make it blue", "tools": TOOLS}
    failed(api.post("/v1/responses", json=busy), 400, param="previous_response_id")
    failed(api.delete(f"/v1/responses/{slow['id']}"), 409)
    api.post(f"/v1/responses/{slow['id']}/cancel")
    assert _waited(api, slow["id"])["status"] == "cancelled"
    refused = api.post("/v1/responses", json={"input": "a cat", "background": True, "store": False})
    failed(refused, 400, param="background")


def test_a_response_is_forgotten_with_its_pictures(api: httpx.Client) -> None:
    cat = said(api, "draw a cat, 64x64")
    blue = said(api, "make it blue", previous_response_id=cat["id"])
    assert api.delete(f"/v1/responses/{cat['id']}").json() == {"id": cat["id"], "object": "response", "deleted": True}
    for path in ("", "/input_items"):
        failed(api.get(f"/v1/responses/{cat['id']}{path}"), 404, code="not_found")
    named = {"input": [user("wider"), {"type": "image_generation_call", "id": calls(cat)[0]["id"]}]}
    failed(api.post("/v1/responses", json={**named, "tools": TOOLS}), 404)
    assert calls(said(api, "make it red", previous_response_id=blue["id"]))
    kept = said(api, "draw a cat, 64x64", store=False)
    failed(api.get(f"/v1/responses/{kept['id']}"), 404)
    named["input"][1]["id"] = calls(kept)[0]["id"]  # type: ignore[index]
    failed(api.post("/v1/responses", json={**named, "tools": TOOLS}), 404)


def test_jobs_show_turns_and_idempotency_repeats_them(api: httpx.Client) -> None:
    body = {"model": "chat", "input": "draw a cat, 64x64", "tools": TOOLS}
    one, two = (api.post("/v1/responses", json=body, headers={"idempotency-key": "turn-1"}) for _ in range(2))
    assert one.content == two.content
    job = api.get(f"/v1/jobs/{one.json()['imagewright']['job']}").json()
    assert job["type"] == "response" and job["result"] == {"response": one.json()["id"]}


def test_nothing_is_dropped_in_silence(api: httpx.Client) -> None:
    more = {"instructions": "Be a pirate.", "temperature": 0.5, "frobnicate": 1, "metadata": {"a": "b"}}
    found = said(api, "mach die Katze blau", tools=[*TOOLS, {"type": "web_search"}], **more)
    notes = " ".join(found["imagewright"]["notes"])
    for word in ("instructions", "temperature", "frobnicate", "web_search", "English"):
        assert word in notes
    assert found["metadata"] == {"a": "b"} and found["instructions"] == "Be a pirate." and "English" in text(found)


BAD = {
    "no input": ({}, "input"),
    "no items": ({"input": []}, "input"),
    "no words": ({"input": [{"role": "assistant", "content": "hello"}]}, "input"),
    "empty": ({"input": "   "}, None),
    "long": ({"input": "a" * 50_000}, None),
    "many": ({"input": [user("x")] * 501}, "input"),
    "a role": ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
    "an item": ({"input": [{"type": "computer_call"}]}, "input[0].type"),
    "a part": ({"input": [user({"type": "input_audio"})]}, "input[0].content[0].type"),
    "no picture": ({"input": [user("x", {"type": "input_image"})]}, "input[0].content[1]"),
    "no data": ({"input": [user("x", {"type": "input_image", "image_url": "data:image/png;base64,AAAA"})]}, None),
    "a size": ({"input": "x", "tools": [{**TOOLS[0], "size": "big"}]}, "tools.image_generation.size"),
    "a model": ({"input": "x", "tools": [{**TOOLS[0], "model": "nothing"}]}, "model"),
    "previous": ({"input": "x", "previous_response_id": "resp_x"}, "previous_response_id"),
    "a conversation": ({"input": "x", "conversation": "conv_1"}, "conversation"),
    "jpeg": ({"input": "x", "tools": [{**TOOLS[0], "output_format": "jpeg", "background": "transparent"}]}, None),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_is_said_in_openais_form(api: httpx.Client, what: str) -> None:
    body, param = BAD[what]
    answer = api.post("/v1/responses", json={"tools": TOOLS, **body})
    failed(answer, 404 if what == "a model" else 400, **({"param": param} if param else {}))


def test_a_default_that_changes_no_pictures_gives_way(tmp_path: Path) -> None:
    with served(tmp_path, default_model="embedded/stickers-gan") as api:
        cat = said(api, "draw a cat, 64x64")
        smile = said(api, "make it smile", previous_response_id=cat["id"])
        assert cat["imagewright"]["model"] == "embedded/stickers-gan" != smile["imagewright"]["model"]
        named = said(
            api, "make it smile", previous_response_id=cat["id"], tools=[{**TOOLS[0], "model": "stickers-gan"}]
        )
        assert named["status"] == "failed" and calls(named)[0]["error"]["code"] == "unsupported"


def test_ids_of_strangers_lead_nowhere(tmp_path: Path) -> None:
    with server(tmp_path, Paid("paid", can=Capabilities(size=(8, 8), image=True, features=("instruction",)))) as api:
        _, mine = new_key(api.app.state.database)  # type: ignore[attr-defined]
        _, theirs = new_key(api.app.state.database)  # type: ignore[attr-defined]
        body = {"input": "draw a cat", "tools": TOOLS}
        cat = api.post("/v1/responses", json=body, headers=bearer(mine)).json()
        head, path = bearer(theirs), f"/v1/responses/{cat['id']}"
        for answer in (
            api.get(path, headers=head),
            api.get(f"{path}/input_items", headers=head),
            api.delete(path, headers=head),
            api.post(f"{path}/cancel", headers=head),
        ):
            failed(answer, 404)
        named = {
            "input": [user("bigger"), {"type": "image_generation_call", "id": calls(cat)[0]["id"]}],
            "tools": TOOLS,
        }
        failed(api.post("/v1/responses", json=named, headers=head), 404)
        chained = {**body, "previous_response_id": cat["id"]}
        failed(api.post("/v1/responses", json=chained, headers=head), 400, param="previous_response_id")
        assert api.get(path, headers=bearer(mine)).json()["id"] == cat["id"]
        failed(api.get(path), 401)


def test_turns_are_paid_for_and_budgets_hold(tmp_path: Path) -> None:
    can = Capabilities(size=(8, 8), seed=False, image=True, features=("instruction",))
    paid = Paid("paid", lambda request, watch: {"cost": 0.01}, can)
    with server(tmp_path, paid, prices={"paid/m": {"image": 0.01}}) as api:
        database = api.app.state.database  # type: ignore[attr-defined]
        caller, token = new_key(database, budget=4 * CENT, period="total")

        def turn(words: str, **more: Any) -> httpx.Response:
            body = {"input": words, "tools": TOOLS, **more}
            found: httpx.Response = api.post("/v1/responses", json=body, headers=bearer(token))
            return found

        cat = turn("draw a cat and make it smile").json()
        assert cat["status"] == "completed" and paid.calls == 2
        assert cat["imagewright"]["cost"] == 0.02 and key_row(database, caller).spent == 2 * CENT
        undone = turn("bigger", previous_response_id=cat["id"]).json()
        assert undone["imagewright"]["cost"] == 0 and key_row(database, caller).spent == 2 * CENT
        failed(turn("draw three pictures of a dog"), 429)
        assert key_row(database, caller).reserved == 0 and paid.calls == 2


def test_failures_are_items_with_their_error(tmp_path: Path) -> None:
    def refuse(request: Any, watch: Any) -> dict[str, Any]:
        raise ModerationError("It was refused.", "Ask for something else.")

    with server(tmp_path, Paid("paid", refuse)) as api:
        body = {"input": "draw a cat", "tools": TOOLS}
        answer = api.post("/v1/responses", json=body)
        found = answer.json()
        assert answer.status_code == 200 and found["status"] == "failed" and found["usage"] is None
        (item,) = found["output"]
        assert item["status"] == "failed" and item["result"] is None
        assert item["error"]["code"] == "moderation_blocked" and "moderation_details" in item["error"]
        assert found["error"]["code"] == "image_content_policy_violation"
        with api.stream("POST", "/v1/responses", json={**body, "stream": True}) as stream:
            told = list(events(stream.iter_lines()))
        assert [name for name, _ in told[-2:]] == ["response.output_item.done", "response.failed"]
        assert told[-2][1]["item"]["error"]["code"] == "moderation_blocked"
        again = api.post("/v1/responses", json={**body, "previous_response_id": found["id"]})
        assert again.json()["status"] == "failed"


def test_a_turn_outlives_the_server_that_accepted_it(tmp_path: Path) -> None:
    with served(tmp_path, work=False) as api:
        begun = said(api, "draw a cat and put it on a red background", background=True)
        time.sleep(0.1)
        assert api.get(f"/v1/responses/{begun['id']}").json()["status"] == "queued"
    with served(tmp_path) as api:
        done = _waited(api, begun["id"])
        assert done["status"] == "completed" and done["imagewright"]["steps"] == ["generate", "edit"]
        assert calls(said(api, "wider", previous_response_id=done["id"]))


def test_turns_are_kept_in_postgres_too(tmp_path: Path, postgres: str) -> None:  # noqa: F811
    with served(tmp_path, database=postgres, pictures=str(tmp_path / "pictures")) as api:
        one = said(api, "draw a cat, 64x64")
        two = said(api, "put it on a red background", previous_response_id=one["id"])
        assert file(said(api, "undo", previous_response_id=two["id"])) == file(one)
        assert calls(said(api, [user("wider"), {"type": "image_generation_call", "id": calls(two)[0]["id"]}]))
        assert api.delete(f"/v1/responses/{two['id']}").json()["deleted"] is True


def test_the_configuration_chooses_the_planner(tmp_path: Path) -> None:
    planner = {"base_url": "http://127.0.0.1:9/v1", "model": "tiny", "timeout": 0.2}
    app = create_app(Settings(folder=tmp_path, planner=planner))
    assert app.state.planner.name == "tiny"
    with served(tmp_path / "b", planner=planner) as api:
        found = said(api, "draw a cat")
        assert found["model"] == "tiny" and "the rules decided" in text(found)


def _waited(api: httpx.Client, response_id: str) -> dict[str, Any]:
    """A response that is over."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found: dict[str, Any] = api.get(f"/v1/responses/{response_id}").json()
        if found["status"] not in ("queued", "in_progress"):
            return found
        time.sleep(0.02)
    raise AssertionError("it does not end")


def _pixels(data: bytes) -> np.ndarray:
    image: Image.Image = open_picture(data).convert("RGBA")
    return np.asarray(image)
