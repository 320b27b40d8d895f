"""Completions for the command line: in the engine host that runs, or in this process."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..engine.wire.address import default_address
from ..engine.wire.config import Completion, CompletionParams, EngineConfig
from ..engine.wire.errors import HostUnavailable
from ..engine.wire.protocol import from_plain
from .engine_connection import adapter_path, model_name
from .engine_link import join, look
from .heartbeat import HEARTBEAT, until_silent
from .settings import Settings

if TYPE_CHECKING:
    from ..engine.host.engine_protocol import EngineSession

_LOOK_S = 5.0

# A completion and the model's languages.
Answer = tuple[Completion, tuple[str, ...]]


class Watcher(Protocol):
    """Who is told how a completion comes along."""

    def progress(self, what: str) -> None:
        """Be told what is being done, in a few words."""

    def wrote(self, raw: str, languages: tuple[str, ...]) -> None:
        """Be told what the model has written so far, untrimmed, and the model's languages."""


class Asked(NamedTuple):
    """A place in a text, and what is wanted there.

    Attributes:
        path: the file's name; relative to the working directory, or absolute.
        text: what is in it.
        offset: the cursor, in code points.
        params: budgets and sampling.
    """

    path: str
    text: str
    offset: int
    params: CompletionParams


class Here:
    """An engine in this process; its cache follows the file from one completion to the next."""

    def __init__(self, settings: Settings) -> None:
        """Load nothing yet."""
        self._settings = settings
        self._session: EngineSession | None = None
        self._languages: tuple[str, ...] = ()

    def complete(self, asked: Asked, watcher: Watcher) -> Answer:
        """Complete; the first time the model is loaded.

        Raises:
            EngineError: whatever the engine says.
        """
        session = self._open(asked, watcher)
        is_told = False
        raw = ""

        def check() -> None:
            nonlocal is_told
            if not is_told:
                is_told = True
                watcher.progress(f"prefilling {session.num_prompt_tokens} tokens")

        def on_text(piece: str, _: float) -> None:
            nonlocal raw
            raw += piece
            watcher.wrote(raw, self._languages)

        # Exact, as a host answers it.
        completion = session.complete(asked.offset, asked.params, check, on_text, heal=True)
        return completion, self._languages

    def _open(self, asked: Asked, watcher: Watcher) -> EngineSession:
        if self._session is not None:
            self._session.set_text(asked.text)
            if self._session.anchor != asked.offset:  # as if opened there: nothing typed before it
                self._session.set_cursor(0 if asked.offset else len(asked.text))
            return self._session
        watcher.progress("loading torch")
        from ..engine.engine import Engine

        settings = self._settings
        engine = Engine(settings.engine_config())
        loaded = engine.load(
            settings.model, lambda what, percent: watcher.progress(f"{what}, {percent} %")
        )
        engine.adapt(settings.model, settings.adapter)
        self._languages = loaded.languages
        self._session = engine.open(
            asked.path,
            asked.text,
            path=os.path.abspath(asked.path),
            model=settings.model,
            policy=settings.policy,
            layout=settings.layout,
        )
        return self._session


async def complete_in_host(
    asked: Asked, settings: Settings, watcher: Watcher, *, insists: bool
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
        wanted = settings.engine_config()
        is_free = not found["num_clients"] and not _has_device(found, wanted)
        may_configure = insists and (found["engine"] is None or is_free)
        if insists and not may_configure and not _has_device(found, wanted):
            raise HostUnavailable(
                f"the engine host that runs has device = {found.get('device')}, dtype = "
                f"{found.get('dtype')}; ask for these, or leave out --connect"
            )
        request = {
            "path": os.path.abspath(asked.path),
            "text": asked.text,
            "offset": asked.offset,
            "params": asdict(asked.params),
            "model": model_name(settings),
            "policy": settings.policy,
            "layout": settings.layout,
            "stream": True,
        }
        loading = {"model": model_name(settings), "adapter": adapter_path(settings)}
        return await _answer(request, loading, wanted if may_configure else None, watcher)
    except HostUnavailable:
        if insists:
            raise
        return None


async def _answer(
    request: dict[str, Any],
    loading: dict[str, str | None],
    engine: EngineConfig | None,
    watcher: Watcher,
) -> Answer:
    try:
        link = await join(default_address(), engine)
    except (OSError, ValueError) as error:
        raise HostUnavailable(f"the engine host has just ended: {error}; try again") from None

    languages: tuple[str, ...] = ()
    raw = ""

    def on_event(name: str, fields: dict[str, Any]) -> None:
        nonlocal raw
        if name == "text":
            raw = raw[: fields["start"]] + fields["text"]
            watcher.wrote(raw, languages)
            return
        percent = f", {fields['percent']} %" if fields["percent"] else ""
        watcher.progress(fields["what"] + percent)

    async def ask() -> Answer:
        nonlocal languages
        loaded = await link.request("load", loading, on_event)
        languages = tuple(loaded["languages"])
        completion = await link.request("complete_file", request, on_event)
        return from_plain(Completion, completion), languages

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
    if found.get("adapters", {}).get(model_name(settings)) != adapter_path(settings):
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
