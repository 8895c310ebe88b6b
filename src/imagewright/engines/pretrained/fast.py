"""The fast path on a CPU: OpenVINO runs the denoiser and the autoencoder, and diffusers' pipelines notice nothing.

`attach` puts a `Fast` in front of a module's `forward`. On the first call it converts the module (a minute for Stable
Diffusion), keeps the conversion in the cache folder under a hash of the weights and of all that is traced into it,
compiles it for the shapes at hand, and compares its output with torch's. Whatever does not convert, does not match
(PSNR below 30 dB), or was changed in a way that a trace does not show (adapters that were not fused, hooks), runs in
torch as before, and `told` says why.

OpenVINO's packages report each import to Google Analytics unless the user opted out beforehand; here the reporting
package is kept from being imported, which openvino itself provides for.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from imagewright.engines.pretrained import conversions
from imagewright.engines.pretrained.conversions import Kept
from imagewright.request import Adjustment
from imagewright.watch import Say

ENOUGH = 30.0  # dB of PSNR against torch; bfloat16 against float32 gives 45 to 60
KEPT = 2  # compiled shapes of each module; more would fill the memory
_ORDINARY = ("torch.nn.", "diffusers.models.")

T = TypeVar("T")
Run = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


class Unsuited(Exception):
    """This call cannot go through OpenVINO; the text says why."""


def attach(pipe: Any, say: Say = lambda text: None) -> None:
    """Puts OpenVINO in front of a pipeline's denoiser and of its autoencoder's two halves."""
    for name, module in _modules(pipe):
        runner = module.__dict__.get("forward")
        if isinstance(runner, Fast):
            runner.say = say
        elif runner is None:  # any other is a hook of somebody else
            module.forward = Fast(module, name, say)


def detach(pipe: Any) -> None:
    """Gives the modules their own `forward` back, and the memory of what was compiled."""
    for _, module in _modules(pipe):
        if isinstance(module.__dict__.get("forward"), Fast):
            del module.forward


def attached(pipe: Any) -> bool:
    """Whether OpenVINO stands in front of the denoiser."""
    return any(isinstance(module.__dict__.get("forward"), Fast) for _, module in _modules(pipe))


def active(pipe: Any) -> bool:
    """Whether the denoiser's next call will go through OpenVINO, as far as can be told before."""
    denoisers = [module for name, module in _modules(pipe) if not name.startswith("vae")]
    try:
        for module in denoisers:
            check_ordinary(module)
    except Unsuited:
        return False
    return attached(pipe)


def told(pipe: Any) -> list[Adjustment]:
    """What ran in torch after all since the last time this was asked, and why."""
    found = []
    for name, module in _modules(pipe):
        runner = module.__dict__.get("forward")
        if isinstance(runner, Fast) and runner.reason:
            found.append(Adjustment("fast path", f"{name}: openvino", f"{name}: torch", runner.reason))
            runner.reason = ""
    return found


def _modules(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    vae = getattr(pipe, "vae", None)
    for name, module in (
        ("unet", getattr(pipe, "unet", None)),
        ("transformer", getattr(pipe, "transformer", None)),
        ("vae.decoder", getattr(vae, "decoder", None)),
        ("vae.encoder", getattr(vae, "encoder", None)),
    ):
        if isinstance(module, nn.Module):
            yield name, module


class Fast:
    """Called in the place of a module's `forward`, with the same arguments and results."""

    def __init__(self, module: nn.Module, name: str, say: Say) -> None:
        self.module, self.name, self.say = module, name, say
        self.original = module.forward
        self.signature = inspect.signature(self.original)
        self.reason = ""  # why torch ran
        self._compiled: OrderedDict[str, Run] = OrderedDict()
        self._unsuited: dict[str, str] = {}
        self._hash: tuple[bytes, str] = (b"", "")  # what a look at the weights showed, and their hash

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            call = Call(self.signature, args, kwargs)
            check_ordinary(self.module)
            (result,) = self._runner(call)(call.tensors)
            if not torch.isfinite(result).all():
                raise Unsuited("OpenVINO's numbers overflowed")
        except Unsuited as why:
            self.reason = str(why)
            return self.original(*args, **kwargs)
        result = result.to(next(self.module.parameters()).dtype)
        return (result,) if call.as_tuple else result

    def _runner(self, call: Call) -> Run:
        seen, weights = look(self.module), self._hash[1]
        if seen != self._hash[0]:
            weights = weights_hash(self.module)
            self._hash = (seen, weights)
            self._compiled.clear()
        key = weights + call.structure + call.shapes
        if key in self._unsuited:
            raise Unsuited(self._unsuited[key])
        if key not in self._compiled:
            try:
                while len(self._compiled) >= KEPT:
                    self._compiled.popitem(last=False)
                self._compiled[key] = self._open(call, weights)
            except Unsuited as why:
                self._unsuited[key] = str(why)
                raise
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _open(self, call: Call, weights: str) -> Run:
        """The module compiled for these shapes, converted first where no conversion is kept, and checked."""
        kept = Kept(f"{openvino().__version__} {torch.__version__} {weights} {call.structure}")
        with self._plain(), _said_unsuited(), kept.lock():
            expected = None if kept.there() else self._convert(call, kept)
            try:
                run = compiled_file(kept.graph, call.tensors)
            except RuntimeError:  # damaged in a way that sizes do not show, or of shapes that the trace cannot take
                expected = self._convert(call, kept)
                run = compiled_file(kept.graph, call.tensors)
            if call.shapes not in kept.about["checks"]:
                expected = self._by_torch(call) if expected is None else expected
                kept.checked(call.shapes, psnr(run(call.tensors)[0], expected))
                self.say(f"{self.name} through OpenVINO: {kept.about['checks'][call.shapes]:.1f} dB against torch")
        found = kept.about["checks"][call.shapes]
        if not found >= ENOUGH:
            raise Unsuited(f"OpenVINO's output is off by too much ({found:.1f} dB against torch)")
        return run

    def _convert(self, call: Call, kept: Kept) -> torch.Tensor:
        """Keeps a conversion of the module; returns what torch gives in float32."""
        size = 4 * sum(p.numel() for p in self.module.parameters())
        _check_memory(3 * size)  # measured: a copy in float32, the traced one, and the one being written
        self.say(f"converting {self.name} for OpenVINO, once, in a minute or two; it is kept in {kept.folder.parent}")
        copy = deepcopy(self.module).float()
        copy.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        values = [value.float() for value in call.tensors]
        with torch.inference_mode(False), torch.no_grad():
            expected: torch.Tensor = _Traced(copy, call)(*(value.clone() for value in values))
            model = converted(_Traced(copy, call), values)
        kept.save(lambda path: openvino().save_model(model, path, compress_to_fp16=True))
        self.say(f"converted: {kept.megabytes:.0f} MB")
        return expected

    def _by_torch(self, call: Call) -> torch.Tensor:
        with torch.no_grad():
            dtype = next(self.module.parameters()).dtype
            result: torch.Tensor = _Traced(self.module, call)(*(value.to(dtype) for value in call.tensors))
        return result

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """The module with its own `forward`."""
        del self.module.forward
        try:
            yield
        finally:
            self.module.forward = self


class Call:
    """The arguments of a call, taken apart: its tensors in order, and the rest as a text that keys a conversion."""

    def __init__(self, signature: inspect.Signature, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        bound = signature.bind(*args, **kwargs)
        self.tensors: list[torch.Tensor] = []
        self.arguments = {name: self._taken(value, name) for name, value in bound.arguments.items()}
        wants_object = "return_dict" in signature.parameters and bound.arguments.get("return_dict", True)
        if wants_object:
            raise Unsuited("it is called for an output object")
        self.as_tuple = "return_dict" in signature.parameters
        ranks = [tuple(value.shape[1:2]) if value.ndim == 4 else value.ndim for value in self.tensors]
        self.structure = repr((self.arguments, ranks))
        self.shapes = repr([tuple(value.shape) for value in self.tensors])

    def _taken(self, value: Any, name: str) -> Any:
        """`value` with a `_Slot` in the place of each tensor."""
        if isinstance(value, torch.Tensor):
            if value.device.type != "cpu":
                raise Unsuited(f"{name} is on {value.device}")
            self.tensors.append(value.reshape(1) if value.ndim == 0 else value)
            return _Slot(len(self.tensors) - 1, value.ndim == 0)
        if isinstance(value, dict):
            return {str(key): self._taken(item, f"{name}.{key}") for key, item in sorted(value.items())}
        if isinstance(value, list | tuple):
            return [self._taken(item, name) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise Unsuited(f"{name} is a {type(value).__name__}")

    def filled(self, tensors: Sequence[torch.Tensor]) -> dict[str, Any]:
        """The arguments with `tensors` in them."""

        def fill(value: Any) -> Any:
            if isinstance(value, _Slot):
                return tensors[value.index].reshape(()) if value.scalar else tensors[value.index]
            if isinstance(value, dict):
                return {key: fill(item) for key, item in value.items()}
            return [fill(item) for item in value] if isinstance(value, list) else value

        return {name: fill(value) for name, value in self.arguments.items()}


class _Slot:
    def __init__(self, index: int, scalar: bool) -> None:
        self.index, self.scalar = index, scalar

    def __repr__(self) -> str:
        return f"<{self.index}{' scalar' if self.scalar else ''}>"


class _Traced(nn.Module):
    """A module as a function of tensors alone, with one tensor as its result."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        result = self.module(**self.call.filled(tensors))
        return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


@contextmanager
def _said_unsuited() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unsuited(f"the conversion cannot be kept in {conversions.folder()}: {_last_line(error)}") from error
    except RuntimeError as error:
        raise Unsuited(f"OpenVINO cannot compile it: {_last_line(error)}") from error


def check_ordinary(module: nn.Module) -> None:
    """Raises Unsuited where something was put into the module that a trace, or the cache's key, would miss."""
    if getattr(module, "encoder_hid_proj", None) is not None:
        raise Unsuited("it has an IP-Adapter")
    for part in module.modules():
        kind = type(part).__module__ + "."
        if not kind.startswith(_ORDINARY):
            raise Unsuited(f"it contains a {type(part).__module__}.{type(part).__name__}, as of a LoRA not fused")
        if part is not module and ("forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks):
            raise Unsuited(f"its {type(part).__name__} was given another forward or a hook")
        if any(getattr(part, name, None) is not None for name in ("s1", "s2", "b1", "b2")):
            raise Unsuited("FreeU is on")


def look(module: nn.Module) -> bytes:
    """A glance at a module that changes where its weights or paddings change: some numbers of each tensor."""
    digest = hashlib.blake2b()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            digest.update(part.padding_mode.encode())
    digest.update(_processors(module).encode())
    with torch.no_grad():
        for tensor in module.state_dict(keep_vars=True).values():
            every = max(1, tensor.numel() // 32)
            spread = tensor.detach().as_strided((tensor.numel() // every,), (every,))  # in the order of the memory
            digest.update(_bytes(spread.contiguous()))
    return digest.digest()


def weights_hash(module: nn.Module) -> str:
    """A hash of a module's structure and of every number in it."""
    config = {key: value for key, value in dict(getattr(module, "config", {})).items() if not key.startswith("_")}
    digest = hashlib.sha256(
        f"{json.dumps(config, sort_keys=True, default=str)} {module} {_processors(module)}".encode()
    )
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor.detach().contiguous()))
    return digest.hexdigest()


def _processors(module: nn.Module) -> str:
    return repr(sorted({type(p).__name__ for p in getattr(module, "attn_processors", {}).values()}))


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def openvino() -> Any:
    """The package openvino, its reporting of use left out. Raises ImportError where it is not installed."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as package

    return package


def converted(module: nn.Module, inputs: Sequence[torch.Tensor]) -> Any:
    """An OpenVINO model of a torch module. Raises Unsuited."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes: the output is compared instead
        try:
            return openvino().convert_model(module.eval(), example_input=tuple(inputs))
        except Exception as error:  # it raises whatever the module does under trace
            raise Unsuited(f"OpenVINO cannot convert it: {_last_line(error)}") from error


def compiled_file(graph: Path, tensors: Sequence[torch.Tensor]) -> Run:
    """A kept model, compiled for the shapes of `tensors`. Raises RuntimeError."""
    return _compiled(openvino().Core().read_model(graph), tensors)


def compiled(module: nn.Module, inputs: Sequence[torch.Tensor]) -> Callable[[], Any]:
    """A small module, converted and compiled for `inputs`, without a cache."""
    run = _compiled(converted(module, inputs), inputs)
    return lambda: run(inputs)


def _compiled(model: Any, tensors: Sequence[torch.Tensor]) -> Run:
    request = _aside(lambda: _request(model, [list(value.shape) for value in tensors]))

    def run(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        arrays = [value.detach().float().contiguous().numpy() for value in values]
        results = _aside(lambda: request.infer(arrays, share_inputs=True))
        return [torch.from_numpy(array.copy()) for array in results.values()]

    return run


def _request(model: Any, shapes: Sequence[list[int]]) -> Any:
    core = openvino().Core()
    model.reshape(dict(enumerate(shapes)))
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if native else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return core.compile_model(model, "CPU", options).create_infer_request()


_thread = ThreadPoolExecutor(1, "openvino")


def _aside(call: Callable[[], T]) -> T:
    """What `call` gives, called in a thread of its own: OpenVINO gives the thread that loads it a stack for signals,
    and frees that later; in the main thread, Ctrl-C would end in a crash then."""
    return _thread.submit(call).result()


def psnr(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the peak being the range of `expected`; NaN where either is not finite."""
    found, expected = found.float(), expected.float()
    error = ((found - expected) ** 2).mean()
    span = expected.max() - expected.min()
    return float(10 * torch.log10(span**2 / error.clamp_min(1e-20)))


def _check_memory(needed: int) -> None:
    import psutil  # comes with accelerate

    free = psutil.virtual_memory().available
    if needed > free:
        raise Unsuited(f"converting needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB is free")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
