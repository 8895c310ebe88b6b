"""Does what a plan says, with the verbs and tools that work on pictures: the stack of edits and the records are theirs.

Going back gives the earlier picture itself, not one that is made again. What a step cannot do as it was meant is done
in the nearest way, and said in the turn's notes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from imagewright import tools, verbs
from imagewright.conversation import changes
from imagewright.conversation.changes import Change
from imagewright.conversation.planner import PREVIOUS, Plan, Step
from imagewright.conversation.state import Conversation, Shown, Turn, new_id
from imagewright.conversation.which import mask_of
from imagewright.conversation.words import hex_of, things
from imagewright.engines.catalog import DEFAULT_ENGINE
from imagewright.errors import ImagewrightError, RequestError, StoppedError, UnsupportedError
from imagewright.refine.describe import Caption
from imagewright.request import Adjustment, ImageRequest, ImageResult
from imagewright.watch import Progress, Stop, Tracer, Watch
from imagewright.workshop import Workshop

_NOT_OF_EDITS = ("size", "aspect")  # a change keeps the picture's size


class Watched(Workshop):
    """A workshop all of whose pictures are looked on by one watch, also those that a verb makes."""

    def __init__(self, workshop: Workshop, watch: Watch) -> None:
        super().__init__(workshop.catalog, workshop.judges, watch.say or workshop.say)
        self.workshop, self.watch = workshop, watch

    def make(
        self,
        request: ImageRequest,
        progress: Progress | None = None,
        trace: Tracer | None = None,
        stop: Stop | None = None,
    ) -> ImageResult:
        """As Workshop.make, by the workshop that it stands for."""
        watch = replace(
            self.watch,
            progress=progress or self.watch.progress,
            trace=trace or self.watch.trace,
            stop=stop or self.watch.stop,
        )
        (done,) = self.workshop.make_many([request], [watch])
        if isinstance(done, Exception):
            raise done
        return done


@dataclass(frozen=True)
class Done:
    """What is to be said of one step: an answer, adjustments."""

    answer: str = ""
    notes: tuple[str, ...] = ()


def act(
    plan: Plan,
    conversation: Conversation,
    workshop: Workshop | None = None,
    watch: Watch | None = None,
    *,
    said: str = "",
    model: str | None = None,
    alone: bool = False,
    mask: Image.Image | None = None,
    ids: Sequence[str] = (),
) -> Turn:
    """What comes of a plan: `conversation.then` of it is the conversation afterwards. `model` draws; where it changes
    no pictures another does, unless it shall do it `alone`. `mask` says where a change may be (transparent), and `ids`
    are for the pictures of the last step.

    Where a later step fails, the turn has what the steps before it made, and says so. Raises RequestError, ModelError,
    PictureError, ProviderError, StoppedError.
    """
    watch = watch or Watch()
    worker = _Worker(conversation, Watched(workshop or verbs.shared(), watch), model, alone, mask)
    final = max((index for index, step in enumerate(plan.steps) if step.action != "answer"), default=0)
    notes, answers, last = list(plan.doubts), list[str](), Step("answer")
    for index, step in enumerate(plan.steps):
        watch.check()
        worker.ids = list(ids) if index == final else []
        try:
            done = worker.do(step)
        except StoppedError:
            raise
        except ImagewrightError as error:
            if not worker.made:
                raise
            notes.append(f"Not done: {step.words or step.action}. {error}")
            break
        last = step
        notes += done.notes
        answers += [done.answer] if done.answer else []
    return Turn(
        said,
        plan.to_json(),
        tuple(shown.id for shown in worker.current),
        " ".join(answers) or plan.understood,
        tuple(dict.fromkeys(notes)),
        tuple(shown for shown in worker.made if shown.id in worker.images),
        worker.images,
        last.action,
    )


class _Worker:
    """Does the steps of one plan, one after the other."""

    def __init__(
        self,
        conversation: Conversation,
        workshop: Watched,
        model: str | None,
        alone: bool,
        mask: Image.Image | None,
    ) -> None:
        self.conversation, self.workshop, self.model = conversation, workshop, model
        self.alone, self.mask = alone, mask
        self.ids: list[str] = []  # for the pictures of the present step
        self.made: list[Shown] = []  # by all steps
        self.current: tuple[Shown, ...] = ()  # by the last one
        self.images: dict[str, Image.Image] = {}

    def do(self, step: Step) -> Done:
        """One step. Raises what its verb raises."""
        if step.action == "answer":
            return Done(answer=step.words or self._described(step))
        if step.action == "undo":
            self.current = (self._target(step),)
            self.made += self.current
            return Done()
        parent = None if step.action == "generate" else self._target(step)
        result = _DO[step.action](self, step)
        self.current = tuple(self._shown(step, parent, image) for image in result.images)
        self.images |= {shown.id: image for shown, image in zip(self.current, result.images, strict=True)}
        self.made += self.current
        return Done(notes=tuple(map(str, result.adjustments)))

    def _shown(self, step: Step, parent: Shown | None, image: Image.Image) -> Shown:
        record = image.info.get("imagewright") or {}
        edits = record.get("edits", {}).get("steps") or [{}]
        style = step.fields.get("style") or edits[-1].get("style") or record.get("style")
        id_, from_ = self.ids.pop(0) if self.ids else new_id(), None
        if parent is not None:
            from_, style = parent.id, style or parent.style
        return Shown(id_, from_, step.action, step.words, step.shows, step.topic, image.size, style)

    def _target(self, step: Step) -> Shown:
        if step.target == PREVIOUS and self.current:
            return self.current[0]
        shown = (
            self.conversation.last if step.target in (None, PREVIOUS) else self.conversation.picture(step.target or "")
        )
        if shown is None:
            raise RequestError("There is no picture yet.", "Say what to draw first.")
        return shown

    def _image(self, shown: Shown) -> Image.Image:
        return self.images[shown.id] if shown.id in self.images else self.conversation.image(shown.id)

    def generate(self, step: Step) -> ImageResult:
        """A new picture, perhaps in the style of one that is there."""
        fields: dict[str, Any] = {"prompt": step.words, "model": self.model, **step.fields}
        if "like" in step.how:
            style, said = self._style_of(step.how["like"], "style_images")
            result = self.workshop.make(ImageRequest(**{**fields, **style}))
            return replace(result, adjustments=(*said, *result.adjustments))
        return self.workshop.make(ImageRequest(**fields))

    def edit(self, step: Step) -> ImageResult:
        """A change by an instruction. What a tool does exactly, a model of ours need not guess at."""
        shown = self._target(step)
        image, (fields, said) = self._image(shown), self._fields(step)
        if self.mask is not None:
            return _noted(verbs.edit(image, step.words, mask=self.mask, **fields), said)
        change = changes.read(step.words, shown.topic, things(shown.shows))
        if change is not None and (step.how.get("where") or self._ours()):
            try:
                if result := self._exact(change, step, image, fields):
                    kept = Adjustment("edit", step.words, result.records[0]["verb"], "in its place; all else is kept")
                    return _noted(result, [*(one for one in said if one.field != "model"), kept])
            except RequestError as error:
                said.append(Adjustment("edit", "in its place", "drawn by the model", error.message))
        words = step.words
        if verbs.able(self.workshop.catalog, fields, "image", "instruction") is None:
            words = step.shows or words  # the model wants to know what the whole shows
        return _noted(verbs.edit(image, words, **fields), said)

    def _exact(self, change: Change, step: Step, image: Image.Image, fields: dict[str, Any]) -> ImageResult | None:
        """A colour, a background or a removal without a model, or what comes in the place of one of several things;
        None where it takes a model to do it. Raises RequestError where the thing is not found."""
        where = step.how.get("where")
        place = {"mask": mask_of(image, change.thing, str(where))} if where else {"select": change.thing}
        if change.kind == "colour" and (colour := hex_of(change.value)):
            return tools.recolor(image, colour, **place)
        if change.kind == "background" and (colour := hex_of(change.value)):
            return tools.set_background(image, colour)
        if change.kind == "remove":
            return verbs.fill(image, None, workshop=self.workshop, **place)
        if where and change.kind == "replace":
            return verbs.fill(image, change.value, **place, **fields)
        return None

    def _ours(self) -> bool:
        """Whether one of the models that ship would draw."""
        return self.workshop.catalog.find(self.model)[0].name == DEFAULT_ENGINE

    def vary(self, step: Step) -> ImageResult:
        """The picture again, a little different; where the model takes no pictures, another from the same words."""
        shown, fields = self._target(step), self._all(step)
        if verbs.able(self.workshop.catalog, fields, "image") is not None:
            return verbs.vary(self._image(shown), shown.shows or None, strong=bool(step.how.get("strong")), **fields)
        said = Adjustment("vary", "the picture", "its words", "the chosen model takes no pictures")
        return _noted(self.generate(replace(step, words=shown.shows or shown.made_by, how={})), [said])

    def restyle(self, step: Step) -> ImageResult:
        """The picture in a style of the model's, or in that of another picture."""
        shown = self._target(step)
        fields, said = self._all(step), list[Adjustment]()
        if "like" in step.how:
            style, said = self._style_of(step.how["like"], "image", "style_images")
            fields |= {"like": style["style_images"][0]} if "style_images" in style else style
            if not style:
                raise UnsupportedError(
                    "This model takes no style from a picture.", "Name one of its styles, for example: in flat style"
                )
        return _noted(verbs.restyle(self._image(shown), shown.shows or None, **fields), said)

    def upscale(self, step: Step) -> ImageResult:
        """The picture larger, with no model."""
        return verbs.upscale(
            self._image(self._target(step)), int(step.how.get("factor", 2)), workshop=self.workshop, **_output(step)
        )

    def expand(self, step: Step) -> ImageResult:
        """The picture on a larger canvas."""
        sides = {name: step.how[name] for name in ("left", "right", "up", "down", "zoom_out") if name in step.how}
        return verbs.expand(self._image(self._target(step)), None, workshop=self.workshop, **sides, **_output(step))

    def remove_background(self, step: Step) -> ImageResult:
        """The thing alone; by the model where the background is not plain."""
        image = self._image(self._target(step))
        try:
            return tools.remove_background(image)
        except RequestError as error:
            said = Adjustment("remove_background", "cut out", "drawn by the model", error.message)
            return _noted(verbs.edit(image, "remove the background", **self._all(step)), [said])

    def _described(self, step: Step) -> str:
        """What a picture shows, as the judges see it, and what it was made as."""
        shown = self._target(step)
        captions: list[Caption] = tools.describe(self._image(shown), 3)
        seen = "; ".join(f"{caption.text} ({caption.score:.0%})" for caption in captions)
        made = f"It was asked for as: {shown.shows}. " if shown.shows else ""
        return f"{made}It looks like: {seen}."

    def _all(self, step: Step) -> dict[str, Any]:
        """The request's fields of a step, with the workshop and the model."""
        return {"workshop": self.workshop, **({"model": self.model} if self.model else {}), **step.fields}

    def _fields(self, step: Step) -> tuple[dict[str, Any], list[Adjustment]]:
        """Those of a change, which keeps the size; another model does it where the chosen one takes no pictures."""
        fields = {name: value for name, value in self._all(step).items() if name not in _NOT_OF_EDITS}
        said = [
            Adjustment(name, step.fields[name], None, "a change keeps the picture's size")
            for name in _NOT_OF_EDITS
            if name in step.fields
        ]
        if self.model and not self.alone and verbs.able(self.workshop.catalog, fields, "image") is None:
            fields.pop("model")
            other = verbs.able(self.workshop.catalog, {}, "image", "instruction")
            said.append(Adjustment("model", self.model, other, "the chosen model changes no pictures"))
        return fields, said

    def _style_of(self, id_: str, *needs: str) -> tuple[dict[str, Any], list[Adjustment]]:
        """What makes a picture look like another: that picture, where the model takes one, else its style by name."""
        like = self.conversation.picture(id_)
        fields = {"model": self.model} if self.model else {}
        if verbs.able(self.workshop.catalog, fields, *needs) is not None:
            return {"style_images": (self._image(like),)}, []
        if like.style:
            said = Adjustment("style_images", "a picture", like.style, "the model takes styles by name only")
            return {"style": like.style}, [said]
        said = Adjustment("style_images", "a picture", None, "the model takes no style from a picture")
        return {}, [said]


def _noted(result: ImageResult, said: list[Adjustment]) -> ImageResult:
    return replace(result, adjustments=(*said, *result.adjustments)) if said else result


def _output(step: Step) -> dict[str, Any]:
    return {name: step.fields[name] for name in ("output_format",) if name in step.fields}


_DO: dict[str, Callable[[_Worker, Step], ImageResult]] = {
    "generate": _Worker.generate,
    "edit": _Worker.edit,
    "vary": _Worker.vary,
    "restyle": _Worker.restyle,
    "upscale": _Worker.upscale,
    "expand": _Worker.expand,
    "remove_background": _Worker.remove_background,
}
