"""The measured tables of model cards and docs, written from reports between markers: no figure is copied by hand.

A marked place is `<!-- measured: NAME -->` ... `<!-- end -->`. A report is kept beside the pictures that it is of, with
what it depends on (the model's weights, the judges, the data, N), and is made again only if one of these changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagewright.data.ledger import manifest_hash
from imagewright.engines.catalog import Catalog
from imagewright.errors import DataError
from imagewright.evaluation import edits, verdicts
from imagewright.evaluation.evaluate import evaluate, plain, save
from imagewright.evaluation.features import Tell
from imagewright.evaluation.metrics import Estimate
from imagewright.refine.judge import Judges

Report = Mapping[str, Any]
SMALL_PRINT = ("FD", "density", "KD ", "reconstruction SSIM")  # in report.json, not in a card; "KD / real" is
MARKED = re.compile(r"(<!-- measured: (?P<name>[\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Measuring:
    """How models are measured: against the sticker set `data`, with `n` pictures and `edits` instructions; what is
    measured stays in `work`/NAME."""

    data: Path
    work: Path
    n: int
    edits: int
    judges: Judges
    catalog: Catalog


@dataclass(frozen=True)
class Places:
    """Where the tables go: `recipes`/NAME.md, its copy `assets`/NAME/README.md, and a `page` of all models, if any."""

    recipes: Path
    assets: Path
    page: Path | None = None


def refresh(
    models: Sequence[str], measuring: Measuring, places: Places, progress: Callable[[str], Tell | None]
) -> list[Path]:
    """Measure `models` and write their tables; returns the files written. `progress`: for a model, what to tell."""
    reports, changed = [], []
    for model in models:
        report = reported(model, measuring, progress(model))
        tables = {"card": card_table(report, measuring.judges)}
        if (found := reported_edits(model, measuring, progress(model))) is not None:
            tables["edits"] = edits_table(found)
        card = places.recipes / f"{model}.md"
        text = written(card.read_text("utf-8"), tables, card.name)
        for path in (card, places.assets / model / "README.md"):
            path.write_text(text, "utf-8")
            changed.append(path)
        reports.append(report)
    if places.page is not None:
        tables = {"side by side": side_by_side(reports, measuring.judges)}
        places.page.write_text(written(places.page.read_text("utf-8"), tables, places.page.name), "utf-8")
        changed.append(places.page)
    return changed


def reported(model: str, measuring: Measuring, told: Tell | None = None) -> Report:
    """The report of `evaluate` for a model, kept with its pictures and sheets."""
    engine, name = measuring.catalog.find(model)
    info, judges, data, n = engine.find(name), measuring.judges, measuring.data, measuring.n
    out = measuring.work / info.name
    out.mkdir(parents=True, exist_ok=True)
    depends = {"digest": info.digest, "judges": judges.version, "data": _manifest(data), "n": n}
    kept = _read(out / "report.json")
    if kept is not None and all(kept.get(key) == value for key, value in depends.items()):
        return kept
    result = evaluate(model, data, out, n=n, judges=judges, catalog=measuring.catalog, costs=False, told=told)
    verdicts.samples(result).save(out / "samples.png")
    verdicts.copies(result).save(out / "copies.png")
    save(result, out)
    return plain(result)


def reported_edits(model: str, measuring: Measuring, told: Tell | None = None) -> Report | None:
    """As `reported`, of the suite of instructions; None for a model that follows none."""
    engine, name = measuring.catalog.find(model)
    info, judges, data, n = engine.find(name), measuring.judges, measuring.data, measuring.edits
    if "instruction" not in info.capabilities.features:
        return None
    out = measuring.work / info.name
    depends = {"digest": info.digest, "judges": judges.version, "data": _manifest(data), "n": n}
    kept = _read(out / "edits.json")
    if kept is not None and kept["of"] == depends:
        return kept
    sides, asked, pictures = edits.evaluate_edits(model, data, n=n, judges=judges, told=told)
    edits.shown(asked, pictures).save(out / "edits.png")
    report = {**edits.plain_values(sides), "of": depends}
    (out / "edits.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return report


def _manifest(data: Path) -> str:
    return manifest_hash((data / "metadata.jsonl").read_text("utf-8").splitlines())


def _read(path: Path) -> Report | None:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def written(text: str, tables: Mapping[str, str], name: str) -> str:
    """`text` with each marked place filled with the table of its name. Raises DataError for a table that is missing,
    and where `text`, of the file `name`, has no marked place."""
    if not MARKED.search(text):
        raise DataError(f"{name} has no place for a table.", "Mark one: <!-- measured: card --> and <!-- end -->")

    def fill(found: re.Match[str]) -> str:
        if found["name"] not in tables:
            raise DataError(f"{name} asks for {found['name']!r}.", f"There are: {', '.join(tables)}.")
        return f"{found[1]}{tables[found['name']]}\n{found[3]}"

    return MARKED.sub(fill, text)


def card_table(report: Report, judges: Judges) -> str:
    """The figures of one model beside those of real pictures and the targets, and what the judges are worth."""
    model, real = _figures(report, "model"), _figures(report, "real")
    column = verdicts.column_of(report["technique"], report["steps"])
    lines = [
        f"| measure ({report['n']} pictures, judges {report['judges']}) | this model | real pictures | target |",
        "|---|---|---|---|",
    ]
    for name in filter(_shown, model):
        row = verdicts.row(name, model[name], real.get(name), None, column)
        verdict = {None: "", True: " reached", False: " missed"}[row.reached]
        lines.append(f"| {name} | {row.model.replace('  ', ' ')} | {row.real} | {row.target}{verdict} |")
    return "\n".join([*lines, "", worth(judges)])


def edits_table(report: Report) -> str:
    """The figures of the suite of instructions beside those of the truth and of doing nothing."""
    sides = {
        side: {name: Estimate(**told) for name, told in found.items()} for side, found in report["figures"].items()
    }
    lines = [f"| {report['of']['n']} instructions | this model | the truth | unchanged |", "|---|---|---|---|"]
    for name, found in sides["model"].items():
        values = [edit_figure(name, sides[side][name].value) for side in ("model", "truth", "unchanged")]
        interval = f" [{edit_figure(name, found.low)}, {edit_figure(name, found.high)}]"
        lines.append(f"| {name} | {values[0]}{interval} | {values[1]} | {values[2]} |")
    return "\n".join(lines)


def side_by_side(reports: Sequence[Report], judges: Judges) -> str:
    """The figures of several models in one table, a column each, and the real pictures'."""
    found = {report["technique"]: _figures(report, "model") for report in reports}
    real = _figures(reports[0], "real")
    lines = [f"| measure | {' | '.join(found)} | real |", f"|---|{'---|' * (len(found) + 1)}"]
    names = dict.fromkeys(name for figures in found.values() for name in figures if _shown(name))
    for name in names:
        cells = [verdicts.figure(name, figures[name]) if name in figures else "–" for figures in found.values()]
        alone = verdicts.row(name, real[name], real[name], None, None).real if name in real else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {alone} |".replace("  ", " "))
    return "\n".join([*lines, "", worth(judges)])


def worth(judges: Judges) -> str:
    """How right the judges are on real pictures that they never saw: no model can be judged better than that."""
    told = [
        f"{part} {name} {100 * found['value']:.0f} %"
        for part, measures in judges.real.items()
        for name, found in measures.items()
    ]
    return f"The judges on real pictures that they never saw: {', '.join(told)}." if told else ""


def edit_figure(name: str, value: float) -> str:
    """A figure of the suite of instructions, as text."""
    return f"{value:.1f} dB" if name.startswith("PSNR") else f"{100 * value:.1f} %"


def _figures(report: Report, side: str) -> dict[str, Estimate]:
    """The figures of a side of a report, with KD / real as in `imagewright evaluate`."""
    told: dict[str, dict[str, Estimate]] = {
        which: {name: Estimate(**_numbers(found)) for name, found in figures.items()}
        for which, figures in report["figures"].items()
    }
    return {"KD / real": verdicts.ratio(told[side], told["real"]), **told[side]}


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float("nan") if value is None else value for name, value in found.items()}


def _shown(name: str) -> bool:
    return name == "KD / real" or (name != "KD" and not name.startswith(SMALL_PRINT))
