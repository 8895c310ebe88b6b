"""Models side by side: what is chosen, measured, scored, drawn and reported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagewright.engines.catalog import Catalog, Listing
from imagewright.errors import DataError, ModelError, ModelNotFoundError, OutputError
from imagewright.evaluation import compare, plots
from imagewright.evaluation import compare_report as report
from imagewright.evaluation.compare import Entry
from imagewright.evaluation.measure import Cost, measure, peak_bytes
from imagewright.evaluation.suites import COMPARE_24, SheetPrompt
from imagewright.pictures import open_picture

PROMPTS = (SheetPrompt("seen name", "red <apple>"), SheetPrompt("style", "owl", "flat"))
COST = Cost(1.5, 0.25, 300_000_000)


class Judge:
    """Redness is the match; the style is noto for .8."""

    labels: dict[str, list[Any]] = {"styles": ["flat", "noto"]}  # noqa: RUF012

    def match(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        assert len(pictures) == len(prompts)
        return np.array([picture.convert("RGB").getpixel((0, 0))[0] / 255 for picture in pictures])

    def identify(self, pictures: Sequence[Image.Image]) -> Mapping[str, Any]:
        return {"style": np.array([[0.2, 0.8]] * len(pictures))}


def drawn(requests: Sequence[Mapping[str, Any]]) -> tuple[list[Image.Image], list[dict[str, Any]], Cost]:
    """Stands for a process: the seed is the redness, and a model called opaque fails."""
    if requests[0]["model"] == "fake/opaque":
        raise ModelError("it broke", "mend it")
    told = {"field": "steps", "requested": 4, "used": None, "reason": "no steps"}
    pictures = [Image.new("RGBA", (8, 8), (request["seed"], 0, 0, 255)) for request in requests]
    return pictures, [{"adjustments": [told]} for _ in requests], COST


def made(**changes: Any) -> Entry:
    red, blue = Image.new("RGBA", (8, 8), "red"), Image.new("RGBA", (8, 8), "blue")
    fields: dict[str, Any] = {
        "label": "first",
        "technique": "gan",
        "parameters": 12_300_000,
        "size_bytes": 4_500_000,
        "cost": COST,
        "pictures": (red, blue),
        "match": (1.0, 0.5),
        "style": (None, 0.8),
        "seed": 3,
    }
    return Entry(**{**fields, **changes})


def test_24_prompts_are_four_of_each_kind() -> None:
    assert len(set(COMPARE_24)) == 24
    kinds = [p.kind for p in COMPARE_24]
    assert all(kinds.count(kind) == 4 for kind in kinds)


def catalog_of(*techniques: str) -> Catalog:
    models = [SimpleNamespace(name=f"{name}-{i}", technique=name) for i, name in enumerate(techniques)]
    catalog = Catalog()
    catalog.listings = lambda: [Listing("fake", tuple(models))]  # type: ignore[method-assign, arg-type]
    return catalog


def test_all_techniques_means_the_first_model_of_each_and_one_means_all_of_it() -> None:
    catalog = catalog_of("gan", "diffusion", "gan", "odd")
    assert compare.models_of(catalog, "all") == (
        {"gan-0": "fake/gan-0", "diffusion-1": "fake/diffusion-1"},
        ["vae", "autoregressive"],
    )
    assert list(compare.models_of(catalog, "gan")[0].values()) == ["fake/gan-0", "fake/gan-2"]
    with pytest.raises(ModelNotFoundError, match="vae"):
        compare.models_of(catalog, "vae")


def test_named_models_keep_their_order_and_get_labels_of_their_own() -> None:
    models, absent = compare.models_of(Catalog(), "all", ["b/x", "a/x", "runs/y"])
    assert models == {"b/x": "b/x", "a/x": "a/x", "y": "runs/y"} and absent == []


def test_each_model_draws_every_prompt_with_the_same_seed_and_is_scored() -> None:
    models = {"blocks": "fake/blocks", "opaque": "fake/opaque"}
    found, problems = compare.entries(models, PROMPTS, 51, scorer=Judge(), measured=drawn)
    assert problems == {"opaque": "it broke"}
    (entry,) = found
    assert (entry.label, entry.technique, entry.parameters, entry.seed) == ("blocks", "noise", None, 51)
    assert entry.match == (0.2, 0.2) and entry.style == (None, 0.2)
    assert entry.means == {"match": 0.2, "style": 0.2}
    assert entry.adjustments == ("steps: 4 -> None (no steps)",)
    json.dumps(entry.told())


def test_without_a_judge_nothing_is_scored() -> None:
    (entry,), _ = compare.entries({"blocks": "fake/blocks"}, PROMPTS, 1, measured=drawn)
    assert entry.match == (None, None) and entry.means == {"match": None, "style": None}


def test_a_process_of_its_own_draws_the_same_picture_and_tells_its_cost() -> None:
    import imagewright

    pictures, records, cost = measure([{"prompt": "owl", "seed": 4, "model": "fake/blocks"}])
    alone = imagewright.generate("owl", seed=4, model="fake/blocks")
    assert np.array_equal(np.asarray(pictures[0]), np.asarray(alone[0]))
    assert records[0]["seed"] == 4
    assert 0 < cost.warm < cost.cold
    assert cost.peak_bytes is None or 10_000_000 < cost.peak_bytes < 2_000_000_000


def test_what_the_process_says_is_raised_here() -> None:
    with pytest.raises(ModelError, match="No model 'nothing'"):
        measure([{"prompt": "owl", "model": "fake/nothing"}])


def test_memory_is_the_processs_own() -> None:
    if peak_bytes() is None:
        pytest.skip("this system does not tell")
    code = "from imagewright.evaluation.measure import peak_bytes as p; a = p(); b = bytearray(10**8); print(a, p())"
    held = bytearray(4 * 10**8)  # of this process, which must not be counted
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 10**7 < before < len(held) and 0.9e8 < after - before < 1.5e8


def test_the_table_and_the_sheet_hold_every_model() -> None:
    second = made(label="second", parameters=None, match=(None, None), style=(None, None), cost=Cost(1, 2, None))
    rows = compare.table([made(), second])
    assert rows[1] == ("first", "gan", "12.3 M", "4.5 MB", "1.50 s", "0.250 s", "300 MB", "0.75", "0.80")
    assert rows[2][2] == "?" and rows[2][6:] == ("?", "-", "-")
    page = compare.sheet_of([made(), second], PROMPTS, cell=40)
    colours = {colour: count for count, colour in page.getcolors(1 << 20)}
    assert colours[(255, 0, 0)] == colours[(0, 0, 255)] == 2 * 40 * 40


LOG = [
    {"event": "start", "step": 0},
    *({"event": "step", "step": s, "loss": 100.0 if s < 3 else 1 / s, "elapsed": 36.0 * s} for s in range(1, 401)),
    {"event": "step", "step": 400, "loss": 0.5, "elapsed": 14400.0},
    {"event": "heldout", "step": 200, "loss": 0.3, "rows": 9},
    {"event": "heldout", "step": 400, "loss": 0.2, "rows": 9},
]


def test_losses_are_plotted_by_step_and_by_time() -> None:
    by_step, by_time = report.training("run", LOG)
    train, held = by_step.series
    assert (train.name, held.name, held.points) == ("loss", "held out loss", [(200, 0.3), (400, 0.2)])
    assert len(train.points) <= report.POINTS and train.points[0][0] == 2.0  # means of three neighbours
    assert by_step.y_range is not None and by_step.y_range[1] < 1  # the first steps do not set the scale
    assert by_time.series[1].points == [(2.0, 0.3), (4.0, 0.2)]  # step 400 was told twice: the later counts
    assert report.training("empty", LOG[:1]) == []


def test_a_sweep_stands_for_its_model_in_the_plot_of_quality() -> None:
    sweep = [made(steps=n, cost=Cost(1, n / 10, None), match=(m, m)) for n, m in ((8, 0.9), (1, 0.2))]
    other = made(label="other", match=(0.4, 0.6))
    unscored = made(label="unscored", match=(None, None))
    (plot,) = report.quality(report.Comparison(PROMPTS, [made(), other, unscored], sweep))
    first, second = plot.series
    assert (first.name, first.points, first.labels) == ("first, by steps", [(0.1, 0.2), (0.8, 0.9)], ["1", "8"])
    assert (second.name, second.points) == ("other", [(0.25, 0.5)])
    assert report.quality(report.Comparison(PROMPTS, [unscored])) == []


class Tags(HTMLParser):
    """Every start tag with its attributes, and whether all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_opens_offline_with_every_picture_score_and_curve(tmp_path: Path) -> None:
    evaluation = {"n": 12, "fit": {"value": 0.5, "low": 0.4, "high": 0.6}, "deep": {"KD": 0.125}, "name": "x"}
    comparison = report.Comparison(
        PROMPTS, [made(), made(label="a <b>")], [], {"run": LOG}, {"first": evaluation}, {"gone": "no <weights>"}
    )
    report.write(comparison, tmp_path / "new" / "report")
    report.write(comparison, tmp_path / "new" / "report")  # again, over the old one
    folder = tmp_path / "new" / "report"
    text = (folder / "index.html").read_text("utf-8")
    tags = Tags(text)
    assert tags.open == []
    sources = [attributes["src"] for tag, attributes in tags.found if tag == "img"]
    assert len(sources) == 4 and all(open_picture(folder / str(source)).size == (8, 8) for source in sources)
    assert {tag for tag, _ in tags.found}.isdisjoint({"script", "link", "iframe"}) and "://" not in text
    assert sum(tag == "svg" for tag, _ in tags.found) == 3
    assert "a &lt;b&gt;" in text and "no &lt;weights&gt;" in text and "<b>" not in text and "red &lt;apple&gt;" in text
    assert "0.5 (0.4 to 0.6)" in text and "deep KD" in text and "match 0.50" in text
    told = json.loads((folder / "report.json").read_text("utf-8"))
    assert [model["model"] for model in told["models"]] == ["first", "a <b>"]
    assert told["models"][0]["warm_seconds"] == 0.25 and told["problems"] == {"gone": "no <weights>"}
    poster = open_picture(folder / "report.png")
    assert poster.width >= 3 * 2 * plots.WIDTH and poster.height >= 2 * plots.HEIGHT  # three plots side by side


def test_a_report_needs_a_folder_and_a_run_its_log(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        report.write(report.Comparison(PROMPTS, [made()]), tmp_path / "file")
    with pytest.raises(DataError, match="no log"):
        report.read_run(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"event": "step", "step": 1}\n{"event": "st')
    assert report.read_run(tmp_path) == [{"event": "step", "step": 1}]
    (tmp_path / "gan").mkdir()
    (tmp_path / "gan" / "report.json").write_text('{"n": 1}')
    assert report.read_evaluations(tmp_path) == {"gan": {"n": 1}}


def test_ticks_are_round_and_inside() -> None:
    assert plots.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert plots.ticks(-3.2, 7.9) == [-2, 0, 2, 4, 6]
    assert plots.log_ticks(0.04, 3) == [0.05, 0.1, 0.2, 0.5, 1, 2]
    assert [plots.number(value) for value in (12_000, 0.05, 3.0)] == ["12k", "0.05", "3"]


def test_long_legends_and_labels_stay_inside() -> None:
    series = [plots.Series("a name of 25 characters..", [(1, i)], dots=True, labels=["16"]) for i in range(4)]
    drawn = plots.svg(plots.Plot("t", "x", "y", series))
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"', drawn)
    for x, y, _ in texts:
        assert 0 <= float(y) <= plots.HEIGHT and 0 <= float(x) <= plots.WIDTH
    names = [(float(x), float(y)) for x, y, _ in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" [^>]*>(a name)', drawn)]
    assert len(set(names)) == 4 and len({y for _, y in names}) == 2
    assert all(x + 6 * 25 <= plots.WIDTH and y < plots.TOP for x, y in names)


def test_both_kinds_of_plot_put_points_in_the_same_places() -> None:
    plot = plots.Plot("t", "x", "y", [plots.Series("s", [(0, 0), (1, 1), (2, 9)], dots=True)], y_range=(0, 1))
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', plots.svg(plot))
    places = [(float(x), float(y)) for x, y in dots]
    left, right, low, high = plots.LEFT, plots.WIDTH - plots.RIGHT, plots.HEIGHT - plots.BOTTOM, plots.TOP
    assert places == [(left, low), ((left + right) / 2, high), (right, high)]  # 9 lies on the border
    raster = plots.picture(plot, scale=1)
    assert raster.size == (plots.WIDTH, plots.HEIGHT)
    assert all(raster.getpixel((round(x), round(y))) == (28, 126, 214) for x, y in places)
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.svg(plots.Plot("t", "x", "y", []))
