"""Trains all weights that ship, in order, in pieces as short as there is time for.

    python recipes/ship.py go BUILD --minutes 9 --from PACKAGES    trains, and stops with all saved when they are over
    python recipes/ship.py status BUILD                            how far it is
    python recipes/ship.py shards BUILD OUT                        what is new, in small files to take elsewhere
    python recipes/ship.py unpack BUILD OUT [OUT ...]              a build folder from those

Give `go` again to go on, on this machine or, after `unpack`, on another: what is done stays done, and what was half
done begins from its averaged weights. `--size toy` runs all of it in minutes on a processor. A stage that fails is
told, and those that need it are left out; the others go on. Each stage is one command of `imagewright`, printed before
it runs.

Needs, besides Python 3.11 and this checkout: torch, numpy, safetensors, tokenizers, pillow, rich, typer, filelock; to
draw the pictures also resvg-py; to export also onnx and onnxruntime. PACKAGES holds the pinned packages of the sticker
set, where there is no network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT / "src"))

RESERVE = {"gpu": 20.0, "toy": 1.0}  # seconds that a stage gets to save before a call's time is over
LEAST = {"gpu": 30.0, "toy": 1.0}  # seconds without which no stage begins
TOY = ["steps=20", "batch=8", "sample_every=20", "heldout_every=10"]
SHIP, DELIVERED, START = "ship.json", "delivered.json", ".start"


@dataclass(frozen=True)
class Stage:
    """`minutes` it may train for, over all calls; `needs`: runs that it works on, by the option that names them;
    `export`: the options of its export, None for a run that is only worked on."""

    name: str
    minutes: float
    needs: tuple[tuple[str, str], ...] = ()
    export: tuple[str, ...] | None = None


# fmt: off
PLAN = (  # in the order of their worth; minutes for one large GPU
    Stage("autoencoder", 4),
    Stage("diffusion", 10, (("--autoencoder", "autoencoder"),), ("--steps", "12", "--sampler", "ancestral", "--guidance", "3", "--rank", "0")),
    Stage("consistency", 3, (("--autoencoder", "autoencoder"), ("--from", "diffusion")), ("--rank", "4")),
    Stage("tokenizer", 2),
    Stage("gan", 2.5, (("--autoencoder", "autoencoder"),), ("--rank", "2")),
    Stage("autoregressive", 2.5, (("--autoencoder", "tokenizer"),),
          ("--rank", "1", "--guidance", "2", "--temperature", "0.7")),
    Stage("vae", 2, (("--autoencoder", "autoencoder"),),
          ("--rank", "3", "--without", "encoder", "--without", "posterior")),
)
# fmt: on
SIZES = {
    "gpu": {"preset": "gpu", "size": 128, "scenes": 12_000, "edits": 24_000, "limit": None},
    "toy": {"preset": "tiny", "size": 32, "scenes": 40, "edits": 40, "limit": 300},
}


class Build:
    """The folder of a build: `data`, a run for each stage, `models`, and SHIP with what became of each."""

    def __init__(self, folder: Path, size: str | None = None) -> None:
        self.folder = folder
        self.record: dict[str, Any] = {"size": size or "gpu", "stages": {}}
        if (folder / SHIP).exists():
            self.record = json.loads((folder / SHIP).read_text("utf-8"))
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def size(self) -> str:
        """gpu or toy."""
        return str(self.record["size"])

    def state(self, name: str) -> str:
        """done, failed, begun or waiting."""
        return str(self.record["stages"].get(name, {}).get("state", "waiting"))

    def mark(self, name: str, state: str, **more: Any) -> None:
        """Remember what became of a stage."""
        self.record["stages"].setdefault(name, {}).update(state=state, **more)
        partial = self.folder / f".{SHIP}"
        partial.write_text(json.dumps(self.record, indent=1) + "\n", "utf-8")
        partial.replace(self.folder / SHIP)

    def used(self, name: str) -> float:
        """Seconds that a stage has trained for, elsewhere too."""
        return float(self.record["stages"].get(name, {}).get("before", 0.0)) + self.latest(name).get("elapsed", 0.0)

    def latest(self, name: str) -> dict[str, Any]:
        """The newest numbers in a run's log."""
        log, found = self.folder / name / "log.jsonl", {}
        if log.exists():
            for line in log.read_text("utf-8").splitlines()[-200:]:
                event = json.loads(line)
                if event["event"] in ("step", "stop", "heldout"):
                    found |= {f"heldout_{k}" if event["event"] == "heldout" else k: v for k, v in event.items()}
        return found


def go(build: Build, deadline: float, data: Path | None, source: Path | None, only: list[str] | None) -> None:
    """Run the stages that are not done, until `deadline`."""
    folder = data or build.folder / "data"
    if data is None and (only is None or "data" in only):
        run(build, "data", data_command(build, folder, source), deadline)
    if not folder.exists():
        return
    for stage in PLAN:
        lacking = [run for _, run in stage.needs if build.state(run) != "done"]
        if (only is None or stage.name in only) and not lacking:
            run(build, stage.name, train_command(build, stage, folder), deadline)
    for stage in PLAN:
        if stage.export is not None and (only is None or "export" in only) and build.state(stage.name) == "done":
            run(build, f"export-{stage.name}", export_command(build, stage), deadline)


def data_command(build: Build, folder: Path, source: Path | None) -> list[str]:
    """Make the sticker set."""
    told = SIZES[build.size]
    options = [part for name in ("size", "scenes", "edits") for part in (f"--{name}", str(told[name]))]
    options += ["--limit", str(told["limit"])] if told["limit"] else []
    return ["data", "stickers", str(folder), *options, *(["--from", str(source)] if source else [])]


def train_command(build: Build, stage: Stage, data: Path) -> list[str]:
    """Train a stage, within what is left of its minutes."""
    out, start = build.folder / stage.name, build.folder / f"{stage.name}{START}"
    before = build.record["stages"].get(stage.name, {}).get("before", 0.0) / 60
    minutes = ["--minutes", f"{max(0.2, stage.minutes - before):.3f}"]
    given = [part for option, run in stage.needs for part in (option, str(build.folder / run))]
    if start.exists() and "--from" not in given:
        given += ["--from", str(start), "--set", "seed=1"]
    if build.size == "toy":
        minutes = [part for change in TOY for part in ("--set", change)]
    preset = str(SIZES[build.size]["preset"])
    return [
        "train",
        "--technique",
        stage.name,
        "--data",
        str(data),
        "--preset",
        preset,
        "--out",
        str(out),
        *given,
        *minutes,
    ]


def export_command(build: Build, stage: Stage) -> list[str]:
    """Write a stage's model for use without torch."""
    name = f"stickers-{stage.name}"
    card = CHECKOUT / "recipes" / f"{name}.md"
    options = [*(stage.export or ()), *(["--card", str(card)] if card.exists() else [])]
    run, out = build.folder / stage.name, build.folder / "models" / name
    out.parent.mkdir(exist_ok=True)
    return ["export", str(run), str(out), "--name", name, "--bits", "4", "--share", *options]


def run(build: Build, name: str, command: list[str], deadline: float) -> None:
    """Run a stage's command unless it is done; ask it to save and stop in time."""
    left = deadline - time.monotonic() - RESERVE[build.size]
    if build.state(name) in ("done", "failed") or left < LEAST[build.size]:
        return
    print(f"\n$ imagewright {' '.join(command)}", flush=True)
    build.mark(name, "begun")
    env = {**os.environ, "PYTHONPATH": f"{CHECKOUT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    began, stopped = time.monotonic(), False
    with (build.folder / f"{name}.log").open("ab") as log:
        child = subprocess.Popen([sys.executable, "-m", "imagewright", *command], stdout=log, stderr=log, env=env)
        try:
            code = child.wait(timeout=left)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            child.send_signal(signal.SIGINT)
            stopped, code = True, child.wait()
    state = "done" if code == 0 else "begun" if stopped else "failed"
    build.mark(name, state)
    print(f"{told(build, name)}  ({time.monotonic() - began:.0f} s)", flush=True)
    if state == "failed":
        print((build.folder / f"{name}.log").read_text("utf-8", "replace")[-1500:], flush=True)


def told(build: Build, name: str) -> str:
    """A line about a stage."""
    now = build.latest(name)
    numbers = [
        f"{key} {now[key]:.4g}" for key in ("step", "loss", "heldout_loss", "psnr", "pictures_per_second") if key in now
    ]
    return "  ".join([f"{name:22}{build.state(name):9}{build.used(name) / 60:6.2f} min", *numbers])


def status(build: Build) -> None:
    """Print a line a stage."""
    exports = [f"export-{stage.name}" for stage in PLAN if stage.export is not None]
    for name in ("data", *(stage.name for stage in PLAN), *exports):
        print(told(build, name))


def shards(build: Build, out: Path, largest: int, files: int, again: bool) -> None:
    """Write the weights that were not written before, a sheet of samples and the record; at most `files` + 3 files."""
    from imagewright.training.shards import digests_in, write_shards

    memory = build.folder / DELIVERED
    known = json.loads(memory.read_text("utf-8")) if memory.exists() and not again else {"steps": {}, "digests": []}
    steps = {s.name: build.latest(s.name).get("step") for s in PLAN if (build.folder / s.name / "config.json").exists()}
    runs = {name: build.folder / name for name, step in steps.items() if known["steps"].get(name, -1) != step}
    written = write_shards(runs, out, largest=largest, at_most=files, known=known["digests"]) if runs else []
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(build.folder / SHIP, out / SHIP)
    used = {name: {**entry, "before": build.used(name)} for name, entry in build.record["stages"].items()}
    (out / SHIP).write_text(json.dumps({**build.record, "stages": used}, indent=1) + "\n", "utf-8")
    sheet(build, out / "samples.png")
    if written:
        known["steps"] |= {name: steps[name] for name in written}
        known["digests"] = sorted({*known["digests"], *digests_in([out])})
        memory.write_text(json.dumps(known) + "\n", "utf-8")
    left = [name for name in runs if name not in written]
    print(f"{out}: {', '.join(written) or 'nothing new'}; left: {', '.join(left) or 'none'}")


def sheet(build: Build, path: Path) -> None:
    """The newest samples of all stages, one below the other."""
    from PIL import Image

    newest = [max(found) for s in PLAN if (found := list((build.folder / s.name / "samples").glob("*.png")))]
    pictures = [Image.open(file, formats=("PNG",)).convert("RGB") for file in newest]
    if pictures:
        whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
        for i, picture in enumerate(pictures):
            whole.paste(picture, (0, sum(p.height for p in pictures[:i])))
        whole.save(path)


def unpack(build: Build, folders: list[Path]) -> None:
    """Put the runs of shards where `go` finds them: as they are if they were done, else as what to begin from."""
    from imagewright.training.shards import read_shards

    record = json.loads((folders[-1] / SHIP).read_text("utf-8"))
    build.record["size"] = record["size"]
    for name in read_shards(folders, build.folder / "unpacked"):
        entry = record["stages"][name]
        target = build.folder / (name if entry["state"] == "done" else f"{name}{START}")
        shutil.rmtree(target, ignore_errors=True)
        (build.folder / "unpacked" / name).rename(target)
        build.mark(name, "done" if entry["state"] == "done" else "begun", before=entry["before"])
    status(build)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    parts = {name: commands.add_parser(name) for name in ("go", "status", "shards", "unpack")}
    for part in parts.values():
        part.add_argument("build", type=Path)
    parts["go"].add_argument("--minutes", type=float, default=60 * 24, help="of this call")
    parts["go"].add_argument("--size", choices=SIZES, help="default: gpu, or what was begun")
    parts["go"].add_argument("--from", dest="source", type=Path, help="a folder with the pinned packages")
    parts["go"].add_argument("--data", type=Path, help="a captioned folder to train on instead of the sticker set")
    parts["go"].add_argument("--only", nargs="+", help="these stages alone; also data and export")
    parts["shards"].add_argument("out", type=Path)
    parts["shards"].add_argument("--largest", type=float, default=15, help="MiB a file")
    parts["shards"].add_argument("--files", type=int, default=4, help="of weights, at most")
    parts["shards"].add_argument("--again", action="store_true", help="also what was written before")
    parts["unpack"].add_argument("shards", type=Path, nargs="+")
    a = parser.parse_args()
    build = Build(a.build, getattr(a, "size", None))
    if a.command == "go":
        go(build, time.monotonic() + 60 * a.minutes, a.data, a.source, a.only)
        status(build)
    elif a.command == "shards":
        shards(build, a.out, int(a.largest * 2**20), a.files, a.again)
    elif a.command == "unpack":
        unpack(build, a.shards)
    else:
        status(build)


if __name__ == "__main__":
    main()
