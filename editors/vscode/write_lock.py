"""Write what a private server is made from, with hashes: `make vscode-lock`.

Two files, for the two places packages come from: on Linux PyPI's torch brings gigabytes of CUDA,
and the CPU build has an index of its own. uv resolves for every platform at once; where that index
does not answer, the hash is that of the wheel in UV_FIND_LINKS.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = Path(__file__).parent / "requirements"
_BLOCK = re.compile(r"^\S.*(?:\n .*)*", re.MULTILINE)
_COMPILE = [
    "pip",
    "compile",
    "-",
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--only-binary=:all:",
    "--no-header",
    "--no-annotate",
    "--quiet",
    f"--constraint={ROOT / 'constraints.txt'}",
]


def main() -> None:
    """Resolve and write; arguments are passed on to uv."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    done = subprocess.run(
        [sys.executable, "-m", "uv", *_COMPILE, *sys.argv[1:]],
        input="\n".join(project["dependencies"]),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    blocks = _BLOCK.findall(done.stdout)
    is_torch = [block.startswith("torch==") for block in blocks]
    FOLDER.mkdir(exist_ok=True)
    for name, wanted in (("torch.txt", True), ("requirements.txt", False)):
        chosen = [block for block, found in zip(blocks, is_torch, strict=True) if found is wanted]
        (FOLDER / name).write_text("\n".join(chosen) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
