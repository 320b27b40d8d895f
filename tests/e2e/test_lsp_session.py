"""An editing session over a real process: the texts stay equal, every request is answered."""

import hashlib
import random
import re
import time

import pytest

from keyturn.server.documents import UTF16, num_units

URI = "file:///session.py"
START = (
    "\fimport os\r\n\r\ndef greet(name):\r\n"
    "    # 😀 says é\u2028hello\r\n    return 'hi ' + name\r\n"
)
PIECES = [*"abcxyz_ .(=\t", "é", "😀", "\r\n", "\f", "\n", "中", "return ", "\u2028"]


class Editor:
    """A client's text in UTF-16 units, as JavaScript editors hold it, and its cursor."""

    def __init__(self, text: str) -> None:
        self.text = text

    def position(self, offset: int) -> dict[str, int]:
        before = self.text[:offset]
        lines = re.split("\r\n|\n|\r", before)
        return {"line": len(lines) - 1, "character": num_units(lines[-1], UTF16)}

    def replace(self, start: int, end: int, text: str) -> dict[str, object]:
        """Change the text; return the change as LSP has it."""
        span = {"start": self.position(start), "end": self.position(end)}
        self.text = self.text[:start] + text + self.text[end:]
        return {"range": span, "text": text}

    def place(self, rng: random.Random) -> int:
        """Return some offset that is not inside a CRLF."""
        while True:
            offset = rng.randrange(len(self.text) + 1)
            if self.text[offset - 1 : offset + 1] != "\r\n":
                return offset


def held_hash(client, uri: str) -> tuple[int, str]:
    (held,) = [one for one in client.result("keyturn/documents") if one["uri"] == uri]
    return held["num_chars"], held["sha256"]


def hash_of(text: str) -> tuple[int, str]:
    return len(text), hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def wait_until_healed(client) -> None:
    """Wait until the host has nothing to do and no stale rows."""
    deadline = time.monotonic() + 120
    while not (host := client.result("keyturn/status", {"host": True})["host"])["is_idle"]:
        assert time.monotonic() < deadline, host
        time.sleep(0.02)
    assert host["num_stale_rows"] == 0, host


@pytest.mark.slow
def test_two_hundred_changes_with_half_of_the_requests_cancelled(start, options) -> None:
    client = start()
    client.initialize(options)
    rng = random.Random(11)
    editor = Editor(START)
    client.open(URI, START)
    client.wait_for_state("ready")
    cursor = START.index("hi ")
    cancelled, kept, version = [], [], 1
    for count in range(200):
        version += 1
        changes = []
        for _ in range(3 if count % 20 == 7 else 1):
            if count % 20 == 7:
                cursor = editor.place(rng)
            if count % 6 == 5 and cursor > 2:
                start_at = cursor - (2 if editor.text[cursor - 2 : cursor] == "\r\n" else 1)
                changes.append(editor.replace(start_at, cursor, ""))
                cursor = start_at
            else:
                piece = rng.choice(PIECES)
                changes.append(editor.replace(cursor, cursor, piece))
                cursor += len(piece)
            if editor.text[cursor - 1 : cursor + 1] == "\r\n":
                cursor += 1
        client.change(URI, version, *changes)
        at = editor.position(cursor)
        request = client.ask(URI, at["line"], at["character"], kind=1 + count % 2)
        if count % 2:
            client.notify("$/cancelRequest", {"id": request})
            cancelled.append(request)
        else:
            kept.append(request)
    for request in cancelled:
        reply = client.reply(request)
        assert "result" in reply or reply["error"]["code"] == -32800
    for request in kept:
        assert isinstance(client.reply(request)["result"], list)
    assert held_hash(client, URI) == hash_of(editor.text)

    fresh = "file:///fresh.py"
    client.open(fresh, editor.text)
    at = editor.position(len(editor.text))  # nothing stands behind it that must be run into
    texts = []
    for uri in (URI, fresh):
        client.complete(uri, 0, 0)  # leave the place, so that both layouts anchor at it anew
        client.complete(uri, at["line"], at["character"])
        wait_until_healed(client)
        texts.append(client.complete(uri, at["line"], at["character"]))
    assert texts[0] == texts[1]
    assert texts[0], client.result("keyturn/status")
    assert client.shut_down() == 0


def test_two_servers_share_one_host_and_leave_it_alone(start, options) -> None:
    first, second = start(), start()
    for client in (first, second):
        client.initialize(options)
        client.open(URI, "x = 1\ny = \n")
    pids = {client.wait_for_state("ready")["host_pid"] for client in (first, second)}
    assert len(pids) == 1
    assert first.process.stdin
    first.process.stdin.close()
    assert first.process.wait(60) == 1, "the client vanished without saying exit"
    second.complete(URI, 1, 4)
    assert second.wait_for_state("ready")["host_pid"] in pids
    assert second.shut_down() == 0
