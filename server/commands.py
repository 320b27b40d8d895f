"""What each subcommand does. The engine, and torch with it, is imported only by those that run it.

Every function takes the parsed arguments and returns the exit code.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import NamedTuple

from ..engine.files.catalog import resolve
from ..engine.wire.config import POLICIES, Completion, CompletionParams, EngineConfig
from ..engine.wire.errors import BadPosition, BadRequest, DocumentRefused
from .documents import UTF32, Document, Limits, Position
from .settings import COMMAND_LINE, Settings, with_values

# `complete` worked, and there is nothing to suggest.
EXIT_NOTHING = 3
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Flags that are called as the settings they set.
_GIVEN_AS_CALLED = (
    *("model", "layout", "device", "dtype", "quant"),
    *("max_tokens", "temperature", "top_p"),
)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MIN_TOKEN_CHARS = 16


class Place(NamedTuple):
    """A cursor in a file."""

    name: str
    document: Document
    offset: int


def complete(arguments: argparse.Namespace) -> int:
    """Print one completion for a place in a file."""
    from ..engine.syntax.languages import language_of
    from .secrets import HiddenSecrets, HoldsSecret
    from .suggestion import asked, offered, untrained
    from .trim import Trimmed

    settings = with_values(_settings(arguments), languages=_names(arguments.languages))
    _check_depth(arguments.depth, None)
    place = open_place(arguments.place, settings)
    document, offset = place.document, place.offset
    params = asked(document.text, offset, settings.completion_params())
    secrets = HiddenSecrets(lambda: settings.hide_secrets)
    text = secrets.whole(document)
    completion, languages = _complete(place, text, params, settings, arguments)
    language = language_of("", place.name)
    try:
        shown = secrets.offered(document.uri, completion)
        kept = offered(shown, document.text, offset, language)
    except HoldsSecret as error:
        kept = Trimmed("", str(error))
    if (reason := untrained("", place.name, languages, settings.languages)) is not None:
        kept = Trimmed("", f"{reason}, here as --languages {language}")
    if arguments.json:
        _print(json.dumps(_figures(completion, kept.text, settings.model)) + "\n")
    elif kept.text:
        _print(kept.text + "\n")
    if not kept.text:
        reason = kept.reason or "the model suggests nothing here"
        sys.stderr.write(f"keyturn: no completion: {reason}\n")
        return EXIT_NOTHING
    return 0


def replay(arguments: argparse.Namespace) -> int:
    """Replay a trace and print its measurements."""
    policy = arguments.policy or Settings().policy
    if policy not in POLICIES:
        raise BadRequest(f"--policy {policy}: must be one of {', '.join(POLICIES)}")
    _check_repair_flags(arguments, policy)
    rate = arguments.heal_tokens_per_ms
    if rate is not None and not 0 < rate < float("inf"):
        raise BadRequest(f"--heal-tokens-per-ms {rate}: must be a number above 0")
    settings = with_values(_settings(arguments), policy=policy)
    trace = Path(arguments.trace)
    if not trace.exists():
        raise BadRequest(f"no such file: {trace}; give a trace of JSON lines")
    from ..engine.engine import Engine
    from ..engine.prompt.repair import RepairLimit
    from ..engine.replay.replay import run, write

    rows = run(
        trace,
        engine=Engine(settings.engine_config()),
        model=settings.model,
        policy=policy,
        oracle=not arguments.no_oracle,
        heal_tokens_per_ms=rate,
        layout=settings.layout,
        repair_limit=RepairLimit(arguments.budget_ms, arguments.repair_tokens),
    )
    write(rows, as_json=arguments.json, out=sys.stdout)
    return 0


def _check_repair_flags(arguments: argparse.Namespace, policy: str) -> None:
    rows, ms = arguments.repair_tokens, arguments.budget_ms
    for flag, value in (("--repair-tokens", rows), ("--budget-ms", ms)):
        if value is not None and policy != "repair":
            raise BadRequest(f"{flag} needs --policy repair")
    if rows is not None and ms is not None:
        raise BadRequest("--repair-tokens and --budget-ms exclude each other; give one of them")
    if rows is not None and rows < 0:
        raise BadRequest(f"--repair-tokens {rows}: must be a whole number from 0 up")
    if ms is not None and not 0 <= ms < float("inf"):
        raise BadRequest(f"--budget-ms {ms}: must be a number of milliseconds, 0 for no limit")


def serve(arguments: argparse.Namespace) -> int:
    """Run the language server for one client."""
    from . import transport

    _log_to_stderr(logging.INFO if arguments.verbose else logging.WARNING)
    # pygls logs whole messages, and a page for each that it cannot read; rpc.py logs one line.
    logging.getLogger("pygls").setLevel(logging.CRITICAL)
    if arguments.tcp:
        host, port = _address(arguments.tcp)
        frames, writer = transport.accept(host, port, _token(arguments.token_file))
    else:
        frames, writer = transport.stdio()

    from .app import KeyturnServer
    from .engine_client import EngineClient

    async def run() -> int:
        server = KeyturnServer(EngineClient())
        server.protocol.set_writer(writer)
        return await transport.serve(server, frames)

    return asyncio.run(run())


def engine(arguments: argparse.Namespace) -> int:
    """Run the engine host until nobody needs it."""
    from ..engine.host import host

    _log_to_stderr(logging.INFO)
    path = Path(arguments.socket) if arguments.socket else None
    settings = with_values(
        COMMAND_LINE, host_idle_s=arguments.idle_s, quant=getattr(arguments, "quant", None)
    )
    if settings.quant in (None, "none"):
        return host.main(path, settings.host_idle_s)
    from ..engine.engine import Engine

    Engine(settings.engine_config())  # refuses it now and not when the first client comes

    def make_engine(config: EngineConfig) -> Engine:
        return Engine(dataclasses.replace(config, quant=config.quant or settings.quant))

    return host.main(path, settings.host_idle_s, make_engine)


def doctor(arguments: argparse.Namespace) -> int:
    """Print what works here; exit code 1 if completion cannot work."""
    from .doctor import examine, report

    findings = examine(_settings(arguments))
    _print(json.dumps(findings, indent=2) + "\n" if arguments.json else report(findings))
    return 0 if findings["ok"] else 1


def models(arguments: argparse.Namespace) -> int:
    """Print known model families and what is on this disk."""
    from .doctor import list_models, models_report

    found = list_models()
    _print(json.dumps(found, indent=2) + "\n" if arguments.json else models_report(found))
    return 0


def stats(arguments: argparse.Namespace) -> int:
    """Print what became of suggestions, as far as it was noted."""
    from ..engine.wire.address import default_address
    from .events import log_path
    from .stats import figures, report

    found = figures(log_path(default_address()))
    _print(json.dumps(found, indent=2) + "\n" if arguments.json else report(found))
    return 0


def open_place(place: str, settings: Settings) -> Place:
    """Read the file of FILE:LINE:COL and find the place in it.

    Raises:
        BadRequest: `place` has another form, or the file cannot be read.
        DocumentRefused: the file is binary, not UTF-8, or too large.
        BadPosition: the line or column lies outside the text.
    """
    parts = place.rsplit(":", 2)
    if len(parts) != 3 or not parts[0] or not all(map(_is_number, parts[1:])):
        raise BadRequest(f"'{place}': must be FILE:LINE:COL, for instance app.py:10:4")
    name, line, column = parts[0], int(parts[1]), int(parts[2])
    document = Document(Path(name).resolve().as_uri(), 0, _read(name), UTF32, _limits(settings))
    if document.refusal:
        raise DocumentRefused(f"{name}: {document.refusal}")
    if not 1 <= line <= document.num_lines:
        raise BadPosition(f"{name}: line {line} is not one of its {document.num_lines} lines")
    length = len(document.line(line - 1))
    if column > length:
        raise BadPosition(
            f"{name}: column {column} is beyond the end of line {line}, which has {length} "
            "characters; columns count from 0"
        )
    return Place(name, document, document.offset(Position(line - 1, column)))


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 20  # int() refuses thousands of digits


def _read(name: str) -> str:
    try:
        data = Path(name).read_bytes()
    except FileNotFoundError:
        raise BadRequest(f"no such file: {name}") from None
    except (OSError, ValueError) as error:
        raise BadRequest(f"cannot read {name}: {getattr(error, 'strerror', error)}") from None
    try:
        return data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentRefused(
            f"{name} is not UTF-8 (byte {error.start}), so it is taken for a binary file; "
            "save it as UTF-8"
        ) from None


def _limits(settings: Settings) -> Limits:
    return Limits(settings.max_document_bytes, settings.max_line_chars)


def _settings(arguments: argparse.Namespace) -> Settings:
    given = {name: getattr(arguments, name, None) for name in _GIVEN_AS_CALLED}
    threads, seed = getattr(arguments, "threads", None), getattr(arguments, "seed", None)
    settings = with_values(COMMAND_LINE, **given, num_threads=threads, seed=seed)
    if getattr(arguments, "download", False):
        resolve(settings.model, download=True)
    return settings


def _names(value: str | None) -> list[str] | None:
    """Return the language identifiers of a flag, without white space around them."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    if not all(names):
        raise BadRequest(
            f"--languages '{value}': must be language identifiers with commas between them, for "
            "instance python,sql"
        )
    return names


def _check_depth(depth: str, num_layers: int | None) -> None:
    """Accept "full", or the model's own number of layers once that is known."""
    if depth == "full":
        return
    if not _is_number(depth) or (num_layers is not None and int(depth) != num_layers):
        known = "" if num_layers is None else f" or {num_layers}"
        raise BadRequest(f"--depth {depth}: only full{known} is available yet")


def _complete(
    place: Place,
    text: str,
    params: CompletionParams,
    settings: Settings,
    arguments: argparse.Namespace,
) -> tuple[Completion, tuple[str, ...]]:
    """Complete in a running host that would say the same, or in this process, as the flags ask.

    `text` is what the engine may see of the file. The model's languages are returned, too.
    """
    from .file_completion import complete_here, complete_in_host

    request = (place.name, text, place.offset, params, settings, _progress)
    found = None
    try:
        if not arguments.no_connect:
            found = asyncio.run(complete_in_host(*request, insists=arguments.connect))
        completion, languages = found or complete_here(*request)
    finally:
        _progress("")
    _check_depth(arguments.depth, completion.num_layers_run)
    return completion, languages


def _progress(what: str) -> None:
    """Show what is being done, in place of what was before, to somebody who watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{what and f'keyturn: {what}'}")
        sys.stderr.flush()


def _figures(completion: Completion, text: str, model: str) -> dict[str, object]:
    return {
        "text": text,
        "model": model,
        "num_prompt_tokens": completion.num_prompt_tokens,
        "num_reused_tokens": completion.num_reused_tokens,
        "ttft_ms": completion.ttft_ms,
        "total_ms": completion.total_ms,
        "num_layers_run": completion.num_layers_run,
        "stop_reason": completion.stop_reason,
    }


def _log_to_stderr(level: int) -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level, format=form)


def _print(text: str) -> None:
    """Write text as it is: no newline translation, UTF-8 whatever the locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def _address(value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host not in _LOOPBACK or not _is_number(port) or int(port) > 65_535:
        raise BadRequest(
            f"--tcp {value}: must be HOST:PORT with one of {', '.join(_LOOPBACK)}, "
            "for instance 127.0.0.1:7000"
        )
    return host, int(port)


def _token(path: str | None) -> str:
    token = _read(path).strip() if path else os.environ.get("KEYTURN_TOKEN", "")
    if len(token) < _MIN_TOKEN_CHARS:
        raise BadRequest(
            f"--tcp needs a token of {_MIN_TOKEN_CHARS} characters or more: put one into a file "
            "named by --token-file, or into KEYTURN_TOKEN"
        )
    return token
