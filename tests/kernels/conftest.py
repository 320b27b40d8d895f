"""Kernels run in Triton's interpreter on the CPU; with TRITON_INTERPRET=0, compiled on the GPU.

`tests/conftest.py` sets the variable, before anything imports Triton.
"""

import os

import pytest
import torch

IS_INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"


@pytest.fixture
def device() -> torch.device:
    if not IS_INTERPRETED and not torch.cuda.is_available():
        pytest.skip("TRITON_INTERPRET=0 and no CUDA device")
    return torch.device("cpu" if IS_INTERPRETED else "cuda")
