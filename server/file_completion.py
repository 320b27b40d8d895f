"""One completion for the command line: in the engine host that runs, or in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..engine.wire.address import default_address
from ..engine.wire.config import Completion, CompletionParams, EngineConfig
from ..engine.wire.errors import HostUnavailable
from ..engine.wire.protocol import from_plain
from .engine_connection import model_name
from .engine_link import join, look
from .heartbeat import HEARTBEAT, until_silent
from .settings import Settings

_LOOK_S = 5.0

Progress = Callable[[str], None]
# A completion and the model's languages.
Answer = tuple[Completion, tuple[str, ...]]


def complete_here(
    path: str,
    text: str,
    offset: int,
    params: CompletionParams,
    settings: Settings,
    progress: Progress,
) -> Answer:
    """Complete with an engine in this process."""
    progress("loading torch")
    from ..engine.engine import Engine

    engine = Engine(settings.engine_config())
    loaded = engine.load(settings.model, lambda what, percent: progress(f"{what}, {percent} %"))
    session = engine.open(
        path,
        text,
        path=os.path.abspath(path),
        model=settings.model,
        policy=settings.policy,
        layout=settings.layout,
    )
    is_told = False

    def check() -> None:
        nonlocal is_told
        if not is_told:
            is_told = True
            progress(f"prefilling {session.num_prompt_tokens} tokens")

    # Exact, as a host answers it.
    return session.complete(offset, params, check, heal=True), loaded.languages


async def complete_in_host(
    path: str,
    text: str,
    offset: int,
    params: CompletionParams,
    settings: Settings,
    progress: Progress,
    *,
    insists: bool,
) -> Answer | None:
    """Complete in the engine host that runs.

    Returns:
        None, unless the caller insists, when there is none, or none that has the model loaded and
        would give what an engine of this process gives.

    Raises:
        HostUnavailable: the caller insists, and there is none, or it has another device or dtype.
        EngineError: whatever the engine says.
    """
    try:
        found = await look(default_address(), _LOOK_S)
        if found is None:
            raise HostUnavailable(
                "no engine host is running; start an editor or `keyturn engine`, or leave out "
                "--connect"
            )
        if not insists and not _gives_the_same(found, settings):
            return None
        asked = settings.engine_config()
        is_free = not found["num_clients"] and not _has_device(found, asked)
        may_configure = insists and (found["engine"] is None or is_free)
        if insists and not may_configure and not _has_device(found, asked):
            raise HostUnavailable(
                f"the engine host that runs has device = {found.get('device')}, dtype = "
                f"{found.get('dtype')}; ask for these, or leave out --connect"
            )
        request = {
            "path": os.path.abspath(path),
            "text": text,
            "offset": offset,
            "params": asdict(params),
            "model": model_name(settings),
            "policy": settings.policy,
            "layout": settings.layout,
        }
        return await _asked(request, asked if may_configure else None, progress)
    except HostUnavailable:
        if insists:
            raise
        return None


async def _asked(
    request: dict[str, Any], engine: EngineConfig | None, progress: Progress
) -> Answer:
    try:
        link = await join(default_address(), engine)
    except (OSError, ValueError) as error:
        raise HostUnavailable(f"the engine host has just ended: {error}; try again") from None

    def on_event(_: str, fields: dict[str, Any]) -> None:
        progress(
            f"{fields['what']}, {fields['percent']} %" if fields["percent"] else fields["what"]
        )

    async def ask() -> Answer:
        loaded = await link.request("load", {"model": request["model"]}, on_event)
        completion = await link.request("complete_file", request, on_event)
        return from_plain(Completion, completion), tuple(loaded["languages"])

    answer = asyncio.ensure_future(ask())
    silence = asyncio.ensure_future(until_silent(link, HEARTBEAT, lambda: False))
    try:
        await asyncio.wait({answer, silence}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            pid = link.host["pid"]
            raise HostUnavailable(f"the engine host (process {pid}) does not answer; end it")
        return answer.result()
    finally:
        for task in (answer, silence):
            task.cancel()
        link.close()


# A file is completed over its whole window, and healed: what these say is never asked.
_NOT_OF_FILES = ("repair_budget_ms", "heal", "cold_budget_ms")


def _gives_the_same(found: dict[str, Any], settings: Settings) -> bool:
    """Return whether a host completes as an engine of this process would, without any loading."""
    asked, real = asdict(settings.engine_config()), found["engine"]
    if real is None or model_name(settings) not in found.get("models", ()):
        return False
    for name in _NOT_OF_FILES:
        asked.pop(name)
    for name in ("device", "dtype"):
        if asked.pop(name) not in (real[name], found.get(name)):
            return False
    return all(real[name] == value for name, value in asked.items())


def _has_device(found: dict[str, Any], asked: EngineConfig) -> bool:
    """Return whether a host runs on the device and in the dtype asked for, "auto" being any."""
    real = found["engine"] or {}
    return all(
        value in ("auto", real.get(name), found.get(name))
        for name, value in (("device", asked.device), ("dtype", asked.dtype))
    )
