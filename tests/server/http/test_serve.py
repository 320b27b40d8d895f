"""`keyturn serve --http` on the command line: addresses, tokens, and packages that are missing."""

import re
import socket
import sys

import pytest

from keyturn.server.cli import main

from .conftest import real_process


@pytest.fixture
def error_of(capfd, monkeypatch):
    """Run `serve` with flags, which must fail with one line, and return it."""
    monkeypatch.delenv("KEYTURN_TOKEN", raising=False)

    def error_of(*flags: str) -> str:
        assert main(["serve", *flags]) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err

    return error_of


@pytest.mark.parametrize("place", ["0.0.0.0:80", "example.org:80", "80", "127.0.0.1:x", ":80"])
def test_http_is_loopback_only(error_of, place) -> None:
    assert f"--http {place}: must be HOST:PORT" in error_of("--http", place)


@pytest.mark.parametrize("other", [["--stdio"], ["--tcp", "127.0.0.1:0"]])
def test_http_excludes_the_language_server(capfd, other) -> None:
    with pytest.raises(SystemExit) as error:
        main(["serve", "--http", "127.0.0.1:0", *other])
    assert error.value.code == 2
    assert "not allowed with argument" in capfd.readouterr().err


def test_flags_of_the_engine_need_http(error_of) -> None:
    assert "--model needs --http" in error_of("--model", "embedded")
    assert "--threads needs --http" in error_of("--threads", "2", "--tcp", "127.0.0.1:0")
    assert "--threads -1: must be" in error_of("--threads", "-1", "--http", "127.0.0.1:0")


def test_a_token_that_is_given_must_be_one(error_of, monkeypatch, tmp_path) -> None:
    (tmp_path / "token").write_text("short\n")
    file = str(tmp_path / "token")
    assert "--http needs a token of 16" in error_of("--http", "127.0.0.1:0", "--token-file", file)
    monkeypatch.setenv("KEYTURN_TOKEN", "short")
    assert "--http needs a token of 16" in error_of("--http", "127.0.0.1:0")


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_packages_that_are_missing_are_told_with_the_remedy(error_of, monkeypatch, package) -> None:
    ours_and_theirs = re.compile(r"keyturn\.server\.http|uvicorn|starlette")
    for name in [name for name in sys.modules if ours_and_theirs.match(name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = error_of("--http", "127.0.0.1:0")
    assert package in message and f"{sys.executable} -m pip install 'keyturn[http]'" in message


def test_a_port_in_use_is_told(error_of) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"--http {place}: " in error_of("--http", place)


@pytest.mark.slow
def test_a_token_in_a_file_or_in_the_environment_is_asked_for(tmp_path, tiny_model) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "token").write_text("a token of some length\n")
    flags = ["--model", str(tiny_model), "--token-file", str(tmp_path / "token")]
    with real_process(tmp_path, *flags, token="a token of some length") as tool:
        assert tool.infill("ab", "c", n_predict=2)["tokens_predicted"] <= 2
        tool.headers.clear()
        assert tool.get("/health")[0] == 401
