"""The prompt language: weights, permutations, wildcards and the table of Midjourney's parameters."""

from __future__ import annotations

import contextlib
import time
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagewright.errors import PictureError, PromptError, RequestError, UnsupportedError
from imagewright.pictures import open_picture
from imagewright.prompt import MAX_JOBS, PARAMETERS, Parsed, parse, plain
from imagewright.prompt.expand import pick
from imagewright.request import Adjustment, ImageRequest

STEP = 1.1


def one(text: str, **given: Any) -> Parsed:
    """The only job of `text`."""
    (job,) = parse(text, **given)
    return job


def weights(job: Parsed) -> dict[str, float]:
    return {job.prompt[start:end]: weight for start, end, weight in job.emphasis}


# Weights


@pytest.mark.parametrize(
    ("text", "clean", "expected"),
    [
        ("a (red:1.6) fox", "a red fox", {"red": 1.6}),
        ("a (red) fox", "a red fox", {"red": STEP}),
        ("a [red] fox", "a red fox", {"red": 1 / STEP}),
        ("a ((red)) fox", "a red fox", {"red": STEP**2}),
        ("a [(red)] fox", "a red fox", {}),
        ("(a (red:2) fox:0.5)", "a red fox", {"a": 0.5, "fox": 0.5}),  # 0.5 * 2 is 1
        ("(a (red:3) fox:0.5)", "a red fox", {"a": 0.5, "red": 1.5, "fox": 0.5}),
        ("( red : 1.5 ) fox", "red  fox", {"red": 1.5}),
        ("(red:1) fox", "red fox", {}),
        ("(red:.5) (fox:2.)", "red fox", {"red": 0.5, "fox": 2}),
        (r"\(red\) \[fox\] \{x\} a\, b", "(red) [fox] {x} a, b", {}),
        (r"(a\)b:1.5) c", "a)b c", {"a)b": 1.5}),
        (r"C:\pictures", r"C:\pictures", {}),
        ("a ] fox ) :) (", "a ] fox ) :) (", {}),
        ("(a [b) c] d", "a [b c] d", {"a [b": STEP}),
        ("()(:1.5)a", "a", {}),
        ("ratio 3:2 (at 4:5 pm)", "ratio 3:2 at 4:5 pm", {"at 4:5 pm": STEP}),
        ("(🦊:1.5) snow", "🦊 snow", {"🦊": 1.5}),
    ],
)
def test_brackets_weigh_words(text: str, clean: str, expected: dict[str, float]) -> None:
    job = one(text)
    assert job.prompt == clean
    assert weights(job) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "clean", "expected", "negative"),
    [
        ("cat::2 dog::1", "cat, dog", {"cat": 4 / 3, "dog": 2 / 3}, None),
        ("cat:: dog", "cat, dog", {}, None),
        ("hot:: dog::3", "hot, dog", {"hot": 0.5, "dog": 1.5}, None),
        ("(big:2) cat::1 dog::3", "big cat, dog", {"big": 1, "cat": 0.5, "dog": 1.5}, None),
        ("a cat::1 cars::-0.5", "a cat", {}, "cars"),
        ("cat::0 dog", "dog", {}, None),
        ("std::vector in a::b", "std::vector in a::b", {}, None),
        (r"a\:: b", "a:: b", {}, None),
    ],
)
def test_parts_weigh_against_each_other(
    text: str, clean: str, expected: dict[str, float], negative: str | None
) -> None:
    job = one(text)
    expected = {words: weight for words, weight in expected.items() if weight != 1}
    assert (job.prompt, job.fields.get("negative_prompt")) == (clean, negative)
    assert weights(job) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "text", ["(a:11)", "(a:-1)", "((((((((((((((((((((((((((a))))))))))))))))))))))))))", "a::99 b"]
)
def test_weights_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(PromptError, match="weight"):
        parse(text)


def test_negative_parts_need_a_positive_sum() -> None:
    with pytest.raises(PromptError, match="add up to nothing"):
        parse("a::1 b::-2")


# Permutations


def test_permutations_multiply_the_leftmost_changing_last() -> None:
    jobs = parse("{red,blue} {cat,{small,big} dog} --ar {3:2,1:1}")
    told = [(job.prompt, job.fields["aspect"]) for job in jobs]
    animals = ("cat", "small dog", "big dog")
    assert told == [(f"{colour} {one}", ar) for colour in ("red", "blue") for one in animals for ar in ((3, 2), (1, 1))]
    assert jobs[3].choices == (
        ("{red,blue}", "red"),
        ("{cat,{small,big} dog}", "small dog"),
        ("{3:2,1:1}", "1:1"),
    )
    assert {job.template for job in jobs} == {"{red,blue} {cat,{small,big} dog} --ar {3:2,1:1}"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"{red\, white,blue} flag", ["red, white flag", "blue flag"]),
        ("{red, white|blue} flag", ["red, white flag", "blue flag"]),
        ("{,big }cat", ["cat", "bigcat"]),
        ("{a} cat", ["a cat"]),
        (r"\{a,b\} cat", ["{a,b} cat"]),
        ("a } cat", ["a } cat"]),
        ("{a|{b,c}} cat", ["a cat", "b cat", "c cat"]),
    ],
)
def test_alternatives(text: str, expected: list[str]) -> None:
    assert [job.prompt for job in parse(text)] == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{a,b", "never closed"),
        ("{a,b}" * 7, "more than 64"),
        ("{" + ",".join(map(str, range(65))) + "}", "more than 64"),
        ("{" * 33 + "}" * 33, "32 deep"),
        ("{a,b}{c,d} x --repeat 40", "more than 64"),
    ],
)
def test_braces_have_limits(text: str, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        parse(text)


word = st.text("abc ", min_size=1, max_size=5).filter(str.strip)


@given(st.lists(st.lists(word, min_size=1, max_size=4), min_size=1, max_size=6))
def test_permutations_count_as_the_product(groups: list[list[str]]) -> None:
    text, count = " ".join("{" + ",".join(group) + "}" for group in groups), prod(map(len, groups))
    if count > MAX_JOBS:
        with pytest.raises(PromptError, match="more than"):
            parse(text)
    else:
        assert len(parse(text)) == count


# Wildcards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "animal.txt").write_text("# animals\nfox\n\nowl\ncat\n  dog  \n", "utf-8")
    (tmp_path / "colour.txt").write_text("red\nblue\ngreen\n", "utf-8")
    (tmp_path / "both.txt").write_text("__colour__ __animal__\n", "utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "place.txt").write_text("\ufeffthe sea\n", "utf-8")
    return tmp_path


def test_a_wildcard_is_a_line_chosen_by_the_seed(folder: Path) -> None:
    prompts = [one("a __animal__ at __sub/place__", wildcards=folder, seed=seed).prompt for seed in range(40)]
    assert {prompt.split()[1] for prompt in prompts} == {"fox", "owl", "cat", "dog"}
    assert all(prompt.endswith("at the sea") for prompt in prompts)
    job = one("a __both__ --seed 3", wildcards=folder)
    assert job.fields["seed"] == 3
    assert job.template == "a __both__ --seed 3"
    assert job.choices == (("__both__", job.prompt.removeprefix("a ")),)


def test_a_choice_depends_on_nothing_but_the_seed(folder: Path) -> None:
    chosen = [one("__animal__", wildcards=folder, seed=seed).prompt for seed in range(20)]
    assert [
        one("__colour__ x __animal__", wildcards=folder, seed=seed).prompt.split()[2] for seed in range(20)
    ] == chosen
    (folder / "animal.txt").write_text("dog\ncat\nowl\nfox\n", "utf-8")
    assert [one("__animal__", wildcards=folder, seed=seed).prompt for seed in range(20)] == chosen
    batch = parse("__animal__", wildcards=folder, seed=5, n=4)  # each picture of a batch has its own
    assert [job.prompt for job in batch] == chosen[5:9]
    assert [(job.fields["seed"], job.fields["n"]) for job in batch] == [(5, 1), (6, 1), (7, 1), (8, 1)]
    two = [one("__animal__ __animal__", wildcards=folder, seed=seed).prompt.split() for seed in range(20)]
    assert any(first != second for first, second in two)
    assert [first for first, _ in two] == chosen


@given(st.lists(word, min_size=1, max_size=8, unique=True), st.integers(0, 2**32 - 1))
def test_picking_knows_no_order(entries: list[str], seed: int) -> None:
    assert pick(entries, seed, "/a:1") == pick(entries[::-1], seed, "/a:1")


def test_without_a_seed_wildcards_get_a_random_one(folder: Path) -> None:
    seeds = {one("__animal__", wildcards=folder).fields["seed"] for _ in range(5)}
    assert len(seeds) == 5


def test_without_a_folder_wildcards_stay_and_that_is_said() -> None:
    job = one("a __animal__")
    assert job.prompt == "a __animal__"
    assert job.adjustments[0].requested == "__animal__"
    assert one("snake_case a__b__c __ init").adjustments == ()


@pytest.mark.parametrize(
    ("files", "text", "why"),
    [
        ({}, "__no__", "There is no wildcard __no__"),
        ({"a": "__b__", "b": "__a__"}, "__a__", "circle: a -> b -> a"),
        ({"a": "# nothing\n\n"}, "__a__", "no entries"),
        ({"a": "__b__ " * 200, "b": "__c__ " * 200, "c": "x"}, "__a__", "too many others"),
        ({"a": "long " * 5000}, "__a__ __a__", "longer than"),
        ({"a": "x --seed 4"}, "__a__", "cannot set the seed"),
    ],
)
def test_wildcards_go_wrong_clearly(tmp_path: Path, files: dict[str, str], text: str, why: str) -> None:
    for name, lines in files.items():
        (tmp_path / f"{name}.txt").write_text(lines, "utf-8")
    with pytest.raises(PromptError, match=why):
        parse(text, wildcards=tmp_path, seed=0)


def test_a_wildcard_file_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError, match="cannot be read"):
        parse("__a__", wildcards=tmp_path)
    with pytest.raises(PromptError, match="no wildcard"):
        parse("__b/../a__ __b__", wildcards=tmp_path)


# Table 1.1: Midjourney's parameters, short and long

FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("--ar 3:2", {"aspect": (3, 2)}),
    ("--aspect 16:10", {"aspect": (8, 5)}),
    ("--chaos 50", {"variety": 0.5}),
    ("--c 100", {"variety": 1.0}),
    ("--stylize 1000", {"stylize": 10.0}),
    ("--s 0", {"stylize": 0.0}),
    ("--weird 3000", {"weird": 1.0}),
    ("--w 300", {"weird": 0.1}),
    ("--seed 4294967295", {"seed": 4294967295}),
    ("--no cars, trees", {"negative_prompt": "cars, trees"}),
    ("--no cars --no trees", {"negative_prompt": "cars, trees"}),
    ("--q 1", {"quality": "auto"}),
    ("--quality 2", {"quality": "high"}),
    ("--q 4", {"quality": "high", "best_of": 2}),
    ("--stop 80", {"stop": 0.8}),
    ("--tile", {"tile": True}),
    ("--raw", {"stylize": 0.0}),
    ("--style raw", {"stylize": 0.0}),
    ("--style flat", {"style": "flat"}),
    ("--draft", {"quality": "low"}),
    ("—ar 3:2 –tile ――q 2", {"aspect": (3, 2), "tile": True, "quality": "high"}),
    ("--AR 3:2", {"aspect": (3, 2)}),
    ("--ar=3:2", {"aspect": (3, 2)}),
]
REPORTED = [
    "--exp 20", "--sv 4", "--p", "--p abc123", "--niji", "--niji 6", "--v 6.1", "--version 7", "--fast", "--relax",
    "--turbo", "--stealth", "--public", "--iw 2", "--sw 300", "--ow 50", "--cw 50",
]  # fmt: skip
REFUSED = [
    "--ar 3", "--ar 3:0", "--ar 5000:1", "--ar", "--chaos 101", "--c -1", "--s 1001", "--w 3001", "--exp 101",
    "--seed 4294967296", "--seed 1.5", "--seed", "--no", "--q 3", "--stop 9", "--stop 101", "--tile red", "--raw 1",
    "--iw 4", "--sref", "--sref https://example.org/a.png", "--sw 1001", "--sv 7", "--oref", "--cref http://a/b.png",
    "--ow 1001", "--repeat 0", "--r 65", "--style", "--style a b", "--fast now please", "--sref 'a.png", "--arr 3:2",
    "--exp x", "--nothing", "--ar16:9", "--c nan", "--c 1e2",
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "fields"), FIELDS)
def test_a_parameter_fills_fields(parameters: str, fields: dict[str, Any]) -> None:
    job = one(f"a fox {parameters}")
    assert (job.prompt, job.fields, job.adjustments) == ("a fox", fields, ())
    request = job.request()
    assert {name: getattr(request, name) for name in fields} == fields


@pytest.mark.parametrize("parameters", REPORTED)
def test_what_nothing_honours_is_reported(parameters: str) -> None:
    job = one(f"a fox {parameters}")
    assert (job.prompt, job.fields) == ("a fox", {})
    assert len(job.adjustments) == 1
    assert job.request().adjustments == job.adjustments


@pytest.mark.parametrize("parameters", REFUSED)
def test_values_out_of_range_are_refused_with_what_to_do(parameters: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse(f"a fox {parameters}")
    assert caught.value.fix


def test_the_table_is_whole() -> None:
    """Every parameter of table 1.1 is known, and tried above."""
    known = {name for parameter in PARAMETERS for name in parameter.names}
    assert known == {
        *("ar", "aspect", "chaos", "c", "stylize", "s", "weird", "w", "exp", "seed", "no", "q", "quality", "stop"),
        *("tile", "raw", "iw", "sref", "sw", "sv", "oref", "cref", "ow", "cw", "p", "profile", "draft", "niji"),
        *("repeat", "r", "v", "version", "fast", "relax", "turbo", "stealth", "public", "style"),
    }
    tried = " ".join([*(text for text, _ in FIELDS), *REPORTED, *REFUSED])
    assert all(any(f"--{name}" in tried for name in parameter.names) for parameter in PARAMETERS)


def test_an_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(PromptError, match=r"Unknown parameter --stylise.*Did you mean --stylize"):
        parse("a fox --stylise 3")


def test_a_later_parameter_wins_and_that_is_said() -> None:
    job = one("a fox --ar 3:2 --ar 1:1")
    assert job.fields == {"aspect": (1, 1)}
    assert job.adjustments == (Adjustment("aspect", (3, 2), (1, 1), "--ar comes later in the prompt"),)


def test_repeats_take_the_seeds_that_follow() -> None:
    assert [job.fields for job in parse("a fox --repeat 3")] == [{}, {}, {}]
    assert [job.fields["seed"] for job in parse("a fox --r 3 --seed 7", n=2)] == [7, 9, 11]
    assert [job.fields["seed"] for job in parse("a fox --r 3", seed=7, repeat=2)] == [7, 8]
    assert [job.fields["seed"] for job in plain("a fox --r 3", seed=2**32 - 1, repeat=2)] == [2**32 - 1, 0]


# Pictures


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "my fox.png"
    Image.new("RGB", (8, 6), "red").save(path)
    return path


def test_pictures_in_front_and_in_parameters(picture: Path) -> None:
    text = f'"{picture}" "{picture}" a fox --iw 2 --sref "{picture}" --sw 300 --oref "{picture}" "{picture}" --ow 50'
    request = one(text).request(open_picture)
    assert request.image is not None
    assert request.image.size == (8, 6)
    assert [len(request.images), len(request.style_images), len(request.subject_images)] == [1, 1, 2]
    assert (request.style_weight, request.subject_weight, request.strength) == (3, 0.5, pytest.approx(3 / 7, abs=1e-4))
    assert request.prompt == "a fox"


def test_the_usual_image_weight_is_the_usual_strength() -> None:
    from imagewright.engines.engine import STRENGTH

    strengths = [one(f"a.png x --iw {weight}").fields["strength"] for weight in (0, 1, 3)]
    assert strengths == [1, STRENGTH, pytest.approx(1 / 3, abs=1e-3)]


def test_pictures_are_files_that_the_caller_opens(picture: Path) -> None:
    with pytest.raises(UnsupportedError, match="picture files"):
        one(f'"{picture}" a fox').request()
    with pytest.raises(PictureError):
        one("nowhere.png a fox").request(open_picture)
    with pytest.raises(PromptError, match="on the network"):
        parse("https://example.org/fox.png a fox")
    assert one("a fox from picture.png").pictures == {}
    weighted = one("a --sref x.png::2 y.png")
    assert weighted.pictures == {"style_images": (Path("x.png"), Path("y.png"))}
    assert "alike" in weighted.adjustments[0].reason


# Requests


def test_explicit_fields_win_and_that_is_said() -> None:
    request = one("a fox --ar 3:2 --chaos 50 --seed 3", seed=8).request(seed=8, aspect=(1, 1), variety=0.5, n=2)
    assert (request.aspect, request.variety, request.seed, request.n) == ((1, 1), 0.5, 8, 2)
    assert {adjustment.field for adjustment in request.adjustments} == {"seed", "aspect"}


def test_what_nobody_asked_for_stays_as_it_is() -> None:
    for text in (
        "a b--c",
        "a - b -- c",
        "std::vector",
        "5 --3",
        ":) ;]",
        "a — b",
        "well—no",
        "x __ y",
        "50% {off",
        "a|b",
    ):
        if "{" in text:
            text = text.replace("{", r"\{")
        job = one(text)
        assert (job.prompt, job.emphasis, job.fields, job.adjustments) == (text.replace("\\", ""), (), {}, ())
        assert job.request() == ImageRequest(prompt=text.replace("\\", ""))


def test_plain_takes_the_prompt_as_it_is() -> None:
    text = "a (red:1.5) {a,b} __x__ --ar 3:2"
    assert [job.request() for job in plain(text)] == [ImageRequest(prompt=text)]


@pytest.mark.parametrize("text", ["", "  ", "--ar 3:2", "()", "a.png", "::1", "{}"])
def test_a_prompt_needs_words(text: str) -> None:
    with pytest.raises(PromptError):
        parse(text)


# Any text at all

MARKS = (
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    "|",
    "\\",
    ":1.5)",
    "::2 ",
    "::-1 ",
    " --",
    " --ar 3:2",
    " --no x",
    "—",
    "__a__",
)
OTHERS = ("a", " red", "\n", "🦊", "\ud800", ".png ", "https://", '"', "'", "0", "9" * 30)
scraps = st.sampled_from([*MARKS, *OTHERS])


@given(st.one_of(st.lists(scraps, max_size=60).map("".join), st.text(max_size=300)))
@settings(max_examples=400, deadline=None)
def test_any_text_gives_jobs_or_a_prompt_error(text: str) -> None:
    try:
        jobs = parse(text, seed=1)
    except PromptError as error:
        assert error.fix
        return
    assert 1 <= len(jobs) <= MAX_JOBS
    for job in jobs:
        assert job.prompt.strip() == job.prompt != ""
        ends = [end for start, end, _ in job.emphasis for end in (start, end)]
        assert ends == sorted(ends)
        for start, end, weight in job.emphasis:
            assert 0 <= start < end <= len(job.prompt)
            assert job.prompt[start:end].strip() == job.prompt[start:end]
            assert 0 <= weight <= 10
            assert weight != 1


@pytest.mark.parametrize(
    "scrap", [*MARKS, *OTHERS, "(a", "[(", "((a))", ": ", "{a}", "{a,b}", "__a__ ", "__a-", "(a:1) ", "a.png "]
)
def test_long_texts_are_read_fast(scrap: str) -> None:
    for text in (scrap * (50_000 // len(scrap)), scrap * (32_000 // len(scrap)), ":" + "1" * 30_000 + scrap):
        start = time.process_time()
        with contextlib.suppress(PromptError):
            parse(text, seed=1)
        assert time.process_time() - start < 3


@given(st.text(max_size=200))
@settings(deadline=None)
def test_plain_words_come_through(text: str) -> None:
    """Text without any mark of the language is its own prompt."""
    bare = "".join(char for char in text if char not in "()[]{}\\:-_—–‒―").strip()
    if not bare:
        return
    try:
        job = one(bare)
    except RequestError:
        assert bare.split()[0].lower().endswith((".png", ".jpg", ".jpeg", ".webp"))
        return
    if not job.pictures:
        assert (job.prompt, job.emphasis, job.fields) == (bare, (), {})


# The page

PAGE = Path(__file__).parents[1] / "docs" / "prompt.md"


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page."""
    part = PAGE.read_text("utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("|").replace(r"\|", "\0") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("\0", "|") for cell in line.split("|")] for line in lines[2:]]


@pytest.mark.parametrize(("text", "expected"), [*rows("Weights"), *rows("Alternatives")])
def test_the_pages_examples_are_true(text: str, expected: str) -> None:
    assert " · ".join(job.prompt for job in parse(text.strip("`"))) == expected


def test_the_page_tells_of_every_parameter() -> None:
    text = PAGE.read_text("utf-8")
    missing = [p.names for p in PARAMETERS if not any(f"`--{name}`" in text for name in p.names)]
    assert missing == []
