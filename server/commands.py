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
from functools import partial
from pathlib import Path

from ..engine.wire.config import POLICIES, EngineConfig
from ..engine.wire.errors import BadRequest
from .arguments import is_number, read, settings_of
from .complete_command import complete as complete
from .settings import COMMAND_LINE, Settings, with_values
from .shown import print_text
from .transport import LOOPBACK

# Arguments for which a shell offers files.
_FILE_ARGUMENTS = ("place", "trace", "model", "adapter", "token_file", "socket", "paths", "out")
_MIN_TOKEN_CHARS = 16
# Sub-layers that are searched for where no other number is said.
_NUM_SKIPPED = 8
# Flags of `serve` that say what a language client's settings say otherwise.
_OF_HTTP = ("model", "adapter", "layout", "threads", "device", "dtype")


def replay(arguments: argparse.Namespace) -> int:
    """Replay a trace and print its measurements."""
    policy = arguments.policy or Settings().policy
    if policy not in POLICIES:
        raise BadRequest(f"--policy {policy}: must be one of {', '.join(POLICIES)}")
    _check_repair_flags(arguments, policy)
    rate = arguments.heal_tokens_per_ms
    if rate is not None and not 0 < rate < float("inf"):
        raise BadRequest(f"--heal-tokens-per-ms {rate}: must be a number above 0")
    settings = with_values(settings_of(arguments), policy=policy)
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
        depth=arguments.depth or "full",
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


def calibrate(arguments: argparse.Namespace) -> int:
    """Learn where tokens may leave a model's layers, or what drafts skip; write it to a file."""
    if not 0 < arguments.risk < 0.5:
        raise BadRequest(f"--risk {arguments.risk:g}: must be a number above 0 and below 0.5")
    if arguments.places < 1:
        raise BadRequest(f"--places {arguments.places}: must be a whole number above 0")
    if arguments.skip is not None and arguments.skip < 1:
        raise BadRequest(f"--skip {arguments.skip}: must be a whole number above 0")
    if arguments.fill_in and (arguments.skip or arguments.oracle):
        raise BadRequest("--fill-in is about exits, --skip and --oracle are not; give one of them")
    settings = settings_of(arguments)
    from rich.console import Console
    from rich.progress import Progress

    from ..engine.calibration.calibrate import calibrate as learn
    from ..engine.calibration.skips import find_skips
    from ..engine.engine import Engine
    from ..engine.exits import depth_file, skip_file
    from ..engine.model.layers import go_on

    # A file that is damaged must not keep a new one from being made.
    engine = Engine(settings.engine_config(), finds_exits=False)
    decoder = engine.load(settings.model).decoder
    num_skipped = arguments.skip or (_NUM_SKIPPED if arguments.oracle else 0)
    out = Path(arguments.out) if arguments.out else None
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("trying sets" if num_skipped else "observing places", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        common = (engine, settings.model, arguments.paths)
        if num_skipped:
            searched = find_skips(
                *common,
                num_skipped=num_skipped,
                wants_oracle=arguments.oracle,
                check=go_on,
                progress=progress,
            )
            report = "".join(each.report() for each in searched)
            sets = {each.language: each.best for each in searched}
            path = out or skip_file.path_of(decoder)
            write = partial(skip_file.save, path, sets, decoder)
        else:
            found = learn(
                *common,
                risk=arguments.risk,
                num_places=arguments.places,
                fills_in=arguments.fill_in,
                check=go_on,
                progress=progress,
            )
            report, path = found.report(), out or depth_file.own_file(decoder)
            write = partial(depth_file.save, path, found.rule, decoder)
    try:
        write()
    except OSError as error:
        raise BadRequest(
            f"cannot write {path}: {error.strerror}; name another file with --out"
        ) from None
    print_text(report + f"written to {path}\n")
    return 0


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
    settings = settings_of(arguments)
    is_given = arguments.token_file or os.environ.get("KEYTURN_TOKEN")
    token = _token("--http", arguments.token_file) if is_given else None
    try:
        from .http import serving
    except ModuleNotFoundError as error:
        raise BadRequest(
            f"--http needs what the extra `http` installs ({error}): "
            f"{sys.executable} -m pip install 'keyturn[http]'"
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

    findings = examine(settings_of(arguments))
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
    from .events import log_path
    from .stats import figures, report

    found = figures(log_path())
    print_text(json.dumps(found, indent=2) + "\n" if arguments.json else report(found))
    return 0


def _log_to_stderr(level: int) -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level, format=form)


def _address(flag: str, value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host not in LOOPBACK or not is_number(port) or int(port) > 65_535:
        raise BadRequest(
            f"{flag} {value}: must be HOST:PORT with one of {', '.join(LOOPBACK)}, "
            "for instance 127.0.0.1:7000"
        )
    return host, int(port)


def _token(flag: str, path: str | None) -> str:
    token = read(path).strip() if path else os.environ.get("KEYTURN_TOKEN", "")
    if len(token) < _MIN_TOKEN_CHARS:
        raise BadRequest(
            f"{flag} needs a token of {_MIN_TOKEN_CHARS} characters or more: put one into a file "
            "named by --token-file, or into KEYTURN_TOKEN"
        )
    return token
