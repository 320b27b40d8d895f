"""How far a keystroke travels in our own code: bounds that hold, to be lowered.

What makes them higher is a new subject: the last were what rows lean on, rows
that return, a window that grows, secrets, what becomes of suggestions, what is begun early, drafts,
and MLPs and attention that are not Llama's.
"""

import asyncio
import re

import pytest

from keyturn.kernels.cpu import library

from .keystroke_path import HANDS, README, files_of, picture, report, trace

MOST_FILES, MOST_FRAMES = 52, 12


needs_the_end = pytest.mark.skipif(
    isinstance(library.load(), str), reason="needs the C library, where the path ends"
)


@needs_the_end
def test_keystroke_passes_few_files_and_frames(tiny_model):
    trails = asyncio.run(trace(str(tiny_model)))
    assert all(set(trail.stacks) == set(HANDS) for trail in trails.values()), report(trails)
    assert len(files_of(trails)) <= MOST_FILES, report(trails)
    assert trails["keystroke"].num_frames <= MOST_FRAMES, report(trails)


def named_in(picture: str) -> dict[str, set[str]]:
    """Return the files that a picture names for each message; threads may change their order."""
    found: dict[str, set[str]] = {}
    message = folder = ""
    for line in picture.splitlines():
        if (head := re.match(r"(\w+), \w+: \d+ files$", line)) is not None:
            message = head[1]
            found[message] = set()
        elif message and line.startswith("  "):
            folder = line[2:20].strip() or folder
            found[message] |= {f"{folder}/{name}.py" for name in line[20:].split()}
    return found


@needs_the_end
def test_readme_draws_the_path():
    text = README.read_text(encoding="utf-8")
    part = text[text.index("<!-- path -->") : text.index("<!-- /path -->")]
    trails = asyncio.run(trace("embedded"))
    walked = {message: set(trail.files) for message, trail in trails.items()}
    assert named_in(picture(trails)) == walked
    drawn = named_in(part)
    assert drawn.keys() == walked.keys()
    for message, files in walked.items():
        # Whether a pause falls between two steps may add one file or leave one out.
        assert len(files ^ drawn[message]) <= 1, "run python -m tests.keystroke_path --readme"
