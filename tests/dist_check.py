"""`make dist`'s check: the wheel in a fresh environment completes code, without CUDA packages.

Run as `python -m tests.dist_check FOLDER`; the last line printed is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_BYTES = 1_500_000_000
NOT_WANTED = ("nvidia", "cuda", "triton")
CODE = "def mean(values):\n    return sum(values) / len(values)\n\n\ndef spread(values):\n    "
NEEDED = (
    "kernels/cpu/_cpu_step",
    "engine/embedded/keyturn-135m-q4_1.gguf",
    "engine/embedded/tokenizer.json",
    "engine/embedded/stop.npz",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with one wheel and one source archive")
    parser.add_argument("--torch-index", default="", help="of torch's CPU build, if it answers")
    arguments = parser.parse_args()
    (wheel,) = arguments.folder.glob("*.whl")
    (archive,) = arguments.folder.glob("*.tar.gz")
    problems = missing(wheel, archive)
    with tempfile.TemporaryDirectory() as folder:
        figures = installed(wheel, Path(folder), arguments.torch_index)
    problems += figures.pop("problems")
    found = {"wheel": wheel.name, "wheel_bytes": wheel.stat().st_size, **figures}
    sys.stdout.write(json.dumps({**found, "problems": problems}) + "\n")
    return 1 if problems else 0


def missing(wheel: Path, archive: Path) -> list[str]:
    """Return what the two archives lack."""
    names = zipfile.ZipFile(wheel).namelist()
    problems = [f"{part} is not in the wheel" for part in NEEDED if part not in "\n".join(names)]
    if "-manylinux" not in wheel.name:
        problems.append(f"{wheel.name} is for no manylinux")
    with tarfile.open(archive) as sources:
        names = sources.getnames()
    for part in (
        "setup.py",
        *(part.name for part in sorted((ROOT / "kernels" / "cpu").glob("cpu_step*"))),
        ".gguf",
        "fim.json",
    ):
        if not any(name.endswith(part) for name in names):
            problems.append(f"{part} is not in the source archive")
    return problems


def installed(wheel: Path, folder: Path, torch_index: str) -> dict:
    """Install the wheel into a fresh environment and use it; return figures and problems."""
    home = folder / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    # As the Makefile: torch first and from its CPU index where that answers.
    index = ["--index-url", torch_index] if torch_index and answers(torch_index) else []
    pip = [python, "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    pip += ["-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, *index, "torch"], check=True)
    subprocess.run([*pip, wheel.resolve()], check=True)
    site = next(home.glob("lib/*/site-packages"))
    num_bytes = sum(path.lstat().st_size for path in site.rglob("*") if path.is_file())
    packages = sorted(path.name for path in site.glob("*.dist-info"))
    problems = [f"{name} was installed" for name in packages if name.startswith(NOT_WANTED)]
    if num_bytes > MOST_BYTES:
        problems.append(f"{num_bytes} bytes were installed, more than {MOST_BYTES}")
    path = folder / "code.py"
    path.write_text(CODE, encoding="utf-8")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    line = CODE.count("\n") + 1

    def run(*words: str) -> str:
        done = subprocess.run(
            [home / "bin" / "keyturn", *words],
            capture_output=True, text=True, cwd=folder, env=env,
        )  # fmt: skip
        if done.returncode:
            problems.append(f"keyturn {words[0]}: exit code {done.returncode}, {done.stderr}")
        return done.stdout

    version = run("--version").strip()
    doctor = json.loads(run("doctor", "--json") or "{}")
    if " in C " not in doctor.get("kernels", {}).get("why", ""):
        problems.append(f"the C step is not used: {doctor.get('kernels')}")
    text = run("complete", f"{path}:{line}:4").strip()
    return {
        "version": version,
        "installed_bytes": num_bytes,
        "torch_index": index[-1] if index else "pip's own",
        "kernels": doctor.get("kernels"),
        "completion": text,
        "problems": problems,
    }


def answers(index: str) -> bool:
    """Return whether an index has torch."""
    try:
        return urllib.request.urlopen(f"{index}/torch/", timeout=10).status == 200
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
