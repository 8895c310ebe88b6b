"""Several pictures at once: each is, byte for byte, the one that its request gets alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagewright.engines import embedded
from imagewright.engines.embedded import EmbeddedEngine, ExportedModel
from imagewright.engines.engine import Engine
from imagewright.engines.lanes import Seats, all_of, at_once
from imagewright.errors import RequestError, StoppedError, UnsupportedError
from imagewright.refine.choose import shipped_judges
from imagewright.request import ImageRequest, ImageResult
from imagewright.watch import Stop, Watch
from imagewright.workshop import Workshop

MODELS = [model.name for model in EmbeddedEngine().models()]
STEPS = 3  # of those that have any


def request(name: str, seed: int, **fields: Any) -> ImageRequest:
    fields = {"num_inference_steps": STEPS, **fields}
    return ImageRequest(prompt=f"a red ball, number {seed}", model=name, seed=seed, **fields)


def mixed() -> list[ImageRequest]:
    """Of all models and kinds: guided and not, several pictures, a tile, a changed picture, a hole to fill."""
    picture = Image.new("RGBA", (40, 60), (0, 90, 200, 255))
    hole = Image.new("RGBA", (40, 60), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (0, 0, 20, 60))
    diffusion = partial(request, "stickers-diffusion")
    return [
        *(request(name, 1) for name in MODELS),
        *(request(name, 2, guidance_scale=1.0) for name in MODELS),
        diffusion(3, n=3),
        diffusion(4, tile=True, size=(64, 128)),
        diffusion(5, image=picture, strength=0.7),
        diffusion(6, image=picture, mask=hole),
        request("stickers-autoregressive", 7, image=picture, mask=hole),
        diffusion(8, num_inference_steps=5, sampler="ancestral", style="noto", negative_prompt="blue"),
    ]


def pixels(result: ImageResult | Exception) -> list[bytes]:
    assert isinstance(result, ImageResult), result
    return [image.tobytes() for image in result]


def alone(requests: list[ImageRequest]) -> list[list[bytes]]:
    """Each made by an engine that draws one at a time, on all cores."""
    engine = EmbeddedEngine(lanes=1)
    return [pixels(engine.generate(one)) for one in requests]


def test_a_picture_is_the_same_however_many_are_drawn_with_it_and_in_which_order() -> None:
    requests = mixed()
    expected = alone(requests)
    for lanes, together in ((2, len(requests)), (4, 5)):
        engine = EmbeddedEngine(lanes=lanes)
        order = random.Random(lanes).sample(range(len(requests)), len(requests))
        for begin in range(0, len(order), together):
            group = order[begin : begin + together]
            made = engine.generate_many([requests[i] for i in group], [Watch()] * len(group))
            assert [pixels(one) for one in made] == [expected[i] for i in group]


def test_threads_that_come_when_they_like_share_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, opened = Counter[str](), Counter[tuple[str, str]]()
    load, open_ = embedded.ExportedModel.__init__, ExportedModel._open

    def loads(self: ExportedModel, folder: Any, *rest: Any) -> None:
        loaded[folder.name] += 1
        load(self, folder, *rest)

    def opens(self: ExportedModel, part: str) -> Any:
        opened[self.folder.name, part] += 1
        return open_(self, part)

    requests = [request(name, seed) for seed in range(2) for name in MODELS]
    expected = alone(requests)
    monkeypatch.setattr(ExportedModel, "__init__", loads)
    monkeypatch.setattr(ExportedModel, "_open", opens)
    engine, found = EmbeddedEngine(lanes=2), dict[int, list[bytes]]()
    together = threading.Barrier(len(requests))

    def draw(index: int) -> None:
        together.wait()
        found[index] = pixels(engine.generate(requests[index]))

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(len(requests))] == expected
    assert loaded == dict.fromkeys(MODELS, 1) and set(opened.values()) == {1}


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_cores_does_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    for cores in (1, 3):
        monkeypatch.setattr(embedded, "cores", lambda cores=cores: cores)
        pictures.append(pixels(EmbeddedEngine().generate(request(name, 5, n=2))))
    assert pictures[0] == pictures[1]


def test_the_pictures_of_one_request_tell_one_progress() -> None:
    told: list[tuple[int, int]] = []
    engine = EmbeddedEngine(lanes=2)
    engine.generate(request("stickers-diffusion", 1, n=4), Watch(lambda done, total: told.append((done, total))))
    assert told == sorted(told) and told[-1] == (4 * STEPS, 4 * STEPS) and {total for _, total in told} == {4 * STEPS}


def test_the_stop_of_one_ends_no_other() -> None:
    stop, told = Stop(), []

    def tell(done: int, total: int) -> None:
        told.append(done)
        stop.set()

    requests = [request("stickers-diffusion", seed, n=2) for seed in range(3)]
    watches = [Watch(), Watch(tell, stop=stop), Watch()]
    first, second, third = EmbeddedEngine(lanes=2).generate_many(requests, watches)
    assert isinstance(second, StoppedError) and len(told) <= 2  # one a lane
    assert [pixels(first), pixels(third)] == [one for i, one in enumerate(alone(requests)) if i != 1]


def test_the_error_of_one_touches_no_other() -> None:
    requests = [request("stickers-gan", 1), request("stickers-gan", 2, style="oil"), request("stickers-gan", 3)]
    first, second, third = EmbeddedEngine().generate_many(requests, [Watch()] * 3)
    assert isinstance(second, UnsupportedError)
    assert [pixels(first), pixels(third)] == alone([requests[0], requests[2]])


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_what_a_watcher_raises_comes_out_of_a_request_for_several(raised: type[BaseException]) -> None:
    def tell(done: int, total: int) -> None:
        raise raised

    with pytest.raises(raised):
        EmbeddedEngine(lanes=2).generate(request("stickers-vae", 1, n=3), Watch(tell))


def test_who_waits_for_a_seat_can_be_stopped() -> None:
    seats, stop = Seats(1), Stop()
    with seats.one(Watch()):
        threading.Timer(0.02, stop.set).start()
        with pytest.raises(StoppedError), seats.one(Watch(stop=stop)):
            pass
    with seats.one(Watch(stop=stop)):  # free again
        pass


def test_calls_end_each_by_itself_and_so_many_at_a_time() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def call(value: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        if value == 3:
            raise ValueError(value)
        return value

    ended = at_once([partial(call, value) for value in range(8)], 3)
    assert [repr(one) for one in ended] == ["0", "1", "2", "ValueError(3)", "4", "5", "6", "7"] and most == 3
    with pytest.raises(ValueError, match="3"):
        all_of(ended)
    assert all_of(ended[:3]) == [0, 1, 2]


class Slow(Engine):
    """Notes the most calls that came at once."""

    name = "slow"

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.running = self.most = 0
        self.lock = threading.Lock()

    def models(self) -> list[Any]:
        return [replace(EmbeddedEngine().models()[0], name="slow", engine="slow")]

    def _generate(self, request: ImageRequest, model: Any, watch: Watch) -> tuple[list[Image.Image], list[Any]]:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.01)
        with self.lock:
            self.running -= 1
        return [Image.new("RGBA", (4, 4), (request.seed or 0, 0, 0, 255))] * request.n, []


class OneEngine:
    """A catalog of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def find(self, name: str | None, technique: str | None = None) -> tuple[Engine, str | None]:
        return self.engine, name


@pytest.mark.parametrize("concurrency", [1, 3])
def test_an_engine_gets_as_many_calls_as_it_takes(concurrency: int) -> None:
    engine = Slow(concurrency)
    requests = [ImageRequest(prompt="x", seed=seed, size=(4, 4)) for seed in range(8)]
    made = engine.generate_many(requests, [Watch()] * 8)
    assert [pixels(one)[0][0] for one in made] == list(range(8)) and engine.most == concurrency
    workshop = Workshop(OneEngine(engine), say=None)  # type: ignore[arg-type]
    engine.most = 0
    made = workshop.make_many(requests, [Watch()] * 8)
    assert [pixels(one)[0][0] for one in made] == list(range(8)) and engine.most == concurrency


def test_the_workshop_makes_of_many_what_it_makes_of_each() -> None:
    workshop = Workshop(judges=shipped_judges)
    requests = [
        request("stickers-gan", 1, size=(90, 60), background="#ffcc00"),
        request("stickers-gan", 2, style="oil"),
        request("stickers-gan", 3, best_of=2),
        request("stickers-vae", 4, n=2, output_format="jpeg"),
        request("fake/blocks", 5),
        request("fake/nothing", 6),
    ]
    made = workshop.make_many(requests, [Watch()] * len(requests))
    for one, result in zip(requests, made, strict=True):
        if isinstance(result, Exception):
            with pytest.raises(type(result)):
                workshop.make(one)
            continue
        again = workshop.make(one)
        assert pixels(result) == pixels(again)
        assert [record["seed"] for record in result.records] == [record["seed"] for record in again.records]
    assert [isinstance(one, RequestError) for one in made] == [False, True, False, False, False, False]
    assert isinstance(made[5], Exception) and np.asarray(made[0][0]).shape == (60, 90, 3)  # type: ignore[index]


def test_on_the_command_line_numpy_computes_on_one_thread_unless_told() -> None:
    program = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        "            print(os.environ.get('OPENBLAS_NUM_THREADS'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import imagewright.cli\n"
    )
    for said, used in ((None, "1"), ("3", "3")):
        environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
        environment |= {} if said is None else {"OPENBLAS_NUM_THREADS": said}
        told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert told.stdout.split() == [used], told.stderr
