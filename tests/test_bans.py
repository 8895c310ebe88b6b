"""Calls that could run a stranger's code, trust a stranger's file, or write a stranger's words into SQL or a log, are
nowhere in the package."""

from __future__ import annotations

import ast
import re
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


SQL = re.compile(r"\b(select\s.+\sfrom|insert\s+into|update\s.+\sset|delete\s+from|drop\s+table|where\s)", re.I | re.S)
LOGS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
TOLD = {
    "headers",
    "body",
    "authorization",
    "token",
    "reveal",
    "admin_key",
    "query_params",
    "cookies",
    "prompt",
    "scope",
}
CLIENT = {"http", "request", "body", "caller", "scope"}  # what a route has of its client
OPENS = {"open", "Path", "read_bytes", "read_text", "write_bytes", "write_text", "unlink", "rmtree", "mkdir", "listdir"}


def of_server(source: str) -> list[str]:
    """What is banned where strangers' words come in: SQL put together from text, paths from a request, logs of it."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            constant = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
            if SQL.search(constant) and not _is_of_constants(node):
                found.append(f"{node.lineno}: SQL in an f-string")
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.Add):
            if isinstance(node.left, ast.Constant) and isinstance(node.left.value, str) and SQL.search(node.left.value):
                found.append(f"{node.lineno}: SQL put together")
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in _banned_at_the_door(node)]
    return found


def _banned_at_the_door(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    last = name.rpartition(".")[2]
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    words = {part for one in given for part in _names(one)}
    if last == "format" and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Constant):
        return ["SQL put together"] if SQL.search(str(node.func.value.value)) else []
    if last in ("text", "exec_driver_sql", "literal_column") and given and not _is_of_constants(given[0]):
        return ["SQL that is no constant"]
    if last in LOGS and name.partition(".")[0] in ("log", "logger", "logging", "warnings") and words & TOLD:
        return ["a log of what a client sent"]
    if (last in OPENS or name in ("os.path.join", "os.remove", "shutil.copy")) and words & CLIENT:
        return ["a path of a client's"]
    if last == "print":
        return ["print"]
    return []


def _names(node: ast.AST) -> set[str]:
    inside = list(ast.walk(node))
    return {one.id for one in inside if isinstance(one, ast.Name)} | {
        one.attr for one in inside if isinstance(one, ast.Attribute)
    }


def _is_of_constants(node: ast.AST) -> bool:
    """Whether a text is made of constants only: literals, and NAMES written like this."""
    if isinstance(node, ast.JoinedStr):
        return all(isinstance(part, ast.Constant) or _is_of_constants(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _is_of_constants(node.value)
    if isinstance(node, ast.IfExp):
        return _is_of_constants(node.body) and _is_of_constants(node.orelse)
    if isinstance(node, ast.Name):
        return node.id.isupper()
    return isinstance(node, ast.Constant)


DOORS = sorted([*(ROOT / "server").rglob("*.py"), *(ROOT / name for name in ("store.py", "database.py"))])


@pytest.mark.parametrize("path", DOORS, ids=lambda path: path.stem)
def test_nothing_banned_at_the_door(path: Path) -> None:
    assert of_server(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "bad",
    [
        'connection.execute(sa.text(f"SELECT * FROM keys WHERE id = {key}"))',
        "sql = f\"select id from keys where token = '{token}'\"",
        'sql = "SELECT * FROM keys WHERE id = %s" % key',
        'sql = "SELECT * FROM keys WHERE id = " + key',
        'sql = "DELETE FROM keys WHERE id = {}".format(key)',
        "connection.execute(sa.text(statement))",
        "connection.exec_driver_sql(body.statement)",
        "os.path.join(root, request.path_params['name'])",
        "open(http.query_params['file'])",
        "Path(body.name).read_bytes()",
        "(root / 'x').write_bytes(open(body.path).read())",
        "log.warning('refused %s', request.headers)",
        "log.error(f'wrong key {token}')",
        "logging.info('%s', body)",
        "log.debug('key %s', key.reveal())",
        "print('x')",
    ],
)
def test_the_ban_at_the_door_sees(bad: str) -> None:
    assert of_server(bad)


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
