"""From downloads to shards: packages are read, filtered, split, packed and tokenized."""

import gzip
import io
import json
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest

from training import collect, fetch_sources, prepare
from training.data.budget import fit_budget, split_packages
from training.data.documents import Document, load_documents, write_documents
from training.data.packages import allowed, read_repository, read_tarball, read_wheel

from .conftest import PROGRAM, SCRIPT
from .test_filtering import OTHER, ROWS

PRICES = "\n".join(f"def total_{i}(prices):\n    return sum(prices) * {i}\n" for i in range(9))


def write_wheel(path, files, licence="MIT"):
    name = path.name.split("-")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
        archive.writestr(f"{name}-1.dist-info/METADATA", f"Name: x\nLicense: {licence}\n\nText\n")


def write_tarball(path, files, meta):
    with tarfile.open(path, "w:gz") as archive:
        for inner, text in {"package.json": json.dumps(meta), **files}.items():
            entry = tarfile.TarInfo("package/" + inner)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))


@pytest.fixture
def repository(tmp_path):
    """A git host with one repository, and its commit."""
    place = tmp_path / "host" / "me" / "sums"
    place.mkdir(parents=True)
    (place / "part").mkdir()
    (place / "sums.py").write_text("import math\n\n\n" + PROGRAM)
    (place / "part" / "window.py").write_text(OTHER)
    (place / "LICENSE").write_text("MIT License\n\nCopyright me\n")
    git = ["git", "-C", str(place), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return f"file://{tmp_path / 'host'}", head.stdout.strip()


@pytest.fixture
def downloads(tmp_path, repository):
    """A folder as fetch_sources leaves it, with its sources.json."""
    folder = tmp_path / "dl"
    for inner in ("whl", "npm", "reserved/whl", "reserved/npm"):
        (folder / inner).mkdir(parents=True)
    host, commit = repository
    assert fetch_sources.fetch_repository("me/sums", commit, folder / "repositories", host)
    shared = {f"shop/part_{i}.py": OTHER.replace("Window", f"W{i}ndow") for i in range(3)}
    write_wheel(
        folder / "whl" / "shop-1-py3-none-any.whl", {"shop/a.py": OTHER, "shop/b.py": PRICES}
    )
    write_wheel(folder / "whl" / "gnu-1-py3-none-any.whl", {"gnu/a.py": PROGRAM}, "GPL-3.0")
    (folder / "whl" / "torn-1-py3-none-any.whl").write_bytes(b"PK")
    meta = {"name": "@me/shop", "version": "2", "license": "ISC"}
    write_tarball(folder / "npm" / "me-shop-2.tgz", {"src/shop.ts": SCRIPT}, meta)
    reserved = shared["shop/part_1.py"].replace("resize", "grow_to").replace("title", "label")
    reserved = reserved.replace("self", "this")
    write_wheel(folder / "reserved" / "whl" / "kept-1-py3-none-any.whl", {"kept/a.py": reserved})
    (folder / "previous" / "whl").mkdir(parents=True)
    earlier = {"shop/b.py": PRICES.replace("total", "sum_up"), "shop/gone.py": OTHER}
    write_wheel(folder / "previous" / "whl" / "shop-0-py3-none-any.whl", earlier)
    target = folder / "HumanEval-SingleLineInfilling.jsonl.gz"
    with gzip.open(target, "wt") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    sources = {
        "cap_default_mb": 3.5,
        "cap_npm_mb": 2.0,
        "repositories": {"me/sums": {"commit": commit, "under": ""}},
    }
    (tmp_path / "sources.json").write_text(json.dumps(sources))
    return folder


def no_stdlib():
    from training.data.packages import Package

    return Package("stdlib", "3", "PSF-2.0", [])


def test_downloads_become_shards(downloads, tmp_path, monkeypatch, tokenizer_path, capfd):
    monkeypatch.setattr("training.data.packages.read_stdlib", no_stdlib)
    out, sources = tmp_path / "data", str(tmp_path / "sources.json")
    command = [str(downloads), str(out), "--sources", sources, "--parts", "1"]
    collect.main(command)
    train = load_documents(out / "train_0.bin.zst")
    names = {(d.package, d.path) for d in train}
    assert ("algo:me+sums", "sums.py") in names and (
        "npm:@me/shop",
        "npm/@me/shop/src/shop.ts",
    ) in (names)
    assert not any(d.package == "gnu" for d in train)
    old = [d for d in train if d.package.startswith("old:")]
    assert [(d.package, d.path) for d in old] == [("old:shop", "shop/b.py")]
    assert "sum_up" in old[0].text
    pools = {d.package: prepare.pool_of(d) for d in train}
    assert pools == {
        **{"algo:me+sums": "programs", "shop": "python", "old:shop": "python"},
        "npm:@me/shop": "script",
    }
    held = load_documents(out / "held.bin.zst")
    assert [d.package for d in held if d.package.startswith("reserved:")] == ["reserved:kept"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert "gnu" in manifest["refused_licences"]
    assert manifest["packages"]["algo:me+sums"]["licence"] == "MIT"
    assert "torn" in capfd.readouterr().out

    before = (out / "collected.bin").stat().st_mtime_ns
    collect.main(command)  # what is there is kept
    assert (out / "collected.bin").stat().st_mtime_ns == before

    shards = tmp_path / "shards"
    command = [str(tokenizer_path), str(shards), str(out / "train_0.bin.zst"), "--passes", "1"]
    command += ["--units", "2", "--workers", "1"]
    prepare.main(command)
    first = {p.name: p.read_bytes() for p in sorted(shards.glob("p*.npz"))}
    assert list(first) == ["p00_u000.npz", "p00_u001.npz"]
    (shards / "p00_u001.npz").unlink()
    prepare.main(command)
    again = {name: np.load(shards / name) for name in first}
    for name, data in first.items():
        old = np.load(io.BytesIO(data))
        assert all(np.array_equal(old[key], again[name][key]) for key in old.files)
    assert again["p00_u000.npz"]["tokens"].dtype == np.uint16


def test_ablation_leaves_programs_out(tmp_path, tokenizer_path, documents):
    path = tmp_path / "a.bin.zst"
    write_documents(path, [d for d in documents if d.package.startswith(("algo:", "npm:"))])
    for name, more in (("all", []), ("without", ["--no-programs"])):
        prepare.main(
            [str(tokenizer_path), str(tmp_path / name), str(path), "--passes", "1"]
            + ["--units", "1", "--workers", "1", *more]
        )
    languages = {
        name: set(np.load(tmp_path / name / "p00_u000.npz")["language"].tolist())
        for name in ("all", "without")
    }
    assert 0 in languages["all"] and 0 not in languages["without"]


def test_repository_is_read_at_its_commit(tmp_path, repository):
    host, commit = repository
    assert not fetch_sources.fetch_repository("me/sums", "0" * 40, tmp_path / "r", host)
    assert fetch_sources.fetch_repository("me/sums", commit, tmp_path / "r", host)
    assert fetch_sources.fetch_repository("me/sums", commit, tmp_path / "r", "nowhere")  # kept
    package = read_repository(tmp_path / "r" / "me+sums" / "repo", "me/sums", commit, "part")
    assert [path for path, _ in package.files] == ["part/window.py"]
    assert (package.name, package.version) == ("algo:me+sums", commit[:12])


def test_registries_are_asked_in_batches_then_one_by_one():
    asked, have = [], {"p0"}

    def run(command):
        asked.append(command)
        if command == ["second", "p3"]:
            have.add("p3")
        return command[0] == "second" and command[1] in have

    items = [(f"p{i}", "1") for i in range(10)]
    commands = [lambda part: ["first", *(n for n, _ in part)], lambda part: ["second", part[0][0]]]
    failed = fetch_sources.fetch(items, commands, lambda item: item[0] in have, "x", run)
    assert failed == [f"p{i}==1" for i in range(1, 10) if i != 3]
    assert asked[0] == ["first", *(f"p{i}" for i in range(1, 9))]


def test_downloads_are_recognised(tmp_path):
    (tmp_path / "Foo_Bar-1.0-py3-none-any.whl").touch()
    (tmp_path / "me-shop-2.tgz").touch()
    assert fetch_sources.have_wheel(tmp_path, "foo.bar")
    assert fetch_sources.have_tarball(tmp_path, "@me/shop", "2")
    assert not fetch_sources.have_tarball(tmp_path, "shop", "2")


def test_licences_in_every_place_are_found(tmp_path):
    path = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a-1.dist-info/licenses/LICENSE", "The MIT License\n")
    assert read_wheel(path).licence == "MIT (from the licence file)"
    for licence in ("MIT", [{"type": "MIT"}], {"type": "MIT"}):
        write_tarball(tmp_path / "a.tgz", {}, {"name": "a", "licenses": licence})
        assert read_tarball(tmp_path / "a.tgz").licence == "MIT"
    assert allowed("Apache-2.0") and not allowed("MIT or GPL-2.0") and not allowed("")


def test_budget_cuts_the_largest_packages():
    documents = [Document("big", f"{i}.py", "x" * 100) for i in range(50)]
    documents += [Document("small", f"{i}.py", "x" * 100) for i in range(5)]
    kept = fit_budget(documents, 2000, lambda name: 1.0)
    assert sum(d.package == "small" for d in kept) == 5
    assert 10 <= sum(d.package == "big" for d in kept) <= 16
    assert kept == [d for d in documents if d in kept]
    parts = split_packages(documents, [0.5, 0.5])
    assert [len(part) for part in parts] == [50, 5]


def test_records_come_back(tmp_path):
    documents = [Document("a", "b/c.py", "é = '\n'\n"), Document("d", "e.ts", "")]
    for name in ("x.bin", "x.bin.zst"):
        write_documents(tmp_path / name, documents)
        assert load_documents(tmp_path / name) == documents
