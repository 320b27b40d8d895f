"""The engine host is killed or stopped while it is needed: only that completion is lost."""

import contextlib
import os
import signal
import time

import pytest

from .test_lsp_session import wait_until_healed

URI = "file:///crash.py"
TEXT = "import os\n\n\ndef area(width, height):\n    return \n"


@pytest.mark.slow
def test_the_next_completion_is_an_undisturbed_servers_after_sigkill(start, options) -> None:
    options |= {"host_retry_max_s": 0.5}
    client = start()
    client.initialize(options)
    client.open(URI, TEXT)
    client.change(
        URI,
        2,
        {
            "range": {
                "start": {"line": 0, "character": 7},
                "end": {"line": 0, "character": 9},
            },
            "text": "sys",
        },
    )
    first_pid = client.wait_for_state("ready")["host_pid"]
    client.complete(URI, 4, 11)
    wait_until_healed(client)
    undisturbed = client.complete(URI, 4, 11)
    assert undisturbed

    os.kill(first_pid, signal.SIGSTOP)  # it has the request, and no time to finish it
    num_asked = client.result("keyturn/status")["completions"]["num_asked"]
    request = client.ask(URI, 4, 11)
    while client.result("keyturn/status")["completions"]["num_asked"] == num_asked:
        time.sleep(0.01)
    os.kill(first_pid, signal.SIGKILL)
    assert client.reply(request)["result"] == []
    reason = client.result("keyturn/status")["completions"]["recent_reasons"][-1]
    assert "host" in reason, reason

    deadline = time.monotonic() + 120
    while (status := client.result("keyturn/status"))["host_pid"] in (None, first_pid):
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    client.wait_for_state("ready")
    client.complete(URI, 4, 11)
    wait_until_healed(client)
    assert client.complete(URI, 4, 11) == undisturbed
    assert client.shut_down() == 0


@pytest.mark.slow
def test_completions_come_again_after_the_host_was_stopped(start, options) -> None:
    client = start()
    client.initialize(options | {"host_retry_max_s": 0.5})
    client.open(URI, TEXT)
    client.open(URI + "2", TEXT.replace("os", "sys"))
    first_pid = client.wait_for_state("ready")["host_pid"]
    before = client.complete(URI, 4, 11), client.complete(URI + "2", 4, 11)
    os.kill(first_pid, signal.SIGSTOP)
    try:
        assert client.reply(client.ask(URI, 4, 11))["result"] == []
        reason = client.result("keyturn/status")["completions"]["recent_reasons"][-1]
        assert "did not answer" in reason, reason
        deadline = time.monotonic() + 120
        while (status := client.result("keyturn/status"))["host_pid"] in (None, first_pid):
            assert time.monotonic() < deadline, status
            time.sleep(0.05)
        client.wait_for_state("ready")
        assert (client.complete(URI, 4, 11), client.complete(URI + "2", 4, 11)) == before
        assert client.result("keyturn/status")["quarantined"] == {}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(first_pid, signal.SIGKILL)
