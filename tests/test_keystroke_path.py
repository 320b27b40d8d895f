"""How far a keystroke travels in our own code: bounds that hold, to be lowered and never raised."""

import asyncio

import pytest

from keyturn.kernels.cpu import step

from .keystroke_path import HANDS, files_of, report, trace

MOST_FILES, MOST_FRAMES = 33, 12


@pytest.mark.skipif(isinstance(step.load(), str), reason="needs the C library, where the path ends")
def test_keystroke_passes_few_files_and_frames(tiny_model):
    trails = asyncio.run(trace(str(tiny_model)))
    assert all(set(trail.stacks) == set(HANDS) for trail in trails.values()), report(trails)
    assert len(files_of(trails)) <= MOST_FILES, report(trails)
    assert trails["keystroke"].num_frames <= MOST_FRAMES, report(trails)
