"""The command line without an engine: flags, places, errors."""

import io
import re
import shutil
import subprocess
import sys

import pytest

from keyturn.engine.wire.config import Completion
from keyturn.engine.wire.errors import BadPosition, BadRequest, DocumentRefused
from keyturn.server import commands, file_completion
from keyturn.server.cli import main
from keyturn.server.complete_command import open_place
from keyturn.server.settings import COMMAND_LINE, with_values


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    code = "import sys; from keyturn.server.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def error_of(capfd, *arguments: str) -> str:
    """Run a command that must fail with one line, and return it."""
    assert main(list(arguments)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("keyturn: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def code_file(tmp_path):
    path = tmp_path / "a:b.py"
    path.write_bytes("é = 1\r\n\fx\u2028y = 😀2\rz".encode())
    return path


@pytest.mark.parametrize(
    ("line", "column", "offset"), [(1, 0, 0), (1, 5, 5), (2, 8, 15), (2, 9, 16), (3, 1, 18)]
)
def test_place_counts_lines_from_1_and_columns_in_code_points(
    code_file, line, column, offset
) -> None:
    place = open_place(f"{code_file}:{line}:{column}", COMMAND_LINE)
    assert place.offset == offset
    assert place.document.text == "é = 1\r\n\fx\u2028y = 😀2\rz"


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        (0, 0, "line 0 is not one of its 3 lines"),
        (4, 0, "line 4 is not one of its 3 lines"),
        (1, 6, "column 6 is beyond the end of line 1, which has 5 characters"),
        (3, 2, "column 2 is beyond the end of line 3"),
    ],
)
def test_place_outside_the_text_is_an_error(code_file, line, column, message) -> None:
    with pytest.raises(BadPosition, match=message):
        open_place(f"{code_file}:{line}:{column}", COMMAND_LINE)


@pytest.mark.parametrize("place", ["a.py", "a.py:3", ":1:2", "a.py:x:1", "a.py:1:-1", "a.py:1:"])
def test_place_of_another_form_is_an_error(place) -> None:
    with pytest.raises(BadRequest, match="FILE:LINE:COL"):
        open_place(place, COMMAND_LINE)


def test_byte_order_mark_is_no_column(tmp_path) -> None:
    path = tmp_path / "bom.py"
    path.write_bytes(b"\xef\xbb\xbfab")
    assert open_place(f"{path}:1:1", COMMAND_LINE).document.text == "ab"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\xff", "not UTF-8 .byte 1."),
        ("abc".encode("utf-16"), "not UTF-8"),
        (b"a\0b", "binary"),
        (b"x" * 60, "max_line_chars = 50"),
        (b"x\n" * 60, "max_document_bytes = 100"),
    ],
)
def test_file_that_no_one_completes_in_is_refused(tmp_path, data, message) -> None:
    path = tmp_path / "data"
    path.write_bytes(data)
    settings = with_values(COMMAND_LINE, max_document_bytes=100, max_line_chars=50)
    with pytest.raises(DocumentRefused, match=message):
        open_place(f"{path}:1:0", settings)


def test_errors_are_one_line_with_exit_code_2(capfd, tmp_path) -> None:
    place = f"{tmp_path}/none.py:1:0"
    assert "no such file" in error_of(capfd, "complete", place)
    assert "cannot read" in error_of(capfd, "complete", f"{tmp_path}:1:0")
    assert "FILE:LINE:COL" in error_of(capfd, "complete", f"{tmp_path}/none.py:1:{'9' * 5000}")
    assert "--top-p 3.0: must be a number above 0" in error_of(
        capfd, "complete", place, "--top-p", "3"
    )
    assert "--max-tokens 0" in error_of(capfd, "complete", place, "--max-tokens", "0")
    assert "--threads -1: must be" in error_of(capfd, "complete", place, "--threads", "-1")
    assert "--depth half" in error_of(capfd, "complete", place, "--depth", "half")
    assert "--depth 999" in error_of(capfd, "complete", place, "--depth", "9" * 5000)
    assert "--layout sideways" in error_of(capfd, "complete", place, "--layout", "sideways")
    trace = f"{tmp_path}/none.jsonl"
    assert "no such file" in error_of(capfd, "replay", trace)
    assert "--depth 0" in error_of(capfd, "replay", trace, "--depth", "0")
    assert "full, prefix, turn, repair, heal" in error_of(
        capfd, "replay", trace, "--policy", "fast"
    )
    for flag in ("--repair-tokens", "--budget-ms"):
        message = error_of(capfd, "replay", trace, "--policy", "turn", flag, "3")
        assert f"{flag} needs --policy repair" in message
        assert f"{flag} -1" in error_of(capfd, "replay", trace, flag, "-1")
    both = ("--repair-tokens", "8", "--budget-ms", "50")
    assert "exclude each other" in error_of(capfd, "replay", trace, *both)
    assert "above 0" in error_of(capfd, "replay", trace, "--heal-tokens-per-ms", "0")


@pytest.mark.parametrize(
    ("flags", "code", "shown"),
    [
        ([], 3, "not trained on sql; setting languages allows it, here as --languages sql"),
        (["--languages", "sql"], 0, ""),
        (["--languages", "Python, SQL"], 0, ""),
        (["--languages", "python"], 3, "not trained on sql"),
        (["--languages", "python,,sql"], 2, "--languages 'python,,sql': must be language"),
        (["--languages", ""], 2, "--languages '': must be language identifiers"),
    ],
)
def test_languages_that_are_named_are_completed(monkeypatch, capfd, tmp_path, flags, code, shown):
    completion = Completion("count", (1,), 5, 0, 1.0, 2.0, 2, "end", (0.9,))
    answer = (completion, ("python", "javascript"))
    monkeypatch.setattr(file_completion.Here, "complete", lambda *_: answer)
    path = tmp_path / "a.sql"
    path.write_text("select \n")
    assert main(["complete", f"{path}:1:7", "--no-connect", *flags]) == code
    out, err = capfd.readouterr()
    assert out == ("" if code else "count\n")
    assert shown in err and bool(shown) == bool(err)


@pytest.mark.parametrize("address", ["0.0.0.0:7000", "example.org:7000", "7000", "127.0.0.1:x"])
def test_tcp_is_loopback_only(capfd, monkeypatch, address) -> None:
    monkeypatch.setenv("KEYTURN_TOKEN", "t" * 20)
    assert "must be HOST:PORT" in error_of(capfd, "serve", "--tcp", address)


def test_tcp_needs_a_token(capfd, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("KEYTURN_TOKEN", raising=False)
    assert "needs a token" in error_of(capfd, "serve", "--tcp", "127.0.0.1:0")
    missing = str(tmp_path / "token")
    message = error_of(capfd, "serve", "--tcp", "127.0.0.1:0", "--token-file", missing)
    assert "no such file" in message


COMMANDS = ("complete", "replay", "serve", "engine", "calibrate", "doctor", "models", "stats")
# Flags that name a setting, and so tell its default.
DEFAULTS = {
    "--max-tokens": "max_tokens",
    "--temperature": "temperature",
    "--top-p": "top_p",
    "--seed": "seed",
    "--threads": "num_threads",
    "--device": "device",
    "--dtype": "dtype",
    "--idle-s": "host_idle_s",
    "--model": "model",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_described_with_its_default(capfd, monkeypatch, command) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capfd.readouterr().out
    described = dict(
        re.findall(r"^  (?:-h, )?(--[\w-]+)(?: \S+)?\s\s+(\S.*)$", shown, re.MULTILINE)
    )
    assert described.keys() == {*re.findall(r"--[a-z][\w-]+", shown.split("\n\n")[0]), "--help"}
    for flag in described.keys() & DEFAULTS.keys():
        default = getattr(COMMAND_LINE, DEFAULTS[flag])
        value = f"{default:g}" if isinstance(default, float) else str(default)
        assert "default" in described[flag] and value in described[flag], described[flag]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from keyturn.server.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pygls', 'asyncio', 'msgpack', 'keyturn.server.settings'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_each_shell_names_commands_and_flags(capfd, shell) -> None:
    assert main(["completion", shell]) == 0
    script = capfd.readouterr().out
    for name in ("complete", "replay", "serve", "doctor", "max-tokens", "token-file"):
        assert name in script
    # Files are offered where a file is asked for.
    assert {"bash": "_shtab_compgen_files", "zsh": ":_files", "fish": "__fish_complete_path"}[
        shell
    ] in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_bash_completes_flags_and_files(capfd, tmp_path) -> None:
    if not shutil.which("bash"):
        pytest.skip("bash is not here")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "keyturn.bash"
    script.write_text(capfd.readouterr().out, encoding="utf-8")
    (tmp_path / "app.py").write_text("")

    def offered(*words: str) -> list[str]:
        asked = " ".join(f"'{word}'" for word in words)
        code = (
            f"source {script}; COMP_WORDS=({asked}); COMP_CWORD={len(words) - 1}; "
            "_shtab_keyturn keyturn \"${COMP_WORDS[COMP_CWORD]}\" ''; "
            "printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(
            ["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        return done.stdout.split()

    assert offered("keyturn", "comp") == ["complete", "completion"]
    assert "--watch" in offered("keyturn", "complete", "--w")
    assert "app.py" in offered("keyturn", "complete", "ap")


def test_standard_input_is_the_text_and_the_file_only_its_name(monkeypatch, capfd, tmp_path):
    asked = []

    def complete(_: object, request: file_completion.Asked, __: object) -> file_completion.Answer:
        asked.append(request)
        return Completion("1", (1,), 5, 0, 1.0, 2.0, 2, "end", (0.9,)), ("python",)

    monkeypatch.setattr(file_completion.Here, "complete", complete)
    name = str(tmp_path / "not-there.py")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("é = \r\n".encode())))
    assert main(["complete", f"{name}:1:4", "--stdin", "--no-connect"]) == 0
    assert capfd.readouterr().out == "1\n"
    assert [(one.path, one.text, one.offset) for one in asked] == [(name, "é = \r\n", 4)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert "is not UTF-8" in error_of(capfd, "complete", f"{name}:1:0", "--stdin")
    both = ("complete", f"{name}:1:0", "--stdin", "--watch")
    assert "--watch and --stdin exclude each other" in error_of(capfd, *both)


def test_version_and_usage_errors() -> None:
    assert run("--version").stdout.startswith("keyturn ")
    for arguments in ([], ["fly"], ["complete"], ["serve", "--stdio", "--tcp", "x:1"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141), (MemoryError, 2)]
)
def test_interruption_leaves_no_traceback(monkeypatch, capfd, error, code) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(commands, "models", fail)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert main(["models"]) == code
    assert "Traceback" not in capfd.readouterr().err


def test_closed_output_leaves_no_traceback() -> None:
    code = (
        "import sys; from keyturn.server import cli, commands\n"
        "def many(_):\n"
        "    for _ in range(100_000): commands.print_text('x' * 100)\n"
        "commands.models = many\n"
        "sys.exit(cli.main(['models']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--candidates", "0", "--json"), "--candidates 0: must be a whole number from 1 to 3"),
        (("--candidates", "2"), "only seen in the JSON: add --json"),
    ],
)
def test_candidates_that_cannot_be_are_one_line(capfd, flags, message):
    assert message in error_of(capfd, "complete", "x.py:1:0", *flags)


@pytest.mark.parametrize("command", [("complete", "x.py:1:0"), ("replay", "t.jsonl"), ("engine",)])
@pytest.mark.parametrize("value", ["b1", "b9", "4", "q5"])
def test_unknown_quant_is_one_line(capfd, command, value):
    assert f"--quant {value}: must be one of" in error_of(capfd, *command, "--quant", value)


def test_quant_on_a_cpu_is_one_line_and_loads_no_model(capfd, code_file, tmp_path):
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"open": {"path": "a.py", "text": "x"}}\n')
    common = ("--device", "cpu", "--model", str(tmp_path / "none"), "--quant", "b4")
    for command in (("complete", f"{code_file}:1:0"), ("replay", str(trace))):
        error = error_of(capfd, *command, *common)
        assert "needs an NVIDIA GPU" in error and "leave quant out" in error


def test_an_engine_host_without_a_gpu_refuses_quant_at_once(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    error = error_of(capfd, "engine", "--socket", str(tmp_path / "s"), "--quant", "b3")
    assert "needs an NVIDIA GPU" in error
