"""Nothing waits for a hosted service longer than it should: deadlines, stops, Ctrl-C, and the breaker."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpcore
import pytest
from example_service import KEY, SIZE, ExampleEngine, ExampleService, engine_of, made
from hosting import config
from standin import Reply, as_json

from imagewright.engines.hosted import breaker
from imagewright.errors import (
    ProviderError,
    ProviderTimeoutError,
    StoppedError,
)
from imagewright.request import ImageRequest
from imagewright.watch import Stop, Watch

REQUEST = ImageRequest(prompt="a red cube", model="one", seed=5)
TROUBLE = as_json({"error": {"message": "overloaded"}}, 503)


@pytest.mark.parametrize(
    "slow",
    [
        Reply(200, b'{"b64": "AAAA"}', wait=30),
        Reply(200, b'{"b64": "' + b"A" * 500, drip=0.05),
    ],
)
def test_nothing_hangs_past_the_deadline(service: ExampleService, slow: Reply) -> None:
    engine = engine_of(service, timeout=0.5)
    service.next.append(slow)
    start = time.monotonic()
    with pytest.raises(ProviderTimeoutError, match=r"within 0\.5 s") as caught:
        made(engine)
    assert time.monotonic() - start < 1.0
    assert caught.value.retryable and caught.value.code == "timeout"
    assert len(service.asked) == 1
    engine.close()


def test_a_head_that_trickles_in_hangs_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nx-slow: ")
                while not done.wait(0.05):
                    try:
                        connection.sendall(b"a")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        engine = ExampleEngine(config("example", f"http://127.0.0.1:{server.getsockname()[1]}/v1", 0.5, key=KEY))
        start = time.monotonic()
        with pytest.raises(ProviderTimeoutError):
            made(engine)
        assert time.monotonic() - start < 1.0
        done.set()
        thread.join()
        engine.close()


def test_a_poll_ends_at_the_deadline(service: ExampleService) -> None:
    engine = engine_of(service, timeout=0.4)
    service.looks = 10_000
    start = time.monotonic()
    with pytest.raises(ProviderTimeoutError):
        made(engine, model="later")
    assert time.monotonic() - start < 1.0
    engine.close()


# Stopping


@pytest.mark.parametrize("model", ["one", "later"])
@pytest.mark.parametrize(
    "slow",
    [
        Reply(200, b"{}", wait=30),
        Reply(200, b" " * 5000, drip=0.02),
        as_json({"error": {"message": "wait"}}, 429, retry_after="30"),
    ],
)
def test_a_stop_ends_what_is_in_flight(service: ExampleService, model: str, slow: Reply) -> None:
    engine = engine_of(service, timeout=60)
    service.next.append(slow)
    stop = Stop()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(StoppedError):
        engine.generate(ImageRequest(prompt="x", model=model), Watch(stop=stop))
    assert time.monotonic() - start < 1.0
    timer.join()
    assert made(engine).images[0].size == SIZE  # others go on
    engine.close()


def test_a_stop_ends_the_looking(service: ExampleService, engine: ExampleEngine) -> None:
    service.looks = 10_000
    stop, seen = Stop(), []

    def progress(done: int, total: int) -> None:
        seen.append(done / total)
        if len(seen) == 3:
            stop.set()

    with pytest.raises(StoppedError):
        engine.generate(ImageRequest(prompt="x", model="later"), Watch(progress, stop=stop))
    assert seen == [0.4, 0.4, 0.4]


def test_a_stop_before_anything_sends_nothing(service: ExampleService, engine: ExampleEngine) -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(StoppedError):
        engine.generate(REQUEST, Watch(stop=stop))
    assert not service.asked


def test_a_late_stop_cuts_no_connection_of_others(service: ExampleService, engine: ExampleEngine) -> None:
    stops = [Stop() for _ in range(20)]
    for stop in stops:
        engine.generate(REQUEST, Watch(stop=stop))
        stop.set()  # the connection is back with the others, kept for the next call
    made(engine)
    assert len(service.asked) == 21


@pytest.mark.parametrize("stopped", [False, True])
def test_a_host_that_does_not_answer_holds_nobody(
    monkeypatch: pytest.MonkeyPatch, service: ExampleService, stopped: bool
) -> None:
    """Nor a name that takes its time to be looked up."""
    late, closed = threading.Event(), threading.Event()

    class Stream(httpcore.NetworkStream):
        def close(self) -> None:
            closed.set()

    def connect(self: httpcore.SyncBackend, *args: object, **options: object) -> httpcore.NetworkStream:
        late.wait(10)
        return Stream()

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    engine = engine_of(service, timeout=60 if stopped else 0.3)
    stop = Stop()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(StoppedError if stopped else ProviderTimeoutError):
        engine.generate(REQUEST, Watch(stop=stop if stopped else None))
    assert time.monotonic() - start < 1.0
    timer.join()
    late.set()
    assert closed.wait(5)  # what came after all is not left open
    engine.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of threads")
@pytest.mark.parametrize("model", ["one", "each"])
def test_ctrl_c_ends_what_is_in_flight(service: ExampleService, engine: ExampleEngine, model: str) -> None:
    service.next.extend([Reply(200, b"{}", wait=30)] * 3)
    before = threading.active_count()
    timer = threading.Timer(0.3, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        made(engine, model=model, n=3)
    assert time.monotonic() - start < 1.0
    timer.join()
    while time.monotonic() - start < 2.0 and threading.active_count() > before + 3:  # those of the stand-in wait on
        time.sleep(0.01)
    assert threading.active_count() <= before + 3


# The breaker


def test_a_service_that_is_down_is_left_alone(service: ExampleService, engine: ExampleEngine) -> None:
    service.next.extend([TROUBLE] * 1000)
    for _ in range(50):
        with pytest.raises(ProviderError) as caught:
            made(engine)
    assert len(service.asked) == breaker.LIMIT  # of 50 calls, each of which may try three times
    assert caught.value.code == "circuit_open"
    assert caught.value.retryable and caught.value.retry_after


def test_an_outage_is_not_made_worse_by_many_at_once(service: ExampleService, engine: ExampleEngine) -> None:
    service.next.extend([TROUBLE] * 1000)

    def failed(index: int) -> bool:
        try:
            made(engine)
        except ProviderError:
            return True
        return False

    with ThreadPoolExecutor(40) as pool:
        assert all(pool.map(failed, range(200)))
    assert len(service.asked) <= 1.1 * 40  # those under way when it opened, and next to nothing of the rest


def test_one_call_tries_whether_it_is_back(
    service: ExampleService, engine: ExampleEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(breaker, "_breakers", {})
    one = breaker.Breaker(clock=lambda: now[0])
    breaker._breakers[f"example {service.url}/v1"] = one
    service.next.extend([TROUBLE] * 5)
    for _ in range(4):
        with pytest.raises(ProviderError):
            made(engine)
    assert len(service.asked) == 5
    now[0] += breaker.PAUSE + 1
    service.next.append(TROUBLE)
    with pytest.raises(ProviderError):
        made(engine)
    assert len(service.asked) == 6  # one probe, not sent again
    now[0] += breaker.PAUSE + 1
    made(engine)
    made(engine)
    assert len(service.asked) == 8


def test_the_breaker_counts_in_a_row_and_lets_one_probe() -> None:
    now = [0.0]
    found = breaker.Breaker(limit=2, pause=10, clock=lambda: now[0])
    found.failed()
    found.answered()
    found.failed()
    assert found.enter() == 0
    found.failed()
    assert found.enter() == 10
    now[0] = 10.5
    assert found.enter() == 0
    assert found.enter() == 1  # while the probe is under way
    found.unknown()
    assert found.enter() == 0
    found.answered()
    assert [found.enter(), found.enter()] == [0, 0]


def test_refusals_are_answers(service: ExampleService, engine: ExampleEngine) -> None:
    for status in (400, 401, 404, 429):
        service.next.extend([as_json({"error": {"message": "no"}}, status, x_should_retry="false")] * 6)
        for _ in range(6):
            with pytest.raises(ProviderError):
                made(engine)
    made(engine)
