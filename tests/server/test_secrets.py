"""Secrets are replaced by placeholders of the same length, after any edit, and never offered."""

import asyncio
import importlib
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.engine.wire.config import Completion
from keyturn.server import cli
from keyturn.server.documents import Edit
from keyturn.server.secrets import HoldsSecret, Masked, without_placeholders
from keyturn.server.secrets.masked import placeholder
from tests.server.test_app import URI, scenario, span

BENCHMARKS = str(Path(__file__).parent.parent.parent / "benchmarks")
sys.path.insert(0, BENCHMARKS)
planted = importlib.import_module("quality.planted").planted
KINDS = importlib.import_module("quality.planted").KINDS
sys.path.remove(BENCHMARKS)


def masked(text, language="python"):
    return Masked(text, language).text


def one(kind, seed=0):
    return planted(kind, random.Random(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_masked_and_nothing_else(kind, seed) -> None:
    line, secret, parts = one(kind, seed)
    text = f"def f(x):\n{line}\n    return x\n"
    found = masked(text)
    assert len(found) == len(text)
    assert all(part not in found for part in parts)
    at = text.index(secret)
    assert found[:at] + found[at + len(secret) :] == text.replace(secret, "", 1)


@pytest.mark.parametrize("seed", range(20))
def test_characters_stay_of_their_kind(seed) -> None:
    secret = "".join(random.Random(seed).choices("aZ9-_./+=!é漢٣", k=40))
    stands_for = placeholder(secret)
    assert len(stands_for) == len(secret)
    for char, other in zip(secret, stands_for, strict=True):
        kinds = (str.isalpha, str.isdigit, str.isupper)
        assert [kind(char) for kind in kinds] == [kind(other) for kind in kinds]


def test_the_same_secret_has_the_same_placeholder_at_every_place() -> None:
    line, secret, _ = one("GitHub")
    first, second = masked(f"{line}\n\nx = f({line!r})\n").split("\n\n")
    assert first[5:-2] in second and first[5:-2] != secret


@pytest.mark.parametrize(
    "line",
    [
        'password = "password"',
        'PASSWORD_FIELD = "user_password"',
        'token = "access_token_v2"',
        'key = "sha256"',
        'secret_key = os.environ["SECRET_KEY_2"]',
        'api_key = f"{prefix}-{number}1"',
        'password = "${PASSWORD1}"',
        'password = "********"',
        'token = get_token("abc1")',
        'url = "https://user:password@example.org"',
        'url = f"postgresql://{user}:{password}@{host}:5432"',
        'digest = "d41d8cd98f00b204e9800998ecf8427e"',
        'path = "/usr/lib/x86_64-linux-gnu/libssl.so.3"',
        'if "-----BEGIN PRIVATE KEY-----" in text:',
        'if text.startswith("-----BEGIN PRIVATE KEY-----"):',
        'tokenizer_class = "Qwen2TokenizerFast"',
        'token_class = "HiggsAudioV2TokenizerModel"',
        'CONTROL_TOKEN = "\\U000f0000"',
        "token_type_ids = [0, 1, 101, 102]",
        'license = "APACHE LICENSE"',
        "sk-learn-is-a-name-of-a-package",
    ],
)
def test_ordinary_code_stays_as_it_is(line) -> None:
    text = f"{line}\n    return value\n"
    assert masked(text) == text


def test_bare_values_are_masked_where_values_have_no_quotes() -> None:
    text = "DB_PASSWORD=x7Kp2qQz\nAPI_KEY: a81kd92jf0aa1 # ours\nname: a81kd92jf0aa1\n"
    found = masked(text, "dotenv")
    assert "x7Kp2qQz" not in found and found.count("a81kd92jf0aa1") == 1
    assert masked("password = password1\n", "python") == "password = password1\n"


def test_a_key_that_is_not_closed_ends_where_code_goes_on() -> None:
    line, _, parts = one("private key")
    head = line.split("\n-----END")[0]
    text = f"{head}\n\ndef f(value):\n    return value\nimport os\n"
    found = masked(text)
    assert found.endswith("\n\ndef f(value):\n    return value\nimport os\n")
    assert not any(part in found for part in parts)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_keys_of_several_lines_with_any_line_end(end) -> None:
    line, _, parts = one("private key")
    found = masked(line.replace("\n", end))
    assert not any(part in found for part in parts) and found.count(end) == line.count("\n")


# Edits.

PIECES = [
    *("a", "\n", "\r", '"', "=", " ", "-----", "é😀", "x = 1\n", "\n\n", "password", "PRIVATE KEY"),
    *(part for kind in KINDS for part in (one(kind)[0] + "\n", one(kind)[0][:30], one(kind)[1])),
    "-----BEGIN PRIV" + "ATE KEY-----\n",
    "\n-----END PRIV" + "ATE KEY-----",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def applied(text, edits):
    for start, end, new in edits:
        assert 0 <= start <= end <= len(text)
        text = text[:start] + new + text[end:]
    return text


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.data(), st.sampled_from(["python", "yaml"]))
def test_after_any_edits_the_engine_holds_the_masked_whole(text, data, language) -> None:
    held = Masked(text, language)
    engine = held.text
    for _ in range(data.draw(st.integers(1, 4))):
        edits = []
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(text)))
            end = data.draw(st.integers(start, min(len(text), start + 80)))
            edits.append(Edit(start, end, data.draw(TEXTS | st.sampled_from(["", "k", "\n"]))))
            text = applied(text, edits[-1:])
        engine = applied(engine, held.edit(edits))
        assert held.plain == text
        assert engine == held.text == masked(text, language)
        assert len(engine) == len(text)
        assert held.spans == Masked(text, language).spans


@pytest.mark.parametrize("kind", KINDS)
def test_typed_letter_by_letter_and_taken_back(kind) -> None:
    line, _, parts = one(kind)
    held = Masked("x = 1\ny = 2\n", "python")
    engine, text = held.text, held.plain
    steps = [Edit(6 + at, 6 + at, char) for at, char in enumerate(line)]
    for edit in steps + [Edit(one.start, one.start + 1, "") for one in reversed(steps)]:
        text = applied(text, [edit])
        engine = applied(engine, held.edit([edit]))
        assert engine == held.text == masked(text)
        if line in text:
            assert not any(part in engine for part in parts)
    assert engine == "x = 1\ny = 2\n"


def test_an_edit_elsewhere_is_one_edit() -> None:
    line, _, _ = one("private key")
    held = Masked(f"a\n{line}\nb\n", "python")
    assert held.edit([Edit(0, 1, "cc")]) == [Edit(0, 1, "cc")]
    assert held.edit([Edit(len(held.plain), len(held.plain), "d")])[0].text == "d"


# What is offered.


def test_a_completion_ends_before_the_line_with_a_placeholder() -> None:
    line, secret, _ = one("GitHub")
    held = Masked(f"{line}\n", "python")
    stands_for = placeholder(secret)
    raw = f'1\ny = 2\ngit("{stands_for}")\n'
    assert without_placeholders(raw, held) == "1\ny = 2\n"
    assert without_placeholders("1\ny = 2\n", held) == "1\ny = 2\n"
    for part in (stands_for, stands_for[:12], stands_for[-9:], f'git("{stands_for}")'):
        with pytest.raises(HoldsSecret, match="hidden"):
            without_placeholders(part, held)


def test_a_short_placeholder_is_known_as_a_whole() -> None:
    held = Masked('password = "a1b2c3"\n', "python")
    stands_for = held.text[12:18]
    assert held.num_safe(f"x {stands_for}") == 2
    assert held.num_safe(stands_for[:5]) == 5


# In the language server and on the command line.


@scenario()
async def test_the_engine_never_sees_a_secret(client) -> None:
    await client.initialize()
    line, secret, _ = one("Stripe")
    client.open(f"{line}\nx = \n")
    assert secret not in client.server.engine.texts[URI][1]
    client.change(2, {"range": span(1, 4, 4), "text": f'"{secret}"'})
    version, text = client.server.engine.texts[URI]
    assert version == 2 and secret not in text and text.count(placeholder(secret)) == 2


@scenario()
async def test_edits_keep_the_engine_in_step(client) -> None:
    await client.initialize()
    line, secret, _ = one("password")
    client.open("x = {\n\n}\n")
    for at, char in enumerate(line):
        client.change(at + 2, {"range": span(1, at, at), "text": char})
    # The fake engine compares its text with the server's after each edit.
    version, text = client.server.engine.texts[URI]
    assert version == len(line) + 1 and text == masked(f"x = {{\n{line}\n}}\n")
    assert secret not in text
    held = (await client.request("keyturn/documents"))["result"][0]
    assert held["num_chars"] == len(client.server.engine.texts[URI][1])


@scenario()
async def test_long_text_is_looked_at_while_others_are_served(client) -> None:
    await client.initialize()
    texts = client.server.engine.texts
    line, secret, _ = one("Stripe")
    text = "x = {'key': 1.5}  # a.b\n" * 12_000 + f"{line}\n"
    client.open(text)
    assert (await client.request("keyturn/status"))["result"]["num_documents"] == 1
    assert URI not in texts
    client.change(2, {"range": span(0, 0, 0), "text": f'y = "{secret}"\n'})
    client.change(3, {"range": span(1, 0, 0), "text": "z = \n"})
    assert URI not in texts
    reply = await client.reply(client.ask(1, 4))
    assert reply["result"][0]["insertText"]
    version, held = texts[URI]
    assert version == 3 and secret not in held and held.count(placeholder(secret)) == 2
    assert held == masked(f'y = "{secret}"\nz = \n' + text)


@scenario()
async def test_long_text_that_is_closed_or_replaced_meanwhile_is_let_go(client) -> None:
    await client.initialize()
    texts = client.server.engine.texts
    line, _, _ = one("Stripe")
    long = "x = {'key': 1.5}  # a.b\n" * 12_000 + f"{line}\n"
    client.open(long)
    await asyncio.sleep(0.01)
    client.change(2, {"text": f"{line}\n"})
    assert texts[URI] == (2, masked(f"{line}\n"))
    client.change(3, {"text": long})
    client.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
    await asyncio.sleep(0.1)
    assert URI not in texts


@scenario()
async def test_the_reason_is_told_when_a_placeholder_is_withheld(client) -> None:
    await client.initialize()
    line, secret, _ = one("GitHub")
    client.open(f"{line}\nx = \n")
    client.server.engine.text = f'git("{placeholder(secret)}")'
    assert (await client.reply(client.ask(1, 4)))["result"] == []
    status = (await client.request("keyturn/status"))["result"]
    assert "secret" in status["completions"]["recent_reasons"][-1]


@scenario()
async def test_the_setting_takes_effect_at_once(client) -> None:
    await client.initialize(options={"hide_secrets": False})
    line, secret, _ = one("GitHub")
    client.open(f"{line}\nx = \n")
    assert secret in client.server.engine.texts[URI][1]
    for value in (True, False):
        options = {"keyturn": {"hide_secrets": value}}
        client.notify("workspace/didChangeConfiguration", {"settings": options})
        assert (secret in client.server.engine.texts[URI][1]) is not value


def test_the_command_line_hides_secrets_too(tmp_path, monkeypatch, capsys) -> None:
    line, secret, _ = one("GitHub")
    path = tmp_path / "a.py"
    path.write_text(f"{line}\nx = \n")
    seen = []

    def complete(_, asked, watcher):
        seen.append(asked.text)
        return Completion(asked.text[5:45], (), 0, 0, 0.0, 0.0, 1, "end", ()), ("python",)

    monkeypatch.setattr("keyturn.server.file_completion.Here.complete", complete)
    assert cli.main(["complete", "--no-connect", f"{path}:2:4"]) == 3
    assert "secret" in capsys.readouterr().err
    assert len(seen[0]) == len(path.read_text()) and secret not in seen[0]
