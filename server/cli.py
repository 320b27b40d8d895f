"""The `keyturn` command: subcommands and their flags; what they do is in commands.py.

Nothing heavy is imported here: `keyturn --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from ..engine.wire.errors import EngineError, memory_error

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141
SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on standard error."""
    try:
        parser = _parser()
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help()
            return EXIT_ERROR
        from . import commands

        if arguments.command not in ("serve", "engine"):
            # Ctrl-C is how a watch ends.
            is_watch = getattr(arguments, "watch", False)
            _end_at_once_when_interrupted(0 if is_watch else EXIT_INTERRUPTED)
        code = getattr(commands, arguments.command)(arguments)
        sys.stdout.flush()
        return code
    except EngineError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted; Python must not complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    except ImportError as error:  # torch's libraries do not fit into memory, for instance
        return _fail(f"cannot load what it needs: {error}; free memory or install keyturn again")
    except Exception as error:
        if memory_error(error) is None:
            raise
        return _fail("out of memory: use a smaller model, --dtype bfloat16 or a shorter window")


def _end_at_once_when_interrupted(code: int) -> None:
    """Let Ctrl-C end the process: an exception in torch's start-up aborts with a C++ message."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))


def _fail(message: str) -> int:
    sys.stderr.write(f"keyturn: {' '.join(message.split())}\n")
    return EXIT_ERROR


class _Version(argparse.Action):
    def __call__(self, *_: object) -> NoReturn:
        from importlib.metadata import version

        sys.stdout.write(f"keyturn {version('keyturn')}\n")
        raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyturn",
        description="Code completion whose KV cache follows every edit.",
        epilog="A MODEL is 'embedded' (the default), a folder, a .gguf file, or a Hugging Face id "
        "in the local cache. Errors exit with code 2.",
    )
    parser.add_argument("--version", nargs=0, action=_Version, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_complete(commands)
    _add_replay(commands)
    _add_serve(commands)
    _add_engine(commands)
    _add_calibrate(commands)
    doctor = commands.add_parser(
        "doctor",
        help="say what works here, and what to do if not",
        description="Load the model, complete, try to start an engine host, and say what works "
        "here; for what does not, what to do.",
        epilog="Exit codes: 0 completion works, 1 it does not, 2 an error.",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object")
    _add_model_flags(doctor)
    models = commands.add_parser(
        "models",
        help="list models, what is on this disk and what suits this machine; fetch one",
        description="List published models with their memory here, which of them suits this "
        "machine, and the models on this disk; or fetch one into the Hugging Face cache.",
        epilog="HF_ENDPOINT, HF_HOME and HF_TOKEN mean what they mean to Hugging Face's own tools.",
    )
    models.add_argument("--json", action="store_true", help="one JSON object")
    models.add_argument(
        "--download",
        metavar="NAME",
        help="fetch owner/name, or owner/name/file.gguf; goes on where it stopped, and checks sums",
    )
    completion = commands.add_parser(
        "completion",
        help="print a script that completes this command in a shell",
        description="Print a script that completes keyturn's commands and flags in a shell.",
        epilog='bash: eval "$(keyturn completion bash)" in ~/.bashrc. zsh: keyturn completion zsh '
        "> a folder of $fpath/_keyturn. fish: keyturn completion fish > "
        "~/.config/fish/completions/keyturn.fish.",
    )
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    completion.set_defaults(parser=parser)
    stats = commands.add_parser(
        "stats",
        help="say how often suggestions are accepted and stay",
        description="Print rates of acceptance and persistence, keys saved, and how often the "
        "first word was wrong, from the local log that the setting event_log switches on.",
    )
    stats.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _add_complete(commands: argparse._SubParsersAction) -> None:
    complete = commands.add_parser(
        "complete",
        help="print one completion for a place in a file",
        description="Print one completion. It starts at the cursor, after trimming. Without a flag "
        "it comes from the running engine host if that has the model loaded, with the engine "
        "settings asked for here; else from this process; the text is the same. On a terminal it "
        "is shown in its place, as far as it is certain while it is written.",
        epilog="Exit codes: 0 a completion was printed, or a watch was ended with Ctrl-C; 3 there "
        "is nothing to suggest (standard error says why), 2 an error, 130 interrupted.",
    )
    complete.add_argument(
        "place", metavar="FILE:LINE:COL", help="1-based line, 0-based column in characters"
    )
    complete.add_argument(
        "--stdin",
        action="store_true",
        help="read the text from standard input; FILE is only its name",
    )
    complete.add_argument(
        "--watch",
        action="store_true",
        help="complete again whenever FILE has changed; the place moves with the text around it",
    )
    _add_model_flags(complete)
    _add_quant_flag(complete)
    _add_download_flag(complete)
    complete.add_argument("--json", action="store_true", help="the completion and its figures")
    complete.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help='so many different completions at most, from 1 to 3, as "candidates" in the JSON; by '
        "default 1",
    )
    complete.add_argument(
        "--max-tokens", type=int, metavar="N", help="most tokens to generate; by default 64"
    )
    complete.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0, the default, always takes the likeliest token",
    )
    complete.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="probability mass to sample from; by default 1, all of it",
    )
    complete.add_argument(
        "--seed", type=int, metavar="N", help="seed of the sampling; by default 0"
    )
    complete.add_argument(
        "--languages",
        metavar="A,B",
        help="suggest only in these languages (LSP identifiers such as python,sql); by default in "
        "those that the model was trained on",
    )
    _add_depth_flag(complete, "exact")
    where = complete.add_mutually_exclusive_group()
    where.add_argument(
        "--connect", action="store_true", help="run in the running engine host, or fail"
    )
    where.add_argument(
        "--no-connect", action="store_true", help="run in this process, whatever host there is"
    )


def _add_replay(commands: argparse._SubParsersAction) -> None:
    replay = commands.add_parser(
        "replay",
        help="apply a recorded trace of edits and completions, and measure",
        description="Apply a trace's edits and completions in order, and measure each completion "
        "against a full prefill.",
        epilog="Exit codes: 0 it was applied, 2 an error, 130 interrupted.",
    )
    replay.add_argument(
        "trace",
        metavar="TRACE.jsonl",
        help="a recorded trace; examples/traces of the sources has some, and what is in one",
    )
    _add_model_flags(replay)
    _add_quant_flag(replay)
    _add_depth_flag(replay, "full, so that rows do not depend on the machine")
    replay.add_argument(
        "--policy",
        default=None,
        help="how an edit is served: full, prefix, turn, repair (default), heal",
    )
    _add_download_flag(replay)
    replay.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    replay.add_argument(
        "--no-oracle", action="store_true", help="leave out the comparison with a full prefill"
    )
    replay.add_argument(
        "--heal-tokens-per-ms",
        type=float,
        metavar="R",
        help="healing speed in simulated idle time; by default the opening prefill's on this "
        "machine",
    )
    replay.add_argument(
        "--repair-tokens",
        type=int,
        metavar="N",
        help="stale rows computed again in a round of "
        "--policy repair; by default 9 %% of the prompt's",
    )
    replay.add_argument(
        "--budget-ms",
        type=float,
        metavar="MS",
        help="instead of --repair-tokens: what a round takes at most; 0 is no limit",
    )


def _add_serve(commands: argparse._SubParsersAction) -> None:
    serve = commands.add_parser(
        "serve",
        help="run the language server, or one for HTTP",
        description="Run the language server for one client; it ends when the client goes, with 0 "
        "after the client's `shutdown`, with 1 without it or where no LSP comes. With --http, "
        "answer tools that speak OpenAI's or llama.cpp's interface.",
    )
    how = serve.add_mutually_exclusive_group()
    how.add_argument(
        "--stdio", action="store_true", help="over standard input and output (default)"
    )
    how.add_argument(
        "--tcp",
        metavar="HOST:PORT",
        help="wait on a loopback address; the client's first line must be the token",
    )
    how.add_argument(
        "--http",
        metavar="HOST:PORT",
        help="answer /infill and /v1/completions on a loopback address; needs the extra `http`",
    )
    serve.add_argument(
        "--token-file",
        metavar="PATH",
        help="file with the token for --tcp, or with which --http asks for Authorization: Bearer; "
        "without it, the environment variable KEYTURN_TOKEN",
    )
    _add_model_flags(serve)
    serve.add_argument("--verbose", action="store_true", help="log more, on standard error")


def _add_engine(commands: argparse._SubParsersAction) -> None:
    engine = commands.add_parser(
        "engine",
        help="run the engine host that language servers share",
        description="Run the engine host. Language servers start it by themselves.",
    )
    engine.add_argument(
        "--socket", metavar="PATH", help="where to listen; by default the shared place"
    )
    engine.add_argument(
        "--idle-s",
        type=float,
        metavar="S",
        help="end so many seconds after the last client has gone; by default 300",
    )
    _add_quant_flag(engine)


def _add_calibrate(commands: argparse._SubParsersAction) -> None:
    calibrate = commands.add_parser(
        "calibrate",
        help="teach a model on your own code where tokens may leave its layers",
        description="Learn from source code at which layer a token of the model is sure enough to "
        'leave, for the depth "fast". Prints how many tokens are final after each layer. Takes '
        "minutes on a CPU; the code does not leave this machine, and the file that is written "
        "holds weights and no text.",
        epilog="The file is found when the model is loaded. Exit codes: 0 it was written, 2 an "
        "error, 130 interrupted.",
    )
    calibrate.add_argument(
        "paths",
        nargs="*",
        default=["."],
        metavar="PATH",
        help="files or folders of source code; by default this folder",
    )
    calibrate.add_argument(
        "--risk",
        type=float,
        default=0.01,
        metavar="R",
        help="of all tokens, so many may be others than all layers would give; by default 0.01",
    )
    calibrate.add_argument(
        "--places",
        type=int,
        default=400,
        metavar="N",
        help="places to learn from, at most; by default 400",
    )
    calibrate.add_argument(
        "--fill-in",
        action="store_true",
        help="several exits, and learnt keys and values for the layers that a token was not put "
        "through: far fewer layers, and more completions that differ; by default they are made up; "
        "not with --skip",
    )
    calibrate.add_argument(
        "--skip",
        type=int,
        metavar="N",
        help="search instead, for each language, N sub-layers (attention and MLPs count each by "
        'itself) that drafts of the depth "exact" may leave out',
    )
    calibrate.add_argument(
        "--oracle",
        action="store_true",
        help="with --skip, by default 8: print how far what is found is from the best of all that "
        "was tried for each token; takes twice as long",
    )
    calibrate.add_argument("--out", metavar="FILE", help="write it there and not where it is found")
    _add_model_flags(calibrate)
    _add_download_flag(calibrate)


def _add_download_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch a Hugging Face id into the local cache first; nothing else ever does",
    )


def _add_quant_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quant",
        metavar="Q",
        help="q4 or q8: round the model's matrices to 4 or 8 bits when it is loaded; b2 to b8: to "
        "so many bit planes, on a GPU; by default they stay as they are",
    )


def _add_depth_flag(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--depth",
        metavar="D",
        help="layers that a token runs through: full, exact (the same text sooner), fast, or a "
        f"number of the first ones; by default {default}",
    )


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL", help="which model; by default the embedded one")
    parser.add_argument(
        "--adapter", metavar="PATH", help="LoRA adapter of that model (PEFT); by default none"
    )
    parser.add_argument("--layout", metavar="L", help="spm or psm; by default the model's own")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads; 0, the default, is torch's choice"
    )
    parser.add_argument(
        "--device",
        metavar="D",
        help="auto (default: a GPU if there is one), cpu, or a torch device such as cuda:0",
    )
    parser.add_argument(
        "--dtype",
        metavar="T",
        help="auto (default: as fits the device), float32 or bfloat16",
    )
