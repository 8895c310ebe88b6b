"""What comes of a plan: pictures, their stacks and parents, exact undo, what is said where something cannot be done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from imagewright import chain, verbs
from imagewright.conversation.acting import act
from imagewright.conversation.local import LocalPlanner
from imagewright.conversation.planner import PREVIOUS, Plan, Step
from imagewright.conversation.state import Conversation, Turn
from imagewright.editing.stack import Stack
from imagewright.errors import RequestError, StoppedError
from imagewright.pictures import encode
from imagewright.watch import Stop, Watch

STYLES = ("noto", "fluent", "flat", "twemoji")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGBA"))


def talk(*lines: str, now: Conversation | None = None, model: str | None = None) -> tuple[Conversation, list[Turn]]:
    """A conversation of these lines."""
    now, turns = now or Conversation(), []
    for line in lines:
        turn = act(LocalPlanner().plan(line, now, STYLES), now, verbs.shared(), said=line, model=model)
        turns.append(turn)
        now = now.then(turn)
    return now, turns


@pytest.fixture(scope="module")
def pair() -> Conversation:
    """A car and an apple, side by side."""
    return talk("a blue car to the left of a red apple, seed 3")[0]


def steps(now: Conversation) -> Sequence[str]:
    """The verbs on the stack of the present picture."""
    assert now.last is not None
    stack = Stack.of(now.image(now.last.id).info["imagewright"])
    return [step.verb for step in stack.steps] if stack else []


def test_five_turns_keep_pictures_parents_and_the_stack() -> None:
    lines = ("a cat, seed 3", "make it blue", "put it on a yellow background", "add a tree on the left", "undo")
    now, turns = talk(*lines)
    parents = [shown.parent and now.number(shown.parent) for shown in now.pictures]
    assert parents == [None, 1, 2, 3] and len(now.turns) == 5
    assert [turn.said for turn in now.turns] == list(lines)
    last = now.image(now.pictures[3].id).info["imagewright"]
    assert [step["verb"] for step in last["edits"]["steps"]] == ["recolor", "set_background", "edit"]
    assert last["edits"]["steps"][2]["prompt"] == "add a tree on the left"
    first = now.image(now.pictures[0].id)
    assert turns[4].pictures == (now.pictures[2].id,) and steps(now) == ["recolor", "set_background"]
    again = chain.replayed(Stack.of(last), verbs.shared(), (), original=first)
    assert np.array_equal(pixels(again), pixels(now.image(now.pictures[3].id)))


def test_undo_gives_the_earlier_file_byte_for_byte() -> None:
    now, _ = talk("a cat, seed 3", "make it blue")
    ids = [shown.id for shown in now.pictures]
    before = [encode(now.image(id_), "png") for id_ in ids]
    now, (undone, redone) = talk("undo", "redo", now=now)
    assert (undone.pictures, redone.pictures) == ((ids[0],), (ids[1],)) and len(now.pictures) == 2
    assert [encode(now.image(id_), "png") for id_ in ids] == before


def test_a_branch_goes_on_from_an_earlier_turn() -> None:
    root, _ = talk("a cat, seed 3")
    blue, red = talk("make it blue", now=root)[0], talk("make it red", now=root)[0]
    assert len(root.pictures) == 1 and blue.last is not None and red.last is not None
    assert blue.last.parent == red.last.parent == root.pictures[0].id
    assert not np.array_equal(pixels(blue.image(blue.last.id)), pixels(red.image(red.last.id)))


def test_one_of_two_things_changes_and_all_else_stays(pair: Conversation) -> None:
    now, (made,) = talk("make the left one green", now=pair)
    before, after = (pixels(now.image(shown.id)) for shown in now.pictures)
    changed = np.flatnonzero((before != after).any(-1).any(0))
    assert changed.size and changed.max() < 140
    assert now.last is not None and now.last.shows == "a green car to the left of a red apple"
    assert any("all else is kept" in note for note in made.notes)
    now, _ = talk("remove the right one", now=now)
    left = pixels(now.image(now.pictures[2].id))
    assert np.array_equal(left[:, :130], after[:, :130]) and left[..., 3][:, 150:].max() < 32
    assert now.pictures[2].shows == "a green car" and steps(now) == ["recolor", "fill"]


def test_a_correction_starts_from_the_picture_before(pair: Conversation) -> None:
    now, _ = talk("make the left one green", "no, the right one", now=pair)
    first, _, second = (pixels(now.image(shown.id)) for shown in now.pictures)
    changed = np.flatnonzero((first != second).any(-1).any(0))
    assert changed.size and changed.min() > 100 and now.pictures[2].parent == now.pictures[0].id


def test_several_pictures_and_the_second_of_them() -> None:
    now, turns = talk("draw three pictures of a fish, 64x64, seed 4", "make the second one purple")
    assert len(turns[0].pictures) == 3 and now.pictures[3].parent == turns[0].pictures[1]
    records = [now.image(id_).info["imagewright"] for id_ in turns[0].pictures]
    assert [record["seed"] for record in records] == [4, 5, 6]


def test_larger_wider_and_clear_need_no_model() -> None:
    now, turns = talk("a cat, 64x64, seed 3", "bigger", "wider", "remove the background")
    assert [shown.size for shown in now.pictures] == [(64, 64), (128, 128), (192, 128), (192, 128)]
    assert steps(now) == ["upscale", "expand", "remove_background"]
    assert turns[1].action == "upscale" and now.pictures[3].action == "remove_background"


def test_style_by_name_and_of_another_picture() -> None:
    now, turns = talk(
        *("a cat in flat style, 64x64", "a dog, 64x64", "like the first one", "in noto style"),
        model="stickers-diffusion",
    )
    styles = [shown.style for shown in now.pictures]
    assert styles[0] == styles[2] == "flat" and styles[3] == "noto"
    assert any("styles by name only" in note for note in turns[2].notes)


def test_a_question_is_answered_and_makes_nothing() -> None:
    now, turns = talk("a cat, 64x64", "what is in the picture?", "what can you do?")
    assert len(now.pictures) == 1 and turns[1].pictures == ()
    assert turns[1].answer.startswith("It was asked for as: a cat. It looks like: ")
    assert "make it blue" in turns[2].answer


def test_a_picture_that_is_brought_along_is_changed() -> None:
    given = Conversation().given(Image.new("RGB", (40, 30), "red"), "mine")
    now, _ = talk("put it on a blue background", now=given)
    assert now.last is not None and now.last.parent == "mine" and now.last.size == (40, 30)
    record = talk("a cat, 64x64")[0]
    again = Conversation().given(record.image(record.pictures[0].id))
    assert again.last is not None and (again.last.shows, again.last.topic) == ("a cat", "cat")


def test_a_model_that_changes_no_pictures_gives_way_and_that_is_said() -> None:
    now, turns = talk("a cat, 64x64", "make it smile", model="stickers-gan")
    assert now.image(now.pictures[0].id).info["imagewright"]["model"] == "stickers-gan"
    assert any("changes no pictures" in note for note in turns[1].notes)


def test_a_failing_later_step_keeps_what_was_made_before() -> None:
    now, _ = talk("a cat, 64x64")
    plan = Plan((Step("upscale", target=now.pictures[0].id), Step("upscale", target=PREVIOUS, how={"factor": 9})), "")
    turn = act(plan, now)
    assert len(turn.pictures) == 1 and "Not done: upscale" in turn.notes[-1]
    with pytest.raises(RequestError):
        act(Plan(plan.steps[1:], ""), now)
    with pytest.raises(RequestError):
        act(Plan((Step("edit", "make it blue", "ig_of_somebody_else"),), ""), now)


def test_a_stopped_turn_leaves_the_conversation_as_it_was() -> None:
    now, stop = talk("a cat, 64x64")[0], Stop()
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        stop.set()

    plan = LocalPlanner().plan("draw a dog and put it on a red background", now)
    with pytest.raises(StoppedError):
        act(plan, now, watch=Watch(progress=progress, stop=stop))
    assert len(told) == 1 and len(now.pictures) == 1
