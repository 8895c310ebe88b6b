"""Writes docs/cli.md from the commands' own help, so that the two cannot differ (a test checks it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from imagewright.cli import app

DOCS = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """# Commands

Made by `python scripts/cli_docs.py` from the commands' help; do not edit.

Exit codes: 0 good; 1 failed, or pictures differ; 2 the input was wrong; 130 interrupted. Errors are one line
and a fix on stderr; `IMAGEWRIGHT_DEBUG=1` shows the traceback. `NO_COLOR=1` turns colour off.
"""


def page() -> str:
    """The whole page as Markdown."""
    root: Any = typer.main.get_command(app)
    return "\n".join([HEAD, *_sections(root, "imagewright")])


def _sections(command: Any, name: str) -> list[str]:
    children = getattr(command, "commands", {})
    below = [line for child in children.values() for line in _sections(child, f"{name} {child.name}")]
    if children and not command.invoke_without_command:
        return below
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join([name, *(argument.name.upper() for argument in arguments), "[OPTIONS]"])
    lines = [f"## {name}", "", f"`{usage}`", "", command.help.strip(), ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| `{argument.name.upper()}` | {_text(argument)} |" for argument in arguments]
    lines += [f"| `{', '.join([*option.opts, *option.secondary_opts])}` | {_text(option)} |" for option in options]
    return [*lines, "", *below]


def _text(param: Any) -> str:
    default = param.default
    if default in (None, False, "", ()) or param.required:
        return str(param.help)
    return f"{param.help} Default: {default if default is not True else param.opts[0]}."


if __name__ == "__main__":
    DOCS.write_text(page(), encoding="utf-8")
    print(DOCS)
