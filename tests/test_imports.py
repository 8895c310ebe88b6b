"""The import graph of the package: imports run one way, and the base install needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import imagewright

SOURCE = Path(imagewright.__file__).parent
_TOP = {"errors", "request", "pictures", "text", "text_encoder", "watch", "source"}
_TRAINING = {"data", "models", "errors", "text", "text_encoder", "pictures", "watch", "source"}
_ENGINE = {
    "request",
    "resampling",
    "data",
    "models",
    "editing",
    "errors",
    "text",
    "text_encoder",
    "pictures",
    "watch",
    "source",
    "config",
}
_MAKING = {"workshop", "engines", "editing", "provenance", "refine", "request", "errors", "pictures", "watch"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "request": {"errors"},
    "pictures": {"errors"},
    "vector": {"errors"},
    "blas": set(),
    "text": {"errors"},
    "text_encoder": set(),
    "watch": {"errors", "source"},
    "config": {"errors"},
    "database": {"errors"},
    "source": set(),
    "resampling": set(),
    "editing": {"request", "errors", "pictures", "resampling", "data", "refine"},
    "quantise": set(),
    "prompt": {"request", "errors"},
    "terminal": {"pictures"},
    "refine": {"request", "errors", "pictures", "text", "text_encoder", "watch", "resampling", "data"},
    "provenance": {"request", "errors", "pictures", "vector"},
    "store": {"request", "errors", "pictures", "database"},
    "data": {"errors", "text", "pictures"},
    "models": {"data", "errors", "text", "text_encoder", "watch", "source"},
    "training": _TRAINING,
    "engines": _ENGINE,
    "export": _TRAINING | _ENGINE | {"quantise", "text_encoder"} | {"training", "engines"},
    "restore": _TRAINING | _ENGINE | {"quantise", "export", "training", "engines"},
    "evaluation": _TRAINING | _MAKING | {"training", "export"},
    "workshop": _MAKING | {"prompt", "vector", "store"},
    "chain": _MAKING | {"resampling"},
    "reproduce": _MAKING | {"chain"},
    "doctor": _MAKING,
    "verbs": _MAKING | {"prompt", "chain"},
    "tools": _MAKING | {"chain", "verbs", "vector"},
    "conversation": _MAKING | {"prompt", "chain", "verbs", "tools", "data", "config"},
    "server": _MAKING
    | _TOP
    | {"config", "database", "store", "verbs", "tools", "chain", "vector", "training", "evaluation", "prompt"}
    | {"conversation"},
}
EXCEPTIONS = {
    ("engines", "training.checkpoint"),  # a trained engine reads checkpoints
}
TORCH_FOLDERS = ("models.", "training.", "evaluation.", "engines.pretrained.")
TORCH_FILES = ("data.batch", "data.loader", "export", "restore", "engines.trained")


def modules() -> dict[str, ast.Module]:
    """Dotted name below the package -> syntax tree."""
    files = sorted(SOURCE.rglob("*.py"))
    names = [".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return {name: ast.parse(file.read_text("utf-8")) for name, file in zip(names, files, strict=True)}


def inner_imports(tree: ast.Module) -> set[str]:
    """Every module of the package that `tree` imports, anywhere in it, as a dotted name below the package."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("imagewright.") for name in found if name.startswith("imagewright.")}


MODULES = modules()


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("__")])
def test_imports_run_one_way(name: str) -> None:
    unit = name.partition(".")[0]
    for imported in inner_imports(MODULES[name]):
        target = imported.partition(".")[0]
        if target == unit or target.startswith("__") or unit.startswith("cli"):
            continue
        excused = any(
            name.startswith(who) and imported.startswith(what) for who, what in EXCEPTIONS if who in (name, unit)
        )
        assert excused or target in MAY_IMPORT[unit], f"{name} imports {imported}"


def test_nothing_imports_the_command_line_or_the_server() -> None:
    for name, tree in MODULES.items():
        unit = name.partition(".")[0]
        for imported in inner_imports(tree):
            target = imported.partition(".")[0]
            assert not target.startswith("cli") or unit.startswith(("cli", "__main__")), name
            assert target != "server" or unit == "server" or unit.startswith("cli"), name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_torch_is_imported_only_where_it_is_needed(name: str) -> None:
    if name.startswith(TORCH_FOLDERS) or name in TORCH_FILES:
        return
    for node in MODULES[name].body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any(module.partition(".")[0] == "torch" for module in names), name


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import imagewright", ("torch", "onnxruntime", "PIL", "numpy")),
        (
            "import imagewright; imagewright.ImageRequest; imagewright.Workshop",
            ("torch", "onnxruntime", "c2pa"),
        ),
        ("import imagewright.engines.embedded", ("torch", "onnxruntime")),
        ("import imagewright.cli", ("torch", "onnxruntime", "c2pa", "cryptography", "rich", "httpx")),
    ],
)
def test_importing_is_cheap(statement: str, absent: tuple[str, ...]) -> None:
    code = f"{statement}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_public_names_are_few_and_all_there() -> None:
    assert len(imagewright.__all__) <= 20
    for name in imagewright.__all__:
        assert getattr(imagewright, name) is not None
    assert set(imagewright._HOME) | {"__version__"} == set(imagewright.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = imagewright.nothing
