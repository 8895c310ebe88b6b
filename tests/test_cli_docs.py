"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_current() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "cli_docs.py"))
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == script["page"](), "run: python scripts/cli_docs.py"
