"""Where no engine host can start, the user is told so: once in the editor, and by doctor."""

import json
import os
import subprocess
import sys
import time

import pytest

from ..lsp_client import LspClient


@pytest.mark.slow
def test_serve_says_once_what_doctor_says(tmp_path, options) -> None:
    folder = tmp_path / "file"
    folder.write_text("no folder")
    client = LspClient(str(folder))
    try:
        client.initialize(options | {"host_retry_max_s": 0.2})
        client.wait_for_state("failed")
        time.sleep(1)  # some more attempts
        client.result("keyturn/status")
        methods = [note["method"] for note in client.notifications]
        assert methods.count("window/showMessage") == 1
        (shown,) = (
            note["params"]
            for note in client.notifications
            if note["method"] == "window/showMessage"
        )
        assert shown["type"] == 1
        assert "cannot create folder" in shown["message"]
        assert "set XDG_RUNTIME_DIR" in shown["message"]
    finally:
        client.kill()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "keyturn.server", "doctor", "--json", "--model"]
        + [options["model"]],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (1, False)
    assert "cannot create folder" in found["problems"][0]["problem"]
