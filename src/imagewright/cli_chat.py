"""`imagewright chat`: pictures made and changed in a conversation, in the terminal or line by line from a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagewright import cli_options as opt
from imagewright.cli_output import Target, note, progress_bar, say, say_error, slug, table
from imagewright.cli_results import inline, utf8
from imagewright.errors import ImagewrightError, RequestError, StoppedError
from imagewright.pictures import open_picture, read_bytes, save_numbered

if TYPE_CHECKING:
    from imagewright.conversation.planner import Planner
    from imagewright.conversation.state import Conversation
    from imagewright.workshop import Workshop

PROMPT = "> "
HELP = """Say what to draw, then what to change: a red fox / make it blue / add a hat / undo / three more / bigger.
/list          the pictures so far
/open N|FILE   go on with picture N, or with a file
/save FILE     write the present picture under another name (.png, .jpg, .webp)
/undo  /redo   back and forth
/model NAME    draw with another model (see: imagewright models)
/help  /quit   Ctrl-C stops a picture, Ctrl-D ends"""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(chat)


def chat(
    pictures: Annotated[list[Path] | None, typer.Argument(help="Pictures to begin with.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder that the pictures are written to.")] = Path("."),
    model: opt.Model = None,
    planner: Annotated[
        str | None,
        typer.Option(
            help="Who understands your words: local (rules), or the address of a chat model, https://HOST/v1. Default: "
            "the one in the configuration, else local."
        ),
    ] = None,
    no_metadata: opt.NoMetadata = False,
    quiet: opt.Quiet = False,
) -> None:
    """Make and change pictures in a conversation: "a cat", then "make it blue", then "undo".

    Each picture is written to the folder and kept; "the first one" or /open 1 goes back to it. From a pipe, each line
    is a turn. /help lists the commands.
    """
    from imagewright.workshop import Workshop

    target = Target.parse(out, None, 1) if out.is_dir() else _no_folder(out)
    talk = _Talk(Workshop(say=note), _planner(planner), target.folder, model, not no_metadata, quiet)
    for picture in pictures or []:
        talk.open(str(picture))
    if not talk.run():
        raise typer.Exit(1)


def _no_folder(out: Path) -> Target:
    raise RequestError(f"There is no folder {str(out)!r}.", "Make it first, or write elsewhere with --out.")


def _planner(named: str | None) -> Planner:
    from imagewright import config
    from imagewright.conversation.local import LocalPlanner
    from imagewright.conversation.remote import RemotePlanner, configured

    if named == "local":
        return LocalPlanner()
    section = config.read().section("planner")
    found = configured(section)
    if named is None or (isinstance(found, RemotePlanner) and found.base_url == named.rstrip("/")):
        return found
    return RemotePlanner(named, str(section.get("model", "default")))


class _Quit(Exception):
    """The user has had enough."""


@dataclass
class _Talk:
    """One conversation in the terminal."""

    workshop: Workshop
    planner: Planner
    folder: Path
    model: str | None
    with_metadata: bool
    quiet: bool
    files: dict[str, Path] = field(default_factory=dict)  # where each picture was written, by id
    conversation: Conversation = field(init=False)

    def __post_init__(self) -> None:
        from imagewright.conversation.state import Conversation

        self.conversation = Conversation()

    @property
    def commands(self) -> dict[str, Callable[[str], None]]:
        """What begins with a slash."""
        return {
            "help": lambda _: say(HELP),
            "quit": self._quit,
            "exit": self._quit,
            "list": lambda _: self._list(),
            "undo": lambda _: self.turn("undo"),
            "redo": lambda _: self.turn("redo"),
            "open": self.open,
            "save": self._save_as,
            "model": self._change_model,
        }

    def run(self) -> bool:
        """Take turns until the lines end; whether each of them succeeded."""
        interactive, good = sys.stdin.isatty(), True
        if interactive:
            _with_history()
            say("Say what to draw. /help lists the commands, Ctrl-D ends.")
        for line in _lines(interactive):
            try:
                self._take(line.strip())
            except _Quit:
                break
            except StoppedError:
                note("stopped; nothing was changed")
            except ImagewrightError as error:
                say_error(error)
                good = False
        return good or interactive

    def _take(self, line: str) -> None:
        if not line:
            return
        if not line.startswith("/"):
            self.turn(utf8(line))
            return
        name, _, rest = line[1:].partition(" ")
        command = self.commands.get(name.lower())
        if command is None:
            raise RequestError(f"There is no command /{name}.", "See /help.")
        command(rest.strip())

    def turn(self, words: str) -> None:
        """What the words mean, said and done."""
        from imagewright.conversation.acting import act
        from imagewright.watch import Stop, Watch

        styles = _styles(self.workshop, self.model)
        plan = self.planner.plan(words, self.conversation, styles)
        if any(step.action != "answer" for step in plan.steps) and not self.quiet:
            say(plan.understood)
        stop = Stop()
        with _stopping(stop), progress_bar("drawing", shown=not self.quiet) as progress:
            watch = Watch(progress=progress, stop=stop)
            turn = act(plan, self.conversation, self.workshop, watch, said=words, model=self.model)
        before, self.conversation = self.conversation, self.conversation.then(turn)
        for line in turn.notes:
            note(line)
        if turn.answer != plan.understood:
            say(turn.answer)
        new = {shown.id for shown in self.conversation.pictures} - {shown.id for shown in before.pictures}
        for shown in self.conversation.pictures:
            if shown.id in new:
                self._write(shown.id)
        for id_ in turn.pictures:
            self._show(id_)

    def _write(self, id_: str) -> None:
        """A picture to its file, with its record and the credential."""
        from imagewright.provenance.seal import seal

        shown, image = self.conversation.picture(id_), self.conversation.image(id_)
        record = image.info["imagewright"]
        parents = [read_bytes(self.files[shown.parent])] if shown.parent in self.files else []
        sealed = seal(image, record, with_metadata=self.with_metadata, parents=parents)
        if sealed.warning:
            note(sealed.warning)
        suffix = "jpg" if record["output_format"] == "jpeg" else record["output_format"]
        name = f"{self.conversation.number(id_):02d}-{slug(shown.made_by or shown.action)}"
        self.files[id_] = save_numbered(sealed.data, self.folder / f"{name}.{suffix}")

    def _show(self, id_: str) -> None:
        image = self.conversation.image(id_)
        if sys.stdout.isatty() and not self.quiet and (how := inline()) is not None:
            sys.stdout.write(how(image))
        say(str(self.files[id_]) if self.quiet else self._told(id_))

    def _told(self, id_: str) -> str:
        width, height = self.conversation.picture(id_).size
        return f"{self.conversation.number(id_)}  {self.files[id_]}  {width}x{height}"

    def open(self, which: str) -> None:
        """Go on with an earlier picture, or with a file. Raises RequestError, PictureError."""
        from imagewright.editing.masks import upright
        from imagewright.provenance import metadata

        if which.isdigit() and (shown := self.conversation.find(f"picture {which}")) is not None:
            self.conversation = self.conversation.shows(shown.id)
            self._show(shown.id)
            return
        if which.isdigit() or not which:
            raise RequestError(f"There is no picture {which}.".replace("  ", " "), "See /list.")
        found = open_picture(Path(which))
        image = upright(found)
        if record := metadata.read(found).record:
            image.info["imagewright"] = record
        self.conversation = self.conversation.given(image)
        last = self.conversation.past[-1]
        self.files[last] = Path(which)
        self._show(last)

    def _list(self) -> None:
        if not self.conversation.pictures:
            say("There is no picture yet.")
            return
        last = self.conversation.last
        rows: list[tuple[str, ...]] = [("", "NO", "FROM", "SIZE", "FILE", "WHAT")]
        for number, shown in enumerate(self.conversation.pictures, 1):
            parent = str(self.conversation.number(shown.parent)) if shown.parent else ""
            size, mark = "x".join(map(str, shown.size)), ">" if shown == last else ""
            rows.append((mark, str(number), parent, size, str(self.files[shown.id]), shown.made_by or shown.shows))
        table(rows)

    def _save_as(self, name: str) -> None:
        """The present picture under another name and perhaps in another format."""
        from imagewright.chain import stored_as
        from imagewright.provenance.seal import seal
        from imagewright.request import ImageResult

        last = self.conversation.last
        if last is None or not name:
            raise RequestError("There is nothing to save." if name else "Save it under which name?", "/save FILE")
        target = Target.parse(Path(name), None, 1)
        image = self.conversation.image(last.id).copy()
        record: dict[str, Any] = dict(image.info.get("imagewright") or {})
        if not record:
            raise RequestError("This picture is a file already.", f"It is {self.files[last.id]}.")
        result = ImageResult(images=(image,), records=(record,), model="", engine="", size=image.size)
        stored = stored_as(result, target.output_format)
        parents = [read_bytes(self.files[last.id])]
        sealed = seal(stored[0], stored.records[0], with_metadata=self.with_metadata, parents=parents)
        say(str(target.save(sealed.data, dict(stored.records[0]))))

    def _change_model(self, name: str) -> None:
        self.workshop.catalog.find(name or None)
        self.model = name or None
        say(f"drawing with {name or 'the default model'}")

    def _quit(self, _: str) -> None:
        raise _Quit


def _styles(workshop: Workshop, model: str | None) -> tuple[str, ...]:
    """The styles of the model that draws."""
    engine, name = workshop.catalog.find(model)
    return engine.find(name).capabilities.styles


def _lines(interactive: bool) -> Iterator[str]:
    """What the user says, line by line; Ctrl-C at the prompt only clears the line."""
    if not interactive:
        yield from sys.stdin
        return
    while True:
        try:
            yield input(PROMPT)
        except KeyboardInterrupt:
            say("")
        except EOFError:
            say("")
            return


def _with_history() -> None:
    """Arrow keys, where the system has them."""
    try:
        import readline  # noqa: F401
    except ImportError:  # on Windows, whose console has its own
        return


@contextmanager
def _stopping(stop: Any) -> Iterator[None]:
    """Ctrl-C stops the picture and not the program; a second one interrupts at once."""

    def handler(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise StoppedError("The work was stopped.")
        stop.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
