"""`keyturn serve` with anything but an LSP client on its standard input, in its own process."""

import json
import os
import subprocess
import sys

import pytest

from .commands import KEYTURN

SERVE = [*KEYTURN, "serve"]
REMEDY = "run keyturn --help"
EXPECTED = "expected an LSP client on standard input"
GIVEN = {"processId": None, "rootUri": None, "capabilities": {}}
INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": GIVEN}
SHUTDOWN = {"jsonrpc": "2.0", "id": 2, "method": "shutdown"}
EXIT = {"jsonrpc": "2.0", "method": "exit"}


def framed(*messages: object) -> bytes:
    bodies = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in messages]
    return b"".join(b"Content-Length: %d\r\n\r\n%s" % (len(body), body) for body in bodies)


def served(data: bytes) -> tuple[int, str, list[str]]:
    done = subprocess.run(SERVE, input=data, capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode().splitlines()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"hello\n", "'hello\\n' is no header"),
        (b"hello", "'hello' is no header"),
        (b"[]", "'[]' is no header"),
        (b"", "it ended before the first message"),
        (b"Content-Length: 500\r\n\r\n{}", "it ended within a message"),
        (b"Content-Length: x\r\n\r\n{}", "is no header with a Content-Length"),
    ],
)
def test_what_is_no_lsp_ends_it_with_one_line(data, problem) -> None:
    code, out, errors = served(data)
    assert (code, out, len(errors)) == (1, "", 1)
    assert EXPECTED in errors[0] and problem in errors[0] and REMEDY in errors[0]


def test_a_line_that_somebody_types_is_answered_though_the_input_goes_on() -> None:
    with subprocess.Popen(
        SERVE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.wait(120) == 1
        assert EXPECTED in process.stderr.read().decode()


def test_a_message_after_one_that_is_too_long_for_its_header_ends_it() -> None:
    data = framed(INITIALIZE) + b"Content-Length: 1\r\n\r\n{}" + framed(SHUTDOWN)
    code, out, errors = served(data)
    assert code == 1 and '"capabilities"' in out and '"code": -32700' in out
    assert EXPECTED in errors[-1] and REMEDY in errors[-1]


@pytest.mark.parametrize("body", [b"hello", b"", b"\xff\xfe", b"[]", b"{}", b"null", b"[" * 9_000])
def test_a_body_that_is_no_message_is_refused_and_the_next_is_served(body) -> None:
    code, out, errors = served(framed(body, INITIALIZE, SHUTDOWN, EXIT))
    assert code == 0 and '"capabilities"' in out
    assert len(errors) == 1 and "refused" in errors[0]
    assert ('"code": -32700' in out) == (body not in (b"[]", b"{}", b"null"))


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ((INITIALIZE, SHUTDOWN, EXIT), 0),
        ((INITIALIZE, SHUTDOWN), 0),
        ((INITIALIZE, EXIT), 1),
        ((INITIALIZE,), 1),
        ((EXIT,), 1),
    ],
)
def test_the_end_of_the_input_is_an_exit(messages, code) -> None:
    found, _, errors = served(framed(*messages))
    assert found == code
    is_told = code == 1 and EXIT not in messages
    assert errors == [] if not is_told else "without `shutdown` and `exit`" in errors[0]
    assert len(errors) == is_told


@pytest.mark.skipif(os.name == "nt", reason="a shell closes it")
def test_closed_input_is_one_line() -> None:
    script = " ".join(SERVE) + " <&-"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "must be an LSP client's" in done.stderr and REMEDY in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_on_a_terminal_it_says_what_it_waits_for() -> None:
    import pty

    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            SERVE, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            assert b"waits for an LSP client" in process.stderr.readline()
            os.write(ours, b"hello\n")
            assert process.wait(120) == 1
    finally:
        os.close(ours)
        os.close(theirs)
