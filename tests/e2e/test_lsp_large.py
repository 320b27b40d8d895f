"""Large inputs: a long file works, monsters are refused with a reason."""

import os
from pathlib import Path

import pytest

URI = "file:///large.py"
LINE = "value_{0} = compute(value_{0}, other)  # a line of the file\n"


def cpu_s(pid: int) -> float:
    """Return the processor's time that a process has used; 0 where that is not known."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    return sum(map(int, stat.read_text().split()[13:15])) / os.sysconf("SC_CLK_TCK")


def test_a_long_file_opens_edits_and_completes(start, options) -> None:
    client = start()
    client.initialize(options)
    client.open("file:///small.py", "x = 1\n")
    client.wait_for_state("ready")
    client.complete("file:///small.py", 0, 5)
    text = "".join(LINE.format(number) for number in range(20_000))
    assert len(text) > 1_000_000
    client.open(URI, text)
    client.complete(URI, 10_000, 4)
    used_s = cpu_s(client.process.pid)
    for count in range(100):
        at = {"line": 10_000 + count % 7, "character": 4}
        change = {"range": {"start": at, "end": at}, "text": "z"}
        client.change(URI, 2 + count, change)
    client.complete(URI, 10_000, 5)
    # Generous: what is asserted is that no edit costs a walk over the whole file.
    assert cpu_s(client.process.pid) - used_s < 20
    (held,) = [one for one in client.result("keyturn/documents") if one["uri"] == URI]
    assert held["num_chars"] == len(text) + 100


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("x = 1\n" * 9_000_000, "max_document_bytes", id="50-MB"),
        pytest.param("MZ\0\1\2" * 100, "binary", id="binary"),
        pytest.param("y" * 5_000_000, "max_line_chars", id="one-line"),
    ],
)
def test_a_monster_is_refused_with_a_reason(start, options, text, reason) -> None:
    client = start()
    client.initialize(options)
    client.open(URI, text)
    assert client.complete(URI, 0, 1) == ""
    status = client.result("keyturn/status")
    assert reason in status["refused"][URI]
    assert reason in status["completions"]["recent_reasons"][-1]
    assert not any(one["method"].startswith("window/show") for one in client.notifications)
    client.open("file:///small.py", "x = 1\n")
    client.wait_for_state("ready")
    assert isinstance(client.reply(client.ask("file:///small.py", 0, 5))["result"], list)
