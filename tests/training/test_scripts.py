"""Every script explains itself, and the evaluation writes its tables."""

import gzip
import importlib
import json
import re

import numpy as np
import pytest
import torch

from training import evaluate, prepare
from training.data.documents import write_documents

from .conftest import ROOT
from .test_filtering import ROWS

SCRIPTS = "fetch_sources collect prepare train pieces evaluate export carry lease mix ".split()
SCRIPTS += "mix_fit overlap ablate".split()


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_has_help(name, capsys):
    module = importlib.import_module(f"training.{name}")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert f"python -m training.{name}" in capsys.readouterr().out


def test_readme_names_every_file_and_every_flag_it_uses_exists():
    readme = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in sorted((ROOT / "training").rglob("[!_]*.py"))]
    assert not [name for name in files if f"`{name}`" not in readme]
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", readme))
    code = "".join(path.read_text() for path in (ROOT / "training").rglob("*.py"))
    foreign = {"--nproc-per-node", "--standalone", "--index-url", "--model", "--local-dir"}
    foreign |= {"--only-binary", "--platform", "--implementation", "--documents"}
    assert not [flag for flag in sorted(flags - foreign) if f'"{flag}"' not in code]


def test_sources_are_pinned():
    sources = json.loads((ROOT / "training" / "sources.json").read_text())
    for name, where in sources["repositories"].items():
        assert re.fullmatch(r"[0-9a-f]{40}", where["commit"]), name
    evaluation = (sources["reserved"], sources["reserved_wider"])
    for registry in (sources, *evaluation):
        assert all(registry["pypi"].values()) and all(registry["npm"].values())
    plain = re.compile(r"[-_.]+")
    trained = {plain.sub("-", name.lower()) for name in (*sources["pypi"], *sources["npm"])}
    for registry in evaluation:
        reserved = {plain.sub("-", n.lower()) for n in (*registry["pypi"], *registry["npm"])}
        assert not reserved & trained
    for kind in ("source", "binary"):
        kept, others = sources["reserved_wider"]["debian"][kind], sources["debian"][kind]
        assert all(kept.values()) and all(others.values()) and not kept.keys() & others.keys()
    assert set(sources["plain_repositories"]) <= set(sources["repositories"])
    assert all(set(sources["previous"][kind]) <= set(sources[kind]) for kind in ("pypi", "npm"))


def test_evaluation_writes_tables_and_answers(
    tmp_path, exported, tokenizer_path, documents, monkeypatch
):
    for module in ("held_lines", "human_eval"):  # a random model goes on as long as it may
        monkeypatch.setattr(f"training.evaluation.{module}.MAX_NEW", 9)
    write_documents(tmp_path / "a.bin.zst", documents[:2] + documents[-2:])
    held, human_eval = tmp_path / "held", tmp_path / "h.jsonl.gz"
    command = [str(tokenizer_path), str(held), str(tmp_path / "a.bin.zst"), "--natural"]
    command += ["--edited", "1"]
    prepare.main([*command, "--passes", "1", "--units", "1", "--workers", "1"])
    row = {**ROWS[0], "task_id": "a/0", "test": "def check(f):\n    assert f([1], [2]) == [3]\n"}
    row["prompt"] = "def pair_up(numbers, strings):\n"
    with gzip.open(human_eval, "wt") as file:
        file.write((json.dumps(row) + "\n") * 2)
    torch.manual_seed(0)
    command = ["tiny", str(exported), "--out", str(tmp_path), "--held", str(held), "--size", "2048"]
    command += ["--held-tokens", "4000", "--humaneval", str(human_eval)]
    command += ["--tokenizer", str(tokenizer_path), "--runs", "spm.30,psm.6", "--round", "q8_0"]
    command += ["--edited", str(held), "--edits", "2", "--lines", "2", "--batch", "3"]
    evaluate.main([*command, "--device", "cpu"])
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert result["humaneval"]["spm.30"]["n"] == 2 and "psm.6" in result["humaneval"]
    assert result["held"]["layers"]["30"]["same"] == 1.0
    assert result["held"]["all"]["samples"] > 0 and "python files" in result["held"]["reserved"]
    assert result["edited"]["kl"] > 0 and result["edited"]["n"] > 0
    assert result["held lines spm"]["n"] == 2 and 0 <= result["held"]["ece_token"] <= 1
    items = np.load(tmp_path / "tiny.items.npz")
    assert len(items["edited.kl"]) == result["edited"]["n"] and len(items["held.psm.exact"]) == 2
    with gzip.open(tmp_path / "tiny.answers.jsonl.gz", "rt") as file:
        assert len(file.readlines()) == 4
