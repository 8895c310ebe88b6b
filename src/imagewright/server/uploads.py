"""Strangers' pictures, decoded in other processes: one that crashes, hangs or grows there ends that process, not ours.

What a picture is, is told by its bytes, never by the name or type that a client gives. The processes (`decoder`) are
started when first needed, stay warm, are replaced when they die and after `RECYCLE` pictures, inherit nothing of the
server's environment where keys may be, and can open nothing. What they answer is checked as if it came from outside.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from imagewright.errors import ImagewrightError, PictureError
from imagewright.request import MAX_SIDE, Adjustment
from imagewright.server.decoder import IMAGE, LENGTH, MASK, REQUEST

MAX_BYTES = 50 * 2**20  # of one file, as OpenAI's
MEMORY = 400 * 2**20  # bytes that a process may grow by; 4096 x 4096 in 16 bits takes 310 MiB
SECONDS = 5  # of the processor for one picture, and by the clock `_PATIENCE` times that: the machine may be busy
_PATIENCE = 4
RECYCLE = 500  # pictures after which a process is replaced
_START = 60.0  # s
_COMMAND = (sys.executable, "-P", "-m", "imagewright.server.decoder")  # -P: nothing from the current folder
_LOOK = "To see why, run: python -m imagewright.server.decoder 1000000000 10 4096"
_MAX_TOLD = 4 * 2**20  # bytes of JSON
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG")
_OUT_OF_TIME = getattr(signal, "SIGXCPU", None)  # Windows has none
FORMATS = ("png", "jpeg", "webp")

What = Literal["image", "mask"]
log = logging.getLogger(__name__)


class DecoderError(ImagewrightError):
    """No decoding process can be started: the server's trouble, not the client's."""


@dataclass(frozen=True)
class Upload:
    """A decoded picture: RGB or RGBA, upright, in sRGB, without metadata; `format` is png, jpeg or webp.

    `adjustments` say what was not taken over as it is; `record` is what an imagewright picture says of itself: unsigned
    words of a stranger, to be shown, never followed.
    """

    image: Image.Image
    format: str
    adjustments: tuple[Adjustment, ...] = ()
    record: Mapping[str, Any] | None = None


class Decoder:
    """Up to `workers` processes that decode; `decode` from any thread, `adecode` from async code."""

    def __init__(
        self,
        workers: int = 2,
        *,
        max_bytes: int = MAX_BYTES,
        max_side: int = MAX_SIDE,
        memory: int = MEMORY,
        seconds: int = SECONDS,
        recycle: int = RECYCLE,
    ) -> None:
        self.max_bytes, self.max_side = max_bytes, max_side
        self.ended = 0  # processes that pictures have ended
        self._memory, self._seconds, self._recycle = memory, seconds, recycle
        self._threads = ThreadPoolExecutor(workers, "decode")
        self._free = threading.BoundedSemaphore(workers)
        self._idle: list[_Process] = []  # the last used is the first used again

    async def adecode(self, data: bytes, what: What = "image") -> Upload:
        """`decode`, without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.decode, data, what)

    def decode(self, data: bytes, what: What = "image") -> Upload:
        """The picture in `data`. Raises PictureError where it is none, too large, or ends or holds up its decoder."""
        self._look_at(data, what)
        with self._free:
            process = self._take()
            try:
                told, pixels = process.ask(MASK if what == "mask" else IMAGE, data, _PATIENCE * self._seconds)
                return self._upload(told, pixels, what)
            except _Broken as error:
                process.end()
                self.ended += 1
                log.warning("a decoding process was ended: %s", error)
                raise PictureError(
                    f"The {what} cannot be decoded: {error}.", "Save it again as a plain PNG."
                ) from error
            finally:
                self._give_back(process)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown()
        while self._idle:
            self._idle.pop().end()

    def _look_at(self, data: bytes, what: str) -> None:
        """What needs no decoder to be refused."""
        if len(data) > self.max_bytes:
            limit = f"{self.max_bytes / 2**20:.4g} MiB"
            raise PictureError(
                f"The {what} has {len(data) / 2**20:.4g} MiB; at most {limit} are read.", "Make it smaller."
            )
        if not data:
            raise PictureError(f"The {what} is empty.", "Send the bytes of a PNG, JPEG or WebP file.")
        if not sniffed(data):
            kind = next((name for start, name in _OTHERS.items() if data.lstrip().startswith(start)), "something else")
            raise PictureError(f"The {what} is not PNG, JPEG or WebP, but {kind}.", "Convert it to PNG, JPEG or WebP.")

    def _take(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.alive:
                return process
            process.end()
        return _Process(self._memory, self._seconds, self.max_side)

    def _give_back(self, process: _Process) -> None:
        if process.alive and process.asked < self._recycle:
            self._idle.append(process)
        else:
            process.end()

    def _upload(self, told: Mapping[str, Any], pixels: bytearray, what: str) -> Upload:
        """The answer of a process, which is believed as little as the upload."""
        if "message" in told:
            raise PictureError(str(told["message"])[:500], str(told.get("fix", ""))[:500])
        notes = tuple(Adjustment(what, *map(str, note)) for note in told["notes"])
        image = Image.frombuffer(told["mode"], tuple(told["size"]), pixels, "raw", told["mode"], 0, 1)
        return Upload(image, told["format"], notes, told["record"])


def sniffed(data: bytes) -> str | None:
    """The media type that the first bytes say, or None where it is not one that is decoded."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


_OTHERS = {
    b"GIF8": "GIF",
    b"<svg": "SVG",
    b"<?xml": "XML, perhaps SVG",
    b"<": "HTML or XML",
    b"%PDF": "PDF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"{": "JSON",
    b"data:": "a data URL",
}


class _Broken(Exception):
    """A process died, or did not answer as agreed; the text says how."""


class _Process:
    """One decoding process."""

    def __init__(self, memory: int, seconds: int, side: int) -> None:
        self.asked, self._late = 0, False
        self._side = side
        command = [*_COMMAND, str(memory), str(seconds), str(side)]
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        try:
            self._popen = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C at the server's terminal is not meant for it
            )
        except OSError as error:
            raise DecoderError(f"No process to decode pictures can be started: {error}.", _LOOK) from error
        try:
            with self._clock(_START):
                self._answer()
        except _Broken as error:
            self.end()
            raise DecoderError(f"The process that decodes pictures does not start: {error}.", _LOOK) from error

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, kind: bytes, data: bytes, seconds: float) -> tuple[dict[str, Any], bytearray]:
        """Its answer to a file. Raises _Broken."""
        self.asked += 1
        with self._clock(seconds), suppress(BrokenPipeError):  # its answer then says why
            _write(self._popen.stdin, REQUEST.pack(kind, len(data)))
            _write(self._popen.stdin, data)
            return self._answer()
        raise _Broken(self._why())

    def end(self) -> None:
        """Kill it, where it still runs, and let go of it."""
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self) -> tuple[dict[str, Any], bytearray]:
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        if length > _MAX_TOLD:
            raise _Broken("its decoder gave a wrong answer")
        try:
            told = json.loads(self._read(length))
            size = _checked_size(told, self._side)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _Broken("its decoder gave a wrong answer") from error
        return told, self._read(size)

    def _read(self, size: int) -> bytearray:
        found, pipe = bytearray(size), self._popen.stdout
        rest = memoryview(found)
        while rest:
            count = pipe.readinto(rest)  # type: ignore[union-attr]  # a pipe without a buffer
            if not count:
                raise _Broken(self._why())
            rest = rest[count:]
        return found

    @contextmanager
    def _clock(self, seconds: float) -> Iterator[None]:
        """Kills it after so many seconds, which whoever waits for its answer then notices."""
        timer = threading.Timer(seconds, self._give_up)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # so that it cannot strike later, at the next picture

    def _give_up(self) -> None:
        self._late = True
        self._popen.kill()

    def _why(self) -> str:
        """How it ended."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(1)
        code = -(self._popen.poll() or 0)
        if self._late or code == _OUT_OF_TIME:
            return "it takes too long"
        return f"it ended its decoder ({signal.Signals(code).name if code > 0 else code})"


def _checked_size(told: Any, side: int) -> int:
    """The bytes of pixels that follow. Raises ValueError, TypeError or KeyError on what no decoder of ours says."""
    if not isinstance(told, dict):
        raise TypeError
    if "size" not in told:
        return 0
    width, height = told["size"]
    lengths = {len(note) for note in told["notes"]}
    whole = type(width) is type(height) is int and 1 <= width <= side and 1 <= height <= side
    if not whole or told["mode"] not in ("RGB", "RGBA") or told["format"] not in FORMATS or lengths - {3}:
        raise ValueError
    if not isinstance(told["record"], dict | None):
        raise ValueError
    return int(width * height * len(told["mode"]))


def _write(pipe: Any, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[pipe.write(rest) :]
