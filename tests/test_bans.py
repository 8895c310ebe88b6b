"""Calls that could run a stranger's code or trust a stranger's file are nowhere in the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import imagewright

ROOT = Path(imagewright.__file__).parent
FILES = sorted([*ROOT.rglob("*.py"), *(Path(__file__).parents[1] / "scripts").glob("*.py")])
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "numpy.load", "os.system", "os.popen"}


def violations(source: str) -> list[str]:
    """What is banned in `source`, as 'line: what'."""
    tree = ast.parse(source)
    known = _aliases(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: {name}" for name in names if name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in _banned_call(node, known)]
    return found


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Local name -> full dotted name, for imports anywhere in the file."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                known[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            known |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    return known


def _banned_call(node: ast.Call, known: dict[str, str]) -> list[str]:
    parts = ast.unparse(node.func).split(".")
    name = ".".join([known.get(parts[0], parts[0]), *parts[1:]])
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in NAMES or name in CALLS:
        safe = name == "numpy.load" and _is_false(keywords.get("allow_pickle"))
        return [] if safe else [name]
    if name == "PIL.Image.open" and "formats" not in keywords:
        return ["Image.open without formats="]
    if name.startswith("subprocess.") and "shell" in keywords and not _is_false(keywords["shell"]):
        return ["a shell"]
    if "weights_only" in keywords or "trust_remote_code" in keywords:
        return ["a loader that can run code"]
    return []


def _is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_banned(path: Path) -> None:
    assert violations(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from marshal import loads",
        "import torch\ntorch.load('x', weights_only=True)",
        "from torch import load as innocent\ninnocent('x')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.load('x')",
        "eval('1')",
        "exec('1')",
        "from PIL import Image\nImage.open('x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
    ],
)
def test_the_ban_sees(bad: str) -> None:
    assert violations(bad)


def test_the_ban_lets_good_calls_pass() -> None:
    assert violations("import numpy as np\nnp.load('x', allow_pickle=False)\nimport re\nre.compile('x')") == []
