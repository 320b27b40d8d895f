"""What works here and what to do if it does not; which models there are.

Loads the model for real: a check that does less would find less. Torch comes with it, lazily.
"""

from __future__ import annotations

import asyncio
import hashlib
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..engine.wire.address import default_address
from ..engine.wire.errors import EngineError, HostUnavailable
from .engine_link import look
from .events import log_path
from .host_place import try_place
from .settings import Settings

_PACKAGES = (
    "torch",
    "numpy",
    "tokenizers",
    "safetensors",
    "gguf",
    "pygls",
    "lsprotocol",
    "msgpack",
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16")
_HOST_SECONDS = 5
_KERNELS_REMEDY = "edits and completions work, but slower than this GPU allows"
_PROBE = "def add(a, b):\n    return "


def examine(settings: Settings) -> dict[str, Any]:
    """Return what was found, as plain data; `ok` is whether completion works."""
    found: dict[str, Any] = {
        "ok": True,
        "version": version("keyturn"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {},
        "cpu_flags": _cpu_flags(),
        "problems": [],
    }
    for name in _PACKAGES:
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            _problem(found, f"package {name} is missing", "install keyturn again", fatal=True)
    found["host"] = _examine_host(found)
    found["event_log"] = str(log_path())
    logs = [found["host"]["log"], found["event_log"]]
    found["log_files"] = [path for path in logs if Path(path).exists()]
    if not found["packages"].get("torch"):
        return found
    try:
        _examine_model(found, settings)
    except EngineError as error:
        _tell(found, error, "keyturn models lists what there is")
    except Exception as error:
        remedy = "report this, or install the pinned versions of constraints.txt"
        _problem(found, f"{type(error).__name__}: {error}", remedy, fatal=True)
    return found


def report(found: dict[str, Any]) -> str:
    """Return the findings for people."""
    lines = [
        f"keyturn {found['version']} on Python {found['python']}, {found['platform']}",
        "packages   " + ", ".join(f"{name} {what}" for name, what in found["packages"].items()),
        "CPU        " + (", ".join(found["cpu_flags"]) or "no vector instructions known to matter"),
    ]
    if "model" in found:
        model = found["model"]
        lines += [
            f"model      {model['name']}: {model['path']}",
            f"           sha256 {model['sha256'] or '(a folder)'}",
            f"           loaded in {model['load_ms']:.0f} ms, "
            f"first token in {model['ttft_ms']:.0f} ms",
            f"device     {found['device']}, {found['dtype']}: {found['why']}",
            f"kernels    {found['kernels']['backend']}: {found['kernels']['why']}",
        ]
    host = found["host"]
    state = "not running (starts by itself)"
    if host["running"]:
        state = f"running, process {host['pid'] or 'not known: it does not answer'}"
    lines += [f"host       {state}; socket {host['socket']}"]
    for name, path in (("log", host["log"]), ("events", found["event_log"])):
        lines += [f"{name:<10} {path}" + ("" if path in found["log_files"] else " (none yet)")]
    for problem in found["problems"]:
        lines += [f"PROBLEM    {problem['problem']}", f"  remedy   {problem['remedy']}"]
    lines.append("completion works" if found["ok"] else "completion does not work")
    return "\n".join(lines) + "\n"


def _problem(found: dict[str, Any], problem: str, remedy: str, *, fatal: bool) -> None:
    found["problems"].append({"problem": problem, "remedy": remedy})
    found["ok"] = found["ok"] and not fatal


def _examine_model(found: dict[str, Any], settings: Settings) -> None:
    from ..engine.engine import Engine
    from ..engine.files.catalog import resolve

    path = resolve(settings.model)
    engine = Engine(settings.engine_config())
    examine_device(found, settings, engine.status())
    started_at = time.perf_counter()
    engine.load(settings.model)
    load_ms = (time.perf_counter() - started_at) * 1e3
    session = engine.open(
        "doctor",
        _PROBE,
        path="doctor.py",
        model=settings.model,
        policy=settings.policy,
        layout=settings.layout,
    )
    completion = session.complete(len(_PROBE), settings.completion_params(("\n",)), lambda: None)
    found["model"] = {
        "name": settings.model,
        "path": str(path),
        "sha256": _sha256(path) if path.is_file() else None,
        "load_ms": load_ms,
        "ttft_ms": completion.ttft_ms,
        "text": completion.text,
    }


def examine_device(found: dict[str, Any], settings: Settings, status: dict[str, Any]) -> None:
    """Note what an engine chose and why; kernels that a GPU should have had are a problem.

    Args:
        found: receives `device`, `dtype`, `kernels` and, in words, `why`; its list `problems` grows
            by what is wrong, and `ok` stays, since completion works without kernels.
        settings: what was asked for.
        status: of the engine, as `Engine.status` gives it.
    """
    device, kernels = status["device"], status["kernels"]
    found["device"], found["dtype"], found["kernels"] = device, status["dtype"], kernels
    found["why"] = _why(settings, device, status["dtype"])
    if device.startswith("cuda") and kernels["backend"] != "triton":
        problem, _, remedy = kernels["why"].partition("; ")
        _problem(found, problem, remedy or _KERNELS_REMEDY, fatal=False)


def _why(settings: Settings, device: str, dtype: str) -> str:
    where = (
        "as asked"
        if settings.device != "auto"
        else (
            "a CUDA device was found" if device.startswith("cuda") else "no CUDA device was found"
        )
    )
    if settings.dtype != "auto":
        return f"{where}; dtype as asked"
    if dtype == "bfloat16":
        return f"{where}; it multiplies in bfloat16"
    return f"{where}; it does not multiply in bfloat16, which would be emulated and slow"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cpu_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    flags = {
        flag
        for line in lines
        if line.startswith(("flags", "Features"))
        for flag in line.partition(":")[2].split()
    }
    return [flag for flag in _CPU_FLAGS if flag in flags]


def _examine_host(found: dict[str, Any]) -> dict[str, Any]:
    """Return where the shared engine host is, and its process if it runs; nothing is changed."""
    address = default_address()
    host: dict[str, Any] = {"running": False, "pid": None, "socket": str(address.socket)}
    try:
        try_place(address)
    except HostUnavailable as error:
        _tell(found, error, "make that possible, or set XDG_RUNTIME_DIR to a folder of yours alone")
    try:
        status = asyncio.run(look(address, _HOST_SECONDS))
        host |= {"running": status is not None, "pid": status and status["pid"]}
    except HostUnavailable as error:
        host |= {"running": True, "reason": str(error)}
        remedy = "an editor replaces it once it has waited for it; or end that process"
        _problem(found, str(error), remedy, fatal=False)
    return host | {"log": str(address.log)}


def _tell(found: dict[str, Any], error: EngineError, otherwise: str) -> None:
    """Note an EngineError: what is wrong, and after a semicolon what to do."""
    problem, _, remedy = str(error).partition("; ")
    _problem(found, problem, remedy or otherwise, fatal=True)


def list_models() -> dict[str, Any]:
    """Return the known families and the models on this disk, as plain data."""
    from ..engine.files.catalog import on_disk
    from ..engine.prompt.fim import FAMILIES

    return {
        "families": [
            {"name": family.name, "layouts": list(family.layouts), "example": family.example}
            for family in FAMILIES
        ],
        "on_disk": on_disk(),
    }


def models_report(found: dict[str, Any]) -> str:
    """Return the models for people."""
    lines = ["On this disk:"]
    for model in found["on_disk"]:
        lines.append(f"  {model['name']:<40} {model['num_bytes'] / 1e6:8.1f} MB  {model['path']}")
    lines += ["", "Families whose fill-in-the-middle format is known:"]
    for family in found["families"]:
        layouts = "/".join(family["layouts"])
        lines.append(f"  {family['name']:<16} {layouts:<8} for instance {family['example']}")
    lines += [
        "",
        "Any Llama-like model in a folder (config.json, safetensors, tokenizer.json) or a .gguf",
        "file works: --model PATH. Nothing is downloaded unless you say --download, for instance:",
        "  keyturn complete FILE:1:0 --download --model " + found["families"][0]["example"],
    ]
    return "\n".join(lines) + "\n"
