"""Debian's packages: what debian/copyright permits is read by file, and becomes pools."""

import gzip
import io
import json
import re
import tarfile

import pytest

from training import collect, fetch_sources, prepare
from training.data.apt import have_binary, have_source, with_sources
from training.data.copyright import licence_of, parse_copyright, permissive
from training.data.debian import read_binary, read_source
from training.data.documents import load_documents

from .compiled_programs import CPP, GO, JAVA, RUST, C
from .test_filtering import ROWS

FORMAT = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
COPYRIGHT = f"""{FORMAT}Upstream-Name: shop

Files: *
Copyright: 2020 Somebody
License: Expat

Files: src/copyleft/* lib/old.?
Copyright: 2020 Somebody
License: GPL-2+

Files: src/copyleft/either.c
Copyright: 2020 Somebody
License: GPL-2+ or BSD-3-clause

License: Expat
 Permission is hereby granted.
"""


def add(archive, name, text):
    entry = tarfile.TarInfo(name)
    entry.size = len(text.encode())
    archive.addfile(entry, io.BytesIO(text.encode()))


def write_source(folder, name, files, copyright=COPYRIGHT):
    """Write NAME's .dsc, .orig.tar.gz and .debian.tar.xz; return the first."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{name}_1.0.orig.tar.gz", "w:gz") as archive:
        add(archive, f"{name}-1.0/debian/copyright", f"{FORMAT}\nFiles: *\nLicense: GPL-3\n")
        for path, text in files.items():
            add(archive, f"{name}-1.0/{path}", text)
    with tarfile.open(folder / f"{name}_1.0-2.debian.tar.xz", "w:xz") as archive:
        add(archive, "debian/copyright", copyright)
        add(archive, "debian/tests/smoke.c", C)
    tarballs = sorted(folder.glob(f"{name}_*.tar.*"))
    listed = "".join(f" {'0' * 64} {p.stat().st_size} {p.name}\n" for p in tarballs)
    path = folder / f"{name}_1.0-2.dsc"
    path.write_text(
        f"Format: 3.0 (quilt)\nSource: {name}\nVersion: 1:1.0-2\nChecksums-Sha256:\n{listed}"
    )
    return path


def write_binary(folder, name, files, copyright=COPYRIGHT):
    """Write NAME's .deb file; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        add(archive, f"./usr/share/doc/{name}/copyright", copyright)
        for inner, text in files.items():
            add(archive, "./" + inner, text)
    path = folder / f"{name}_1%3a1.0-2_all.deb"
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for member, content in (("debian-binary", b"2.0\n1"), ("data.tar.xz", data.getvalue())):
            head = f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
            file.write(head.encode() + content + b"\n" * (len(content) % 2))
    return path


def renamed(text, new):
    """Return a program with other names in most of its lines, no near duplicate of it."""
    names = sorted(set(re.findall(r"[a-zA-Z_]{3,}", text)) - {"package", "import"})
    return re.sub("|".join(rf"\b{name}\b" for name in names), lambda m: m[0] + new, text)


@pytest.mark.parametrize(
    ("licence", "names"),
    [
        ("Expat", ["MIT"]),
        ("BSD-3-clause~Regents", ["BSD"]),
        ("Apache-2.0 with LLVM exception", ["Apache-2.0"]),
        ("MIT or Apache-2.0", ["Apache-2.0", "MIT"]),
        ("GPL-2+ or Zlib", ["Zlib"]),
        ("BSD-2-clause and ISC", ["BSD", "ISC"]),
        ("public-domain", ["Public Domain"]),
        ("GPL-2 or MPL-2, and MIT", []),
        ("GPL-2, and MIT or BSD-2-clause", []),
        ("GPL-2 and BSD-2-clause or ISC", ["ISC"]),
        ("MIT and GPL-2", []),
        ("BSD-4-clause", []),
        ("BSD-3-Clause-No-Military-License", []),
        ("Apache-2.0-with-Commons-Clause", []),
        ("GPL-2+ with OpenSSL exception", []),
        ("LGPL-2.1", []),
        ("", []),
    ],
)
def test_licence_permits_or_not(licence, names):
    assert permissive(licence) == names


def test_last_paragraph_that_matches_decides():
    stanzas = parse_copyright(COPYRIGHT)
    assert licence_of(stanzas, "src/a.c") == "Expat"
    assert licence_of(stanzas, "src/copyleft/deep/a.c") == "GPL-2+"
    assert licence_of(stanzas, "src/copyleft/either.c") == "GPL-2+ or BSD-3-clause"
    assert licence_of(stanzas, "lib/old.c") == "GPL-2+" != licence_of(stanzas, "lib/old.cc")
    assert parse_copyright("This package was debianized by hand. License: MIT\n\nFiles: *\n") == []
    folder = parse_copyright(f"{FORMAT}\nFiles: ./src\n doc/a\\*b\nLicense: ISC\n")
    assert licence_of(folder, "src/deep/a.c") == licence_of(folder, "doc/a*b") == "ISC"
    assert licence_of(folder, "srcs/a.c") == licence_of(folder, "doc/axb") == ""


def test_source_package_is_read_by_file(tmp_path):
    files = {"src/a.c": C, "src/copyleft/b.c": CPP, "src/copyleft/either.c": C, "README": "a"}
    path = write_source(tmp_path, "shop", {**files, "setup.py": "x = 1\n" * 50})
    begin, end = (f"-----{word} PGP SIGNATURE-----\n" for word in ("BEGIN", "END"))
    path.write_text(f"{path.read_text()}\n{begin}Version: GnuPG v1\n\niQ\n{end}")
    package = read_source(path)
    assert [path for path, _ in package.files] == ["shop/src/a.c", "shop/src/copyleft/either.c"]
    assert package.refused == ["shop/src/copyleft/b.c"]
    assert (package.name, package.version) == ("debian:shop", "1:1.0-2")
    assert package.licence == "BSD, MIT" and package.files[0][1] == C.encode()


def test_licences_with_names_of_their_own_are_looked_up(tmp_path):
    path = write_source(tmp_path, "a", {"a.go": GO}, f"{FORMAT}\nFiles: *\nLicense: Go\n")
    assert read_source(path).files == [] and read_source(path).licence == "Go"
    assert read_source(path, {"Go": "BSD-3-clause"}).licence == "BSD"
    old = write_source(tmp_path, "old", {"a.go": GO}, "It is under the MIT licence.\n")
    assert read_source(old).files == [] and "not machine-readable" in read_source(old).licence


def test_binary_package_is_read_wherever_its_files_went(tmp_path):
    place = "usr/share/gocode/src/me.org/shop/"
    files = {place + "a.go": GO, place + "src/copyleft/b.go": GO}
    files["usr/share/cargo/registry/shop-1.0/src/lib.rs"] = RUST
    files["usr/src/shop-1.0/deep/src/copyleft/lib.rs"] = RUST  # not where it is forbidden
    package = read_binary(write_binary(tmp_path, "shop-dev", files))
    expected = "me.org/shop/a.go shop-1.0/src/lib.rs shop-1.0/deep/src/copyleft/lib.rs"
    assert [path for path, _ in package.files] == expected.split()
    assert package.refused == ["me.org/shop/src/copyleft/b.go"]
    assert (package.name, package.version) == ("debian:shop-dev", "1:1.0-2")
    with pytest.raises(ValueError, match="no .deb file"):
        read_binary(write_source(tmp_path, "a", {}))


def test_archives_become_pools(tmp_path, capfd, tokenizer_path):
    downloads, out = tmp_path / "dl", tmp_path / "data"
    source, binary = downloads / "debian" / "source", downloads / "debian" / "binary"
    kept = {"src/a.c": renamed(C, "_a"), "src/Shop.java": JAVA, "include/shop.h": CPP}
    left = {
        "src/parser.c": "/* A Bison parser, made by GNU Bison 3.8. */\n" + renamed(C, "_b"),
        "third_party/zip.c": renamed(C, "_c"),
        "src/table.c": "\n".join(f"{i}, {i}, {i}, {i}," for i in range(200)),
        "src/gpl.c": "/* GNU General Public License */\n" + renamed(C, "_d"),
        "src/copyleft/b.c": renamed(C, "_e"),
        "src/reserved.c": "// Copied.\n" + renamed(C, "_r"),
    }
    write_source(source, "shop", {**kept, **left})
    write_source(
        source, "alien", {"a.c": renamed(C, "_f")}, f"{FORMAT}\nFiles: *\nLicense: MPL-2\n"
    )
    write_source(source, "torn", {"a.c": renamed(C, "_g")})
    (source / "torn_1.0.orig.tar.gz").write_bytes(b"torn")
    write_binary(binary, "lib-dev", {"usr/share/gocode/src/lib/a.go": GO})
    write_binary(binary, "librs", {"usr/share/cargo/registry/lib-1/src/lib.rs": RUST})
    write_source(downloads / "reserved/debian/source", "kept", {"r.c": renamed(C, "_r")})
    with gzip.open(downloads / "HumanEval-SingleLineInfilling.jsonl.gz", "wt") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    sources = tmp_path / "sources.json"
    sources.write_text(json.dumps({"cap_default_mb": 1, "cap_npm_mb": 1, "debian": {"cap_mb": 1}}))
    collect.main([str(downloads), str(out), "--only-debian", "--sources", str(sources)])

    pools = {p: load_documents(out / f"{p}.bin.zst") for p in ("go", "rust", "java", "c")}
    assert {p: [d.path for d in found] for p, found in pools.items()} == {
        "go": ["lib/a.go"],
        "rust": ["lib-1/src/lib.rs"],
        "java": ["shop/src/Shop.java"],
        "c": ["shop/include/shop.h", "shop/src/a.c"],
    }
    assert all(prepare.pool_of(d) == pool for pool, found in pools.items() for d in found)
    held = load_documents(out / "held_compiled.bin.zst")
    assert [(d.package, d.path) for d in held] == [("reserved:debian:kept", "kept/r.c")]
    assert load_documents(out / "held.bin.zst") == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["dropped"] == {
        "generated": 1,
        "path": 1,
        "data-like": 1,
        "licence": 1,
        "licence of the file in debian/copyright": 1,
        "repeats a reserved package": 1,
    }
    assert manifest["refused_licences"] == {"debian:alien": "MPL-2"}
    assert manifest["packages"]["debian:shop"]["licence"] == "MIT"
    assert "torn_1.0-2.dsc is damaged" in capfd.readouterr().out

    for kind in ("whl", "npm"):
        (downloads / "reserved" / kind).mkdir()
    collect.main(
        [str(downloads), str(out), "--sources", str(sources), "--parts", "0.5", "0.5"]
        + ["--add", f"{out / 'go.bin.zst'}=1", f"{out / 'c.bin.zst'}=0.0004"]
    )
    parts = [load_documents(out / f"train_{n}.bin.zst") for n in (0, 1)]
    assert sorted(d.path for part in parts for d in part) == ["lib/a.go", "shop/src/a.c"]

    shards = tmp_path / "shards"
    command = [str(tokenizer_path), str(shards), str(out / "go.bin.zst"), "--passes", "1"]
    prepare.main([*command, "--units", "1", "--workers", "1", "--pool", "go"])
    assert (shards / "p00_u000.npz").exists()


def test_torn_downloads_are_not_taken_for_whole_ones(tmp_path):
    write_source(tmp_path, "shop", {"a.c": C})
    path = write_binary(tmp_path, "shop-dev", {"usr/share/a.go": GO})
    assert have_source(tmp_path, "shop", "1:1.0-2") and not have_source(tmp_path, "shop", "1.1-2")
    assert have_binary(tmp_path, "shop-dev", "1:1.0-2") and not have_binary(tmp_path, "shop", "1:1")
    for part in (path, tmp_path / "shop_1.0.orig.tar.gz"):
        part.write_bytes(part.read_bytes()[:-3])
    assert not have_source(tmp_path, "shop", "1:1.0-2")
    assert not have_binary(tmp_path, "shop-dev", "1:1.0-2")


def test_lists_get_sources_of_one_release():
    one_line = "# a comment\ndeb [arch=amd64] http://a/debian bookworm main\ndeb http://b c main\n"
    assert with_sources(one_line, "bookworm", ".list") == (
        "deb [arch=amd64] http://a/debian bookworm main\n"
        "deb-src [arch=amd64] http://a/debian bookworm main\n"
    )
    fields = "Types: deb\n# old\nURIs: http://a\nSuites: {}\nComponents: main\n"
    text = "\n".join(map(fields.format, ("bookworm bookworm-updates", "trixie")))
    text += "\nEnabled: no\n" + fields.format("bookworm")
    assert with_sources(text, "bookworm", ".sources") == (
        "Types: deb deb-src\nURIs: http://a\nSuites: bookworm bookworm-updates\nComponents: main\n"
    )


APT = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  update*|*nowhere*) case "$*" in *nowhere*) exit 100;; esac;;
  download*) cp {host}/*.deb . ;;
  source*) cp {host}/*.dsc {host}/*.tar.* . ;;
esac
"""


def archive(folder, monkeypatch):
    """Make an apt-get that has "shop" and "shop-dev" only; return its folder."""
    host, tools = folder / "host", folder / "bin"
    write_source(host, "shop", {"a.c": C})
    write_binary(host, "shop-dev", {"usr/share/a.go": GO})
    tools.mkdir()
    (tools / "apt-get").write_text(APT.format(log=folder / "log", host=host))
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    return tools


def test_archive_is_asked_for_what_is_missing(tmp_path, monkeypatch):
    log, tools = tmp_path / "log", archive(tmp_path, monkeypatch)
    wanted = {
        "source": {"shop": "1:1.0-2", "nowhere": "3"},
        "binary": {"shop-dev": "1:1.0-2", "nowhere-dev": "3"},
    }
    folder, apt = tmp_path / "dl", tmp_path / "apt"

    def fetch():
        log.write_text("")
        return fetch_sources.fetch_debian(wanted, folder, "bookworm", apt), log.read_text()

    failed, asked = fetch()
    assert failed == ["nowhere==3", "nowhere-dev==3"]
    assert asked.count("update") == 1 and f"Dir::State::Lists={apt / 'lists'}" in asked
    assert read_source(folder / "source" / "shop_1.0-2.dsc").licence == "MIT"
    failed, asked = fetch()  # after a kill: only what is missing
    assert failed == ["nowhere==3", "nowhere-dev==3"] and "shop=1:1.0-2" not in asked
    del wanted["source"]["nowhere"], wanted["binary"]["nowhere-dev"]
    assert fetch() == ([], "")
    wanted["source"]["more"] = "1"
    (tools / "apt-get").unlink()
    monkeypatch.setenv("PATH", str(tools))
    assert fetch()[0] == ["more==1"]


def test_reserved_packages_that_are_missing_end_the_fetch_with_an_error(tmp_path, monkeypatch):
    archive(tmp_path, monkeypatch)
    none = {"pypi": {}, "npm": {}}
    sources = {
        **{**none, "reserved": none, "previous": {"pypi": [], "npm": []}, "repositories": {}},
        "humaneval": {"repository": "a/b", "commit": "0", "file": "he.jsonl"},
        "debian": {"release": "bookworm", "source": {"shop": "1:1.0-2", "nowhere": "3"}},
        "reserved_wider": {**none, "debian": {"source": {"nowhere-kept": "1"}}},
    }
    path, folder = tmp_path / "sources.json", tmp_path / "dl"
    folder.mkdir()
    (folder / "he.jsonl").touch()

    def fetch(*options):
        path.write_text(json.dumps(sources))
        fetch_sources.main([str(folder), "--sources", str(path), *options])

    fetch()  # as where there is no apt: nothing of Debian is trained on
    assert not [*(folder / "debian").glob("*/*")]
    with pytest.raises(SystemExit, match="without nowhere-kept==1 the evaluation is not kept"):
        fetch("--only", "debian")
    kept = sources["reserved_wider"].pop("debian")
    fetch("--only", "debian")  # "nowhere" is left out, and reported
    assert have_source(folder / "debian" / "source", "shop", "1:1.0-2")
    sources["reserved_wider"]["debian"] = kept
    with pytest.raises(SystemExit, match="without nowhere-kept==1 the evaluation is not kept"):
        fetch()
    fetch("--only", "pypi")
