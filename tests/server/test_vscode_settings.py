"""The manifest of the VS Code extension has the settings of `server/settings.py`."""

import importlib.util
import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from keyturn.server.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "editors" / "vscode"
FIELDS = {item.name: item for item in fields(Settings)}


def written():
    return json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))


def schema(name):
    return written()["contributes"]["configuration"]["properties"][f"keyturn.{name}"]


def test_the_manifest_is_what_the_script_writes():
    spec = importlib.util.spec_from_file_location("write_settings", FOLDER / "write_settings.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert written() == script.manifest(written()), (
        "run: python editors/vscode/write_settings.py, and commit package.json"
    )


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_has_the_servers_default_and_a_description(name):
    default = FIELDS[name].default
    wanted = list(default) if isinstance(default, tuple) else default
    assert schema(name)["default"] == wanted
    assert schema(name)["type"]
    assert len(schema(name)["description"]) > 20


@pytest.mark.parametrize("name", FIELDS)
def test_the_server_accepts_what_the_editor_allows_and_no_more(name):
    accepts = FIELDS[name].metadata["check"].test
    found = schema(name)
    for value in found.get("enum", []):
        assert accepts(value)
    if "enum" in found:
        assert not accepts("no such value")
    for bound, beyond in (("minimum", -1), ("maximum", 1)):
        if bound in found:
            assert accepts(found[bound])
            assert not accepts(found[bound] + beyond)
    if "exclusiveMinimum" in found:
        assert not accepts(found["exclusiveMinimum"])


@pytest.mark.parametrize("name", ["server.path", "server.args", "model"])
def test_a_workspace_cannot_choose_what_runs(name):
    assert schema(name)["scope"] == "machine"
    trust = written()["capabilities"]["untrustedWorkspaces"]
    assert f"keyturn.{name}" in trust["restrictedConfigurations"]


def test_a_server_that_is_set_up_has_all_it_needs_as_tested_here():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [path.read_text(encoding="utf-8") for path in (FOLDER / "requirements").iterdir()]
    locked = dict(re.findall(r"^(\S+?)==([^\s+]+)", "\n".join(texts), re.MULTILINE))
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert needed <= locked.keys(), "run: make vscode-lock"
    tested = re.findall(r"^(\S+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for name, version in tested:
        assert locked.get(name, version) == version, "run: make vscode-lock"
    for text in texts:
        blocks = re.split(r"\n(?=\S)", text.strip())
        assert all("--hash=sha256:" in block for block in blocks)
