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
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..engine.files.catalog import resolve
from ..engine.syntax.languages import language_of
from ..engine.wire.config import POLICIES, EngineConfig
from ..engine.wire.errors import BadPosition, BadRequest, DocumentRefused
from .documents import UTF32, Document, Limits, Position
from .file_changes import moved, versions
from .file_completion import Answer, Asked, Here, complete_in_host
from .secrets import HiddenSecrets, HoldsSecret
from .settings import COMMAND_LINE, Settings, with_values
from .shown import Shown, print_text
from .suggestion import asked, offered, others_offered, untrained
from .transport import LOOPBACK
from .trim import Trimmed

# `complete` worked, and there is nothing to suggest.
EXIT_NOTHING = 3
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Flags that are called as the settings they set.
_GIVEN_AS_CALLED = (
    *("model", "adapter", "layout", "device", "dtype", "quant"),
    *("max_tokens", "temperature", "top_p"),
)
# Arguments for which a shell offers files.
_FILE_ARGUMENTS = ("place", "trace", "model", "adapter", "token_file", "socket")
_MIN_TOKEN_CHARS = 16
# Flags of `serve` that say what a language client's settings say otherwise.
_OF_HTTP = ("model", "adapter", "layout", "threads", "device", "dtype")


class Place(NamedTuple):
    """A cursor in a file."""

    name: str
    document: Document
    offset: int


def complete(arguments: argparse.Namespace) -> int:
    """Print one completion for a place in a file; with --watch, again whenever it has changed."""
    settings = _settings(arguments)
    given = {"languages": _names(arguments.languages), "num_candidates": arguments.candidates}
    settings = with_values(settings, **given)
    _check_depth(arguments.depth, None)
    if arguments.candidates is not None and not arguments.json:
        raise BadRequest("--candidates is only seen in the JSON: add --json")
    if arguments.watch and arguments.stdin:
        raise BadRequest("--watch and --stdin exclude each other: standard input does not change")
    written = sys.stdin.buffer.read() if arguments.stdin else None
    place = open_place(arguments.place, settings, written)
    here = Here(settings)
    if not arguments.watch:
        return _complete_at(place, here, settings, arguments)
    is_first = True
    for _ in versions(place.name):
        try:
            if not is_first:
                place = _read_again(place, settings)
            _complete_at(place, here, settings, arguments)
        except (BadRequest, DocumentRefused) as error:
            if is_first:
                raise
            sys.stderr.write(f"keyturn: {error}\n")
        is_first = False
    raise AssertionError("a file has versions without end")


def _read_again(place: Place, settings: Settings) -> Place:
    """Return the place in the file as it is now: it has moved with the text around it."""
    name, document = place.name, _document(place.name, _read(place.name), settings)
    return Place(name, document, moved(place.offset, place.document.text, document.text))


def _complete_at(
    place: Place, here: Here, settings: Settings, arguments: argparse.Namespace
) -> int:
    text, offset = place.document.text, place.offset
    language = language_of("", place.name)

    uri = place.document.uri
    secrets = HiddenSecrets(lambda: settings.hide_secrets)
    seen = secrets.whole(place.document)  # by the engine

    def reason_against(languages: tuple[str, ...]) -> str | None:
        return untrained("", place.name, languages, settings.languages)

    def may_be_shown_early(languages: tuple[str, ...]) -> bool:
        # A placeholder is known as one only when it is whole.
        return seen == text and reason_against(languages) is None

    shown = Shown(
        *(text, offset, language, may_be_shown_early),
        as_json=arguments.json,
    )
    params = asked(text, offset, settings.completion_params())
    if arguments.candidates is not None:
        params = replace(params, num_candidates=settings.num_candidates)
    request = Asked(place.name, seen, offset, params)
    try:
        completion, languages = _complete(request, here, settings, shown, arguments)
    finally:
        shown.clear()
    others: tuple[str, ...] = ()
    try:
        completion = secrets.offered(uri, completion)
        kept = offered(completion, text, offset, language)
        others = others_offered(completion, text, offset, language, kept.text)
    except HoldsSecret as error:
        kept = Trimmed("", str(error))
    if (reason := reason_against(languages)) is not None:
        kept, others = Trimmed("", f"{reason}, here as --languages {language}"), ()
    if not kept.text and others:
        kept, others = Trimmed(others[0], None), others[1:]
    candidates = (
        None if arguments.candidates is None else [text for text in (kept.text, *others) if text]
    )
    shown.end(completion, kept, settings.model, candidates)
    return 0 if kept.text else EXIT_NOTHING


def _complete(
    request: Asked, here: Here, settings: Settings, shown: Shown, arguments: argparse.Namespace
) -> Answer:
    """Complete in a running host that would say the same, or in this process, as the flags ask."""
    found = None
    if not arguments.no_connect:
        insists = arguments.connect
        found = asyncio.run(complete_in_host(request, settings, shown, insists=insists))
    answer = found or here.complete(request, shown)
    _check_depth(arguments.depth, answer[0].num_layers_run)
    return answer


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

    engine = Engine(settings.engine_config())
    engine.load(settings.model)
    engine.adapt(settings.model, settings.adapter)
    while engine.warm():  # a measurement waits for no compiler
        pass
    rows = run(
        trace,
        engine=engine,
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
    """Run the language server for one client, or the HTTP server for any."""
    from . import transport

    _log_to_stderr(logging.INFO if arguments.verbose else logging.WARNING)
    if arguments.http:
        return _serve_http(arguments)
    for name in _OF_HTTP:
        if getattr(arguments, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise BadRequest(f"{flag} needs --http: a language client sends its own settings")
    # pygls logs whole messages, and a page for each that it cannot read; rpc.py logs one line.
    logging.getLogger("pygls").setLevel(logging.CRITICAL)
    if arguments.tcp:
        host, port = _address("--tcp", arguments.tcp)
        token = _token("--tcp", arguments.token_file)
        frames, writer = transport.accept(host, port, token)
    else:
        frames, writer = transport.stdio()

    from .app import KeyturnServer
    from .engine_client import EngineClient

    async def run() -> int:
        server = KeyturnServer(EngineClient())
        server.protocol.set_writer(writer)
        return await transport.serve(server, frames)

    return asyncio.run(run())


def _serve_http(arguments: argparse.Namespace) -> int:
    host, port = _address("--http", arguments.http)
    settings = _settings(arguments)
    is_given = arguments.token_file or os.environ.get("KEYTURN_TOKEN")
    token = _token("--http", arguments.token_file) if is_given else None
    try:
        from .http import serving
    except ModuleNotFoundError as error:
        raise BadRequest(
            f"--http needs what the extra `http` installs ({error}): pip install 'keyturn[http]'"
        ) from None
    return serving.serve(host, port, settings, token)


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
    print_text(json.dumps(findings, indent=2) + "\n" if arguments.json else report(findings))
    return 0 if findings["ok"] else 1


def models(arguments: argparse.Namespace) -> int:
    """Print known models and what is on this disk; or fetch one."""
    from .model_list import download, list_models, models_report

    if arguments.download is not None:
        path = download(arguments.download)
        name = arguments.download
        print_text(
            json.dumps({"name": name, "path": path}) + "\n" if arguments.json else path + "\n"
        )
        return 0
    found = list_models()
    print_text(json.dumps(found, indent=2) + "\n" if arguments.json else models_report(found))
    return 0


def completion(arguments: argparse.Namespace) -> int:
    """Print what completes this command in a shell."""
    import shtab

    left: list[argparse.Action] = list(arguments.parser._actions)
    while left:
        action = left.pop()
        if isinstance(action, argparse._SubParsersAction):
            left += [inner for one in action.choices.values() for inner in one._actions]
        elif action.dest in _FILE_ARGUMENTS:
            action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
    print_text(shtab.complete(arguments.parser, arguments.shell) + "\n")
    return 0


def stats(arguments: argparse.Namespace) -> int:
    """Print what became of suggestions, as far as it was noted."""
    from ..engine.wire.address import default_address
    from .events import log_path
    from .stats import figures, report

    found = figures(log_path(default_address()))
    print_text(json.dumps(found, indent=2) + "\n" if arguments.json else report(found))
    return 0


def open_place(place: str, settings: Settings, written: bytes | None = None) -> Place:
    """Read the file of FILE:LINE:COL and find the place in it.

    Args:
        place: as on the command line.
        settings: limits of a document.
        written: what is in the file; None reads it.

    Raises:
        BadRequest: `place` has another form, or the file cannot be read.
        DocumentRefused: the file is binary, not UTF-8, or too large.
        BadPosition: the line or column lies outside the text.
    """
    parts = place.rsplit(":", 2)
    if len(parts) != 3 or not parts[0] or not all(map(_is_number, parts[1:])):
        raise BadRequest(f"'{place}': must be FILE:LINE:COL, for instance app.py:10:4")
    name, line, column = parts[0], int(parts[1]), int(parts[2])
    text = _read(name) if written is None else _decoded(name, written)
    document = _document(name, text, settings)
    if not 1 <= line <= document.num_lines:
        raise BadPosition(f"{name}: line {line} is not one of its {document.num_lines} lines")
    length = len(document.line(line - 1))
    if column > length:
        raise BadPosition(
            f"{name}: column {column} is beyond the end of line {line}, which has {length} "
            "characters; columns count from 0"
        )
    return Place(name, document, document.offset(Position(line - 1, column)))


def _document(name: str, text: str, settings: Settings) -> Document:
    document = Document(Path(name).resolve().as_uri(), 0, text, UTF32, _limits(settings))
    if document.refusal:
        raise DocumentRefused(f"{name}: {document.refusal}")
    return document


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 20  # int() refuses thousands of digits


def _read(name: str) -> str:
    try:
        data = Path(name).read_bytes()
    except FileNotFoundError:
        raise BadRequest(f"no such file: {name}") from None
    except (OSError, ValueError) as error:
        raise BadRequest(f"cannot read {name}: {getattr(error, 'strerror', error)}") from None
    return _decoded(name, data)


def _decoded(name: str, data: bytes) -> str:
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
        from .model_list import DownloadShown

        shown = DownloadShown()
        resolve(settings.model, download=True, progress=shown.note)
        shown.end()
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


def _log_to_stderr(level: int) -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level, format=form)


def _address(flag: str, value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host not in LOOPBACK or not _is_number(port) or int(port) > 65_535:
        raise BadRequest(
            f"{flag} {value}: must be HOST:PORT with one of {', '.join(LOOPBACK)}, "
            "for instance 127.0.0.1:7000"
        )
    return host, int(port)


def _token(flag: str, path: str | None) -> str:
    token = _read(path).strip() if path else os.environ.get("KEYTURN_TOKEN", "")
    if len(token) < _MIN_TOKEN_CHARS:
        raise BadRequest(
            f"{flag} needs a token of {_MIN_TOKEN_CHARS} characters or more: put one into a file "
            "named by --token-file, or into KEYTURN_TOKEN"
        )
    return token
