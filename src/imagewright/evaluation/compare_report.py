"""A comparison as a folder that opens anywhere: index.html (no script, no network), report.png and .json, pictures.

The page follows the reader's light or dark setting and scrolls sideways inside its tables on a narrow screen.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import fmean
from string import Template
from typing import Any

from PIL import Image

from imagewright import __version__
from imagewright.errors import DataError, OutputError
from imagewright.evaluation import plots
from imagewright.evaluation.compare import Entry, caption, sheet_of, table
from imagewright.evaluation.plots import Plot, Series
from imagewright.evaluation.suites import SheetPrompt
from imagewright.pictures import encode, save_atomic

POINTS = 150  # of a curve at most; more are averaged
SETTLED = 0.03  # share of a run whose losses do not set the scale


@dataclass(frozen=True)
class Comparison:
    """All that a report shows. `sweeps`: the same models with other numbers of steps; `runs`: the events of training
    logs by name; `evaluations`: the report.json of `imagewright evaluate` by name; `problems` by model."""

    prompts: Sequence[SheetPrompt]
    entries: Sequence[Entry]
    sweeps: Sequence[Entry] = ()
    runs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


def write(comparison: Comparison, folder: Path) -> None:
    """Write the report into `folder`, replacing one that is there. Raises OutputError."""
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The report cannot go to {folder}: {error.strerror}.", "Name another folder.") from error
    names = _write_pictures(comparison, folder)
    drawn = [*quality(comparison), *(plot for name, log in comparison.runs.items() for plot in training(name, log))]
    save_atomic(page(comparison, names, drawn).encode(), folder / "index.html")
    save_atomic(encode(poster(comparison, drawn), "png"), folder / "report.png")
    told = {
        "software": f"imagewright {__version__}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "prompts": [{"kind": p.kind, "prompt": p.prompt, "style": p.style} for p in comparison.prompts],
        "models": [entry.told() for entry in comparison.entries],
        "sweeps": [entry.told() for entry in comparison.sweeps],
        "evaluations": comparison.evaluations,
        "problems": comparison.problems,
    }
    save_atomic(json.dumps(told, indent=1).encode(), folder / "report.json")


def read_run(run: Path) -> list[dict[str, Any]]:
    """The events of a run's log.jsonl; a half-written last line is left out. Raises DataError where there is none."""
    try:
        lines = (run / "log.jsonl").read_text("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{run} holds no log of a run: {error.strerror}.", "Name the folder of a run.") from error
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def read_evaluations(folder: Path) -> dict[str, Any]:
    """Every report.json in `folder` or one folder below it, by the name of its folder."""
    files = sorted([*folder.glob("report.json"), *folder.glob("*/report.json")])
    return {file.parent.name: json.loads(file.read_text("utf-8")) for file in files}


def training(name: str, log: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """The losses of a run against steps and against hours: of training, and on what was held out."""
    seconds = {e["step"]: e["elapsed"] for e in log if e["event"] == "step" and "elapsed" in e}
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in log:
        if event["event"] in ("step", "heldout") and event["step"] in seconds:
            for key in _losses(event):
                curve = f"held out {key}" if event["event"] == "heldout" else key
                curves.setdefault(curve, []).append((event["step"], event[key]))
    curves = {key: _latest(points) for key, points in curves.items()}
    if not curves:
        return []
    last = max(step for points in curves.values() for step, _ in points)
    settled = [loss for points in curves.values() for step, loss in points if step >= SETTLED * last]
    span = (min(settled), max(settled))
    by_step = [Series(key, _thinned(points), dots="held" in key) for key, points in curves.items()]
    hours = {key: [(seconds[step] / 3600, loss) for step, loss in points] for key, points in curves.items()}
    by_time = [Series(key, _thinned(points), dots="held" in key) for key, points in hours.items()]
    return [
        Plot(f"{name}: loss by step", "step", "loss", by_step, y_range=span),
        Plot(f"{name}: loss by time", "hours", "loss", by_time, y_range=span),
    ]


def quality(comparison: Comparison) -> list[Plot]:
    """How well pictures fit their words against the time that they take: a point a model, a line over its steps."""
    lines: dict[str, list[Entry]] = {entry.label: [] for entry in comparison.entries}
    for entry in comparison.sweeps:
        lines.setdefault(entry.label, []).append(entry)
    for entry in comparison.entries:
        lines[entry.label] = lines[entry.label] or [entry]  # a sweep stands for its model
    series = []
    for label, made in lines.items():
        points = sorted((e.cost.warm, mean, e.steps) for e in made if (mean := e.means["match"]) is not None)
        labels = ["" if steps is None else str(steps) for _, _, steps in points]
        name = f"{label}, by steps" if any(labels) else label
        series.append(Series(name, [(seconds, mean) for seconds, mean, _ in points], dots=True, labels=labels))
    series = [one for one in series if one.points]
    if not series:
        return []
    return [Plot("Fit to the words against time", "seconds a picture", "match, mean", series, log_x=True)]


def poster(comparison: Comparison, drawn: Sequence[Plot]) -> Image.Image:
    """The sheet of pictures with the plots on its right, as one picture."""
    sheet = sheet_of(comparison.entries, comparison.prompts, cell=128)
    panels = [plots.picture(plot) for plot in drawn]
    width, height = plots.WIDTH * 2, plots.HEIGHT * 2
    down = max(1, sheet.height // height)  # plots in a column
    size = (sheet.width + -(-len(panels) // down) * width, max(sheet.height, min(down, len(panels)) * height))
    whole = Image.new("RGB", size, "white")
    whole.paste(sheet, (0, 0))
    for index, panel in enumerate(panels):
        whole.paste(panel, (sheet.width + index // down * width, index % down * height))
    return whole


def page(comparison: Comparison, names: Sequence[Sequence[str]], drawn: Sequence[Plot]) -> str:
    """index.html; `names` are the files of the pictures, by prompt and entry."""
    return _PAGE.substitute(
        software=escape(f"imagewright {__version__}"),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=escape(_machine()),
        count=f"{len(comparison.prompts)} prompts",
        seed=", ".join(sorted({str(entry.seed) for entry in comparison.entries})),
        models=_models(comparison),
        sheet=_sheet(comparison, names),
        plots="\n".join(f"<figure>{plots.svg(plot)}</figure>" for plot in drawn),
        evaluations=_evaluations(comparison.evaluations),
    )


def _models(comparison: Comparison) -> str:
    head, *rows = table(comparison.entries)
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    notes = [
        f"<li>{escape(entry.label)}: {escape(text)}</li>" for entry in comparison.entries for text in entry.adjustments
    ]
    notes += [f"<li>{escape(name)} could not be drawn: {escape(why)}</li>" for name, why in comparison.problems.items()]
    listed = f"<ul>{''.join(notes)}</ul>" if notes else ""
    return f'<div class="wide"><table>{"".join(lines)}</table></div>{listed}'


def _sheet(comparison: Comparison, names: Sequence[Sequence[str]]) -> str:
    head = ["", *(f"{entry.label} ({entry.technique})" for entry in comparison.entries)]
    lines = [_row("th", head)]
    for index, prompt in enumerate(comparison.prompts):
        cells = [f'<th scope="row">{escape(caption(prompt))}<small>{escape(prompt.kind)}</small></th>']
        for entry, name in zip(comparison.entries, names[index], strict=True):
            score = entry.match[index]
            told = "" if score is None else f"<small>match {score:.2f}</small>"
            alt = escape(f"{caption(prompt)}, by {entry.label}", quote=True)
            cells.append(f'<td><img src="{name}" alt="{alt}" width="128" height="128" loading="lazy">{told}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide pictures"><table>{"".join(lines)}</table></div>'


def _evaluations(reports: Mapping[str, Mapping[str, Any]]) -> str:
    if not reports:
        return ""
    figures = {name: report.get("figures", {}).get("model", report) for name, report in reports.items()}
    flat = {name: dict(_numbers(told)) for name, told in figures.items()}
    measures = list(dict.fromkeys(key for numbers in flat.values() for key in numbers))
    lines = [_row("th", ["measure", *flat])]
    lines += [_row("td", [key, *(flat[name].get(key, "-") for name in flat)]) for key in measures]
    return f'<h2>Evaluations</h2><div class="wide"><table>{"".join(lines)}</table></div>'


def _numbers(report: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Every number in a report with its path of keys, an estimate {value, low, high} as one."""
    for key, value in report.items():
        path = f"{before} {key}".strip()
        if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
            between = "" if value["low"] is None else f" ({value['low']:.4g} to {value['high']:.4g})"
            yield path, f"{value['value']:.4g}{between}"
        elif isinstance(value, Mapping):
            yield from _numbers(value, path)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(cell: str, values: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(value)}</{cell}>' for value in values)}</tr>"


def _write_pictures(comparison: Comparison, folder: Path) -> list[list[str]]:
    names: list[list[str]] = []
    for row in range(len(comparison.prompts)):
        names.append([])
        for column, entry in enumerate(comparison.entries):
            name = f"pictures/{row:02}-{column:02}.png"
            save_atomic(encode(entry.pictures[row], "png"), folder / name)
            names[-1].append(name)
    return names


def _losses(event: Mapping[str, Any]) -> list[str]:
    """What to plot of a step: `loss`, or where phases have losses of their own, those."""
    own = [key for key in event if key == "loss" or key.endswith("/loss")]
    return [key for key in own if isinstance(event[key], int | float)][:4]


def _latest(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """One value a step: a run that went on from a checkpoint told some steps twice."""
    return sorted(dict(points).items())


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS points, each the mean of its neighbours."""
    width = -(-len(points) // POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def _machine() -> str:
    return f"{platform.system()} on {platform.machine()}, Python {platform.python_version()}"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>One request, several techniques</title>
<style>
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #666; --line: #ddd; --page: #fff; --tile: #f4f4f4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #a0a0a0; --line: #3a3a3a; --page: #161616; --tile: #fff }
}
body { margin: 0 auto; padding: 1rem; max-width: 75rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--page) }
h1, h2 { line-height: 1.2 }
p, small { color: var(--soft) }
small { display: block; font-weight: normal; font-size: .75rem }
.wide { overflow-x: auto }
table { border-collapse: collapse }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
td { font-variant-numeric: tabular-nums }
.pictures th[scope=row] { position: sticky; left: 0; background: var(--page); width: 7rem; min-width: 6rem }
.pictures img { display: block; background: var(--tile); border-radius: 6px }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem }
figure { margin: 0 }
svg { width: 100%; height: auto }
</style>
</head>
<body>
<h1>One request, several techniques</h1>
<p>$count, seed $seed for every picture, none picked. Drawn by $software on $created, $machine. Cold: from the start of
a new process to its first picture; warm: the median of the later ones; memory: the most that the process held. Match:
the probability, by a judge of our own, that the picture fits its words; style: that it has the style asked for.</p>
<h2>Models</h2>
$models
<h2>Pictures</h2>
$sheet
<h2>Curves</h2>
<p>Losses of different techniques measure different things: compare the shapes, not the values.</p>
<div class="plots">
$plots
</div>
$evaluations
</body>
</html>
""")
