"""What a call through the gateway costs, beside litellm's proxy and a bare pass-through, all before the same stand-in.

python benchmarks/gateway.py --litellm PYTHON [--calls N] [--rounds R] [--only ours,relay,passing,litellm] [--json FILE]

PYTHON is that of a virtual environment with `pip install 'litellm[proxy]'`; without it litellm is left out, and
`--make FOLDER` makes one there first. Everything runs on this machine, in processes of its own, and takes turns in one
run: a hosted service that answers at once (pictures of 1 KiB and of 1.5 MiB as base64), and before it

    passing    the bytes passed on as they come, nothing looked at: the floor
    relay      imagewright with keys, budgets, prices, a durable queue and the log; the service's own files passed on
    ours       the same as it comes: each picture decoded, recorded, signed, stored
    litellm    its proxy with a master key; no database, so without keys, budgets and a log of its own

For each: milliseconds a call (median, 99th), CPU milliseconds of its processes a call, and memory. Latency means
something on a quiet machine only; CPU a call is robust.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZES = {"small": 17, "large": 724}  # pixels a side of noise: 1 KiB and 1.5 MiB as PNG
CONCURRENCY = (1, 8, 32)
KEY = "sk-upstream"
TICK = os.sysconf("SC_CLK_TCK")
Json = dict[str, Any]


@dataclass
class Target:
    """Something that is called: its address, its process, its token."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    token: str = KEY
    model: str = "{}"
    times: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Measure and print."""
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--litellm", type=Path)
    told.add_argument("--make", type=Path)
    told.add_argument("--calls", type=int, default=200)
    told.add_argument("--rounds", type=int, default=3)
    told.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCY)
    told.add_argument("--sizes", nargs="+", default=list(SIZES))
    told.add_argument("--only", default="passing,relay,ours,litellm")
    told.add_argument("--json", type=Path)
    told.add_argument("--serve", choices=["upstream", "passing"])
    told.add_argument("--port", type=int, default=0)
    told.add_argument("--behind", type=int, default=0)
    options = told.parse_args()
    if options.serve:
        serve(options.serve, options.port, options.behind)
        return
    if options.make:
        options.litellm = made(options.make)
    wanted = [name for name in options.only.split(",") if name != "litellm" or options.litellm]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        targets = started(Path(folder), wanted, options.litellm, stack)
        rows = measured(targets, options)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def measured(targets: Sequence[Target], options: argparse.Namespace) -> list[Json]:
    """All targets take turns: size by size, concurrency by concurrency, round by round."""
    for target in targets:
        for size in options.sizes:
            asyncio.run(calls(target, size, 20, 4))
    blocks = [(size, at_once) for size in options.sizes for at_once in options.concurrency]
    for turn in range(options.rounds):
        for size, at_once in blocks:
            for target in targets if turn % 2 == 0 else targets[::-1]:
                block = f"{size} {at_once}"
                before = cpu_of(target.process.pid)
                took = asyncio.run(calls(target, size, options.calls, at_once))
                target.cpu[block] = target.cpu.get(block, 0.0) + cpu_of(target.process.pid) - before
                target.times.setdefault(block, []).extend(took)
    return [
        {
            "target": target.name,
            "size": size,
            "concurrency": at_once,
            "calls": len(times := sorted(target.times[f"{size} {at_once}"])),
            "p50_ms": round(statistics.median(times) * 1000, 2),
            "p99_ms": round(times[int(len(times) * 0.99)] * 1000, 2),
            "cpu_ms": round(target.cpu[f"{size} {at_once}"] / len(times) * 1000, 2),
            "rss_mib": round(memory_of(target.process.pid)),
        }
        for size, at_once in blocks
        for target in targets
    ]


def show(rows: Sequence[Json]) -> None:
    """The rows as a table."""
    names = list(rows[0])
    print("  ".join(f"{name:>11}" for name in names))
    for row in rows:
        print("  ".join(f"{row[name]!s:>11}" for name in names))


async def calls(target: Target, size: str, count: int, at_once: int) -> list[float]:
    """Seconds of each of `count` calls, so many at once, each line of calls on a connection that is kept."""
    left, times = iter(range(count)), list[float]()
    body = json.dumps(
        {"model": target.model.format(size), "prompt": "a red fox", "response_format": "b64_json"}
    ).encode()
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1:{target.port}\r\nauthorization: Bearer {target.token}"
        f"\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()

    async def line() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=2**24)
        for _ in left:
            start = time.perf_counter()
            writer.write(head + body)
            told = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(told.partition(b"content-length:")[2].partition(b"\r\n")[0])
            answer = await reader.readexactly(length)
            times.append(time.perf_counter() - start)
            if not told.startswith(b"http/1.1 200") or b'"b64_json"' not in answer:
                raise SystemExit(f"{target.name} answered {told.decode()}{answer[:500]!r}")
        writer.close()

    await asyncio.gather(*(line() for _ in range(at_once)))
    return times


def started(folder: Path, wanted: Sequence[str], litellm: Path | None, stack: contextlib.ExitStack) -> list[Target]:
    """The stand-in, and what is wanted before it, each answering."""
    behind = free_port()
    stack.enter_context(running([sys.executable, __file__, "--serve", "upstream", "--port", str(behind)], behind))
    targets = []
    for name in wanted:
        port = free_port()
        if name == "passing":
            command = [sys.executable, __file__, "--serve", "passing", "--port", str(port), "--behind", str(behind)]
            targets.append(Target(name, port, stack.enter_context(running(command, port))))
        elif name == "litellm":
            targets.append(litellm_proxy(folder, port, behind, litellm, stack))
        else:
            targets.append(ourselves(folder / name, name, port, behind, stack))
    return targets


def ourselves(folder: Path, name: str, port: int, behind: int, stack: contextlib.ExitStack) -> Target:
    """imagewright with a key that has limits and a budget."""
    folder.mkdir()
    config = folder / "config.toml"
    prices = "".join(f'[prices."compatible/up/{size}"]\nimage = 0.01\n' for size in SIZES)
    outputs = 'outputs = "relay"\n' if name == "relay" else ""
    up = f'[providers.up]\nkind = "openai"\nbase_url = "http://127.0.0.1:{behind}/v1"\nkey = "{KEY}"\n{outputs}'
    config.write_text(f"{up}{prices}[server]\nqueue = 10000\n")
    config.chmod(0o600)
    environment = {"IMAGEWRIGHT_CONFIG": str(config), "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    program = str(Path(sys.executable).with_name("imagewright"))
    limits = ["--requests", "1000000", "--images", "1000000", "--parallel", "1000"]
    make = [program, "keys", "create", "bench", "--budget", "1000000", *limits, "--folder", str(folder)]
    token = subprocess.run(
        make, env=os.environ | environment, check=True, capture_output=True, text=True
    ).stdout.strip()
    command = [program, "serve", "--port", str(port), "--folder", str(folder)]
    process = stack.enter_context(running(command, port, environment))
    return Target(name, port, process, token, "compatible/up/{}")


def litellm_proxy(folder: Path, port: int, behind: int, python: Path | None, stack: contextlib.ExitStack) -> Target:
    """litellm's proxy with what its documentation calls for, and nothing that it need not do."""
    assert python is not None
    config = folder / "litellm.yaml"
    models = [
        {
            "model_name": size,
            "litellm_params": {
                "model": f"openai/{size}",
                "api_base": f"http://127.0.0.1:{behind}/v1",
                "api_key": KEY,
                "input_cost_per_image": 0.01,
            },
            "model_info": {"mode": "image_generation"},
        }
        for size in SIZES
    ]
    config.write_text(  # JSON is YAML
        json.dumps(
            {
                "model_list": models,
                "litellm_settings": {"num_retries": 0, "request_timeout": 120, "drop_params": True, "telemetry": False},
                "router_settings": {"disable_cooldowns": True},
                "general_settings": {"master_key": "sk-master"},
            }
        )
    )
    command = [str(python.with_name("litellm")), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(folder)}
    process = stack.enter_context(running([*command, "--num_workers", "1"], port, environment))
    return Target("litellm", port, process, "sk-master")


@contextlib.contextmanager
def running(command: Sequence[str], port: int, more: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens at a port."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=os.environ | (more or {}), stdout=log, stderr=log)
        try:
            for _ in range(1200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"{command[0]} ended:\n{log.read().decode(errors='replace')[-3000:]}")
                time.sleep(0.1)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def serve(what: str, port: int, behind: int) -> None:
    """Be the stand-in, or the pass-through before it."""
    import uvicorn

    app = upstream() if what == "upstream" else passing(behind)
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def upstream() -> Any:
    """An ASGI application that answers as OpenAI does, at once."""
    import numpy as np
    from PIL import Image

    answers = {}
    for name, side in SIZES.items():
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
        data = [{"b64_json": base64.b64encode(file.getvalue()).decode()}]
        usage = {"total_tokens": 280, "input_tokens": 8, "output_tokens": 272}
        usage["input_tokens_details"] = {"text_tokens": 8, "image_tokens": 0}  # type: ignore[assignment]
        answers[name] = json.dumps({"created": 1, "data": data, "usage": usage}).encode()

    async def app(scope: Json, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            body = answers[json.loads(await whole(receive))["model"]]
            await answer(send, 200, body)

    return app


def passing(behind: int) -> Any:
    """An ASGI application that sends on what comes, with a client that keeps its connections."""
    import httpx

    client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=100))

    async def app(scope: Json, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = {name: value for name, value in scope["headers"] if name in (b"authorization", b"content-type")}
        url = f"http://127.0.0.1:{behind}{scope['path']}"
        got = await client.post(url, content=await whole(receive), headers=headers)
        await answer(send, got.status_code, got.content)

    return app


async def whole(receive: Any) -> bytes:
    """The body of a request."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def answer(send: Any, status: int, body: bytes) -> None:
    """Send JSON."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and its children so far."""
    total = 0.0
    for one in family(pid):
        with contextlib.suppress(OSError):
            parts = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += (int(parts[11]) + int(parts[12])) / TICK
    return total


def memory_of(pid: int) -> float:
    """MiB that a process and its children hold."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total / 1024


def family(pid: int) -> list[int]:
    """A process and all below it."""
    with contextlib.suppress(OSError):
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(one for child in below for one in family(int(child)))]
    return [pid]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def made(folder: Path) -> Path:
    """The Python of a new virtual environment with litellm's proxy."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "litellm[proxy]"], check=True)
    return python


if __name__ == "__main__":
    main()
