"""`keyturn models`: what can be used, what of it is here, what suits this machine; downloads."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from typing import Any

from ..engine.files.catalog import EMBEDDED, fetch, on_disk, resolve

_SHOW_EVERY_S = 0.2
_STEP_PERCENT = 10


def list_models() -> dict[str, Any]:
    """Return known models, prompt formats and the models on this disk, as plain data."""
    from dataclasses import asdict

    from ..engine.files.architectures import ARCHITECTURES
    from ..engine.files.known_models import listed, this_machine
    from ..engine.prompt.fim_families import FAMILIES

    here, machine = on_disk(), this_machine()
    return {
        "machine": asdict(machine),
        "known": listed(machine, here),
        "architectures": list(ARCHITECTURES),
        "families": [
            {"name": family.name, "layouts": list(family.layouts), "example": family.example}
            for family in FAMILIES
            if family.example
        ],
        "on_disk": here,
    }


def models_report(found: dict[str, Any]) -> str:
    """Return the models for people, in lines of 80 columns; only a path may be longer."""
    machine = found["machine"]
    where = f"{machine['num_cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB of memory"
    if machine["gpu"]:
        where = f"{machine['gpu']}, {machine['gpu_bytes'] / 1e9:.0f} GB; {where}"
    lines = [
        "Models that fill in the middle, and the memory that completing with them takes,",
        f"in GB, on this machine ({where}):",
        "",
        f"  {'':<36} {'weights':>7} {'none':>5} {'q8':>5} {'q4':>5}  licence",
    ]
    notes = []
    for model in found["known"]:
        needed = [f"{model['needed_bytes'][quant] / 1e9:5.1f}" for quant in ("none", "q8", "q4")]
        mark = "*" if model["recommended"] else "+" if model["path"] else " "
        size = f"{model['num_weights'] / 1e9:6.2f}B"
        lines.append(f"{mark} {model['name']:<36} {size} {' '.join(needed)}  {model['licence']}")
        if model["recommended"]:
            quant = model["recommended"]
            flag = "" if quant == "none" else f" with --quant {quant}"
            notes.append(f"* {model['name']} suits this machine{flag}: {model['why']}.")
        if about := "; ".join(filter(None, (model["terms"], model["note"]))):
            notes.append(f"{model['name'].rpartition('/')[2]}: {about}.")
    lines += ["", *_wrapped(notes), "", "On this disk (* and + above):"]
    for model in found["on_disk"]:
        lines.append(f"  {model['name']:<60} {model['num_bytes'] / 1e6:10.1f} MB")
        if model["path"] != model["name"]:
            lines.append(f"    {model['path']}")
    lines += ["", "Families whose fill-in-the-middle format is known:"]
    for family in found["families"]:
        layouts = "/".join(family["layouts"])
        lines.append(f"  {family['name']:<14} {layouts:<7} for instance {family['example']}")
    wanted = next(m["name"] for m in found["known"] if m["name"] != EMBEDDED)
    architectures = f"Architectures that load: {', '.join(found['architectures'])}."
    lines += [
        "",
        *_wrapped([architectures]),
        "--model PATH of a folder (config.json, safetensors, tokenizer.json) or a .gguf.",
        "Nothing is downloaded unless you say so:",
        f"  keyturn models --download {wanted}",
    ]
    return "\n".join(lines) + "\n"


def _wrapped(texts: list[str]) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, 80, subsequent_indent="  ")]


def download(model: str) -> str:
    """Fetch a model, with its progress on standard error; return where it is.

    Raises:
        DownloadFailed: from `fetch`.
        ModelNotFound: from `resolve`.
    """
    if model == EMBEDDED:
        return str(resolve(model))
    shown, rest = DownloadShown(), ""
    # Other commands end at once; this one has something to say.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return str(fetch(model, shown.note))
    except KeyboardInterrupt:
        rest = "keyturn: stopped; the same command goes on from here\n"
        raise
    finally:
        shown.end()
        sys.stderr.write(rest)


class DownloadShown:
    """A download's progress: one line that moves on a terminal, else a line every tenth."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._is_terminal = sys.stderr.isatty()
        self._shown_at, self._shown = 0.0, ("", -1)
        self._begun: dict[str, tuple[float, int]] = {}

    def note(self, name: str, done: int, size: int) -> None:
        """Show how much of a file is here, in bytes."""
        now = time.monotonic()
        started_at, before = self._begun.setdefault(name, (now, done))
        percent = 100 * done // max(size, 1)
        step = (name, percent if self._is_terminal else percent // _STEP_PERCENT)
        if step == self._shown or (
            self._is_terminal and done < size and now < self._shown_at + _SHOW_EVERY_S
        ):
            return
        self._shown_at, self._shown = now, step
        speed = (done - before) / max(now - started_at, 1e-3)
        rest = f", {(size - done) / speed:.0f} s left" if speed and done < size else ""
        text = f"{name}: {percent} % of {size / 1e6:.1f} MB, {speed / 1e6:.1f} MB/s{rest}"
        sys.stderr.write(f"\r\x1b[K{text}" if self._is_terminal else f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._is_terminal and self._begun:
            sys.stderr.write("\n")
