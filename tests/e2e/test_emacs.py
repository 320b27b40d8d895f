"""Emacs with eglot, as `editors/README.md` sets it up: `completion-at-point` in a real file."""

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ..lsp_client import SERVE

README = (Path(__file__).parents[2] / "editors" / "README.md").read_text(encoding="utf-8")
DOCUMENTED = '("keyturn" "serve")'
TEXT = "def mean(values):\n    return sum(values) / len(values)\n\n\ndef spread(values):\n    "
BELOW = "\n\n\nlast = mean([1, 2])\n"
# Eglot is part of Emacs since 29; before that it is a package, Debian's being in the folder named.
FIND_EGLOT = """;;; -*- lexical-binding: t -*-
(require 'package)
(add-to-list 'package-directory-list "/usr/share/emacs/site-lisp/elpa")
(package-initialize)
(require 'eglot)
"""
# What a person does with M-x eglot and C-M-i. The rest of the text says how it went.
JOURNEY = """
(setq jsonrpc-default-request-timeout 120 ; the model is being loaded, on a slow machine
      eglot-sync-connect t eglot-connect-timeout 60 eglot-autoshutdown t)
(with-current-buffer (find-file-noselect (getenv "JOURNEY_FILE"))
  (call-interactively #'eglot)
  (goto-char (point-min))
  (search-forward "spread(values):\\n    ")
  (let ((host (plist-get (plist-get (jsonrpc-request (eglot-current-server) :keyturn/status
                                                     '(:host t)) :host) :pid)))
    (completion-at-point)
    (princ (json-serialize `(:text ,(buffer-substring-no-properties (point-min) (point-max))
                             :before ,(1- (point)) :host ,(or host :null)))))
  (set-buffer-modified-p nil)
  (call-interactively #'eglot-shutdown))
"""


def has_eglot() -> bool:
    if shutil.which("emacs") is None:
        return False
    done = subprocess.run(["emacs", "--batch", "-Q", "--eval", "(progn" + FIND_EGLOT + ")"])
    return done.returncode == 0


def documented() -> str:
    """Return the lines of eglot's section."""
    section = README[README.index("## Emacs, eglot") :]
    found = re.search(r"```elisp\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_documented_lines_get_a_completion_at_point(tmp_path, runtime_dir, hosts) -> None:
    if not has_eglot():
        pytest.skip("Emacs with eglot is not here: apt-get install emacs-nox elpa-eglot")
    options = {"max_tokens": 24, "num_threads": 1, "time_budget_ms": 0, "confidence": "any"}
    command = " ".join(json.dumps(word) for word in SERVE)
    sent = " ".join(f":{name} {json.dumps(value)}" for name, value in options.items())
    lines = documented()
    assert DOCUMENTED in lines
    lines = lines.replace(DOCUMENTED, f"({command} :initializationOptions ({sent}))")
    path = tmp_path / "code.py"
    path.write_text(TEXT + BELOW, encoding="utf-8")
    script = tmp_path / "journey.el"
    script.write_text(FIND_EGLOT + lines + JOURNEY, encoding="utf-8")
    env = {"XDG_RUNTIME_DIR": runtime_dir, "HOME": str(tmp_path), "JOURNEY_FILE": str(path)}
    done = subprocess.run(
        ["emacs", "--batch", "-Q", "-l", script],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if found["host"]:
        hosts.add(found["host"])
    text = found["text"]
    assert text.startswith(TEXT) and text.endswith(BELOW)
    inserted = text[len(TEXT) : len(text) - len(BELOW)]
    assert inserted.strip(), done.stderr
    assert ast.parse(text)
    # The cursor stands behind it, as after any completion.
    assert found["before"] == len(TEXT) + len(inserted)
