"""The one table of numeric tolerances, per dtype."""

import torch

# Norm of the difference over norm of the expected, for two ways to compute the same logits, keys
# or values: float32 sums in another order; bfloat16 rounds every activation to 8 bits, and
# transformers' own bfloat16 logits of these small random models are up to 2.4 % off float32;
# float16 rounds to 11 bits.
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
# One rounding to the dtype, relative to the value: half a unit in the last place.
ONE_ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def assert_close(actual, expected, dtype):
    """Assert that two tensors agree within the table's tolerance for a dtype."""
    actual, expected = actual.double(), expected.double()
    assert actual.shape == expected.shape
    error = ((actual - expected).norm() / expected.norm()).item()
    assert error <= RELATIVE[dtype], f"off by {error:.3g}, allowed {RELATIVE[dtype]:.3g}"
