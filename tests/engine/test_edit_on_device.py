"""An edit of a cache on a device: what is noted of rows is on the host, and the host never waits.

The meta device stands in for a GPU: it computes nothing, and to read one of its tensors is an
error.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from keyturn.engine.model.pass_cost import PassCost
from keyturn.engine.prompt.policy import find_policy
from keyturn.engine.prompt.prompt_cache import PromptCache
from keyturn.kernels import dispatch

from .test_kv_cache import config

META = torch.device("meta")
NUM_TOKENS, PLACE = 900, slice(100, 155)


class Copies(TorchDispatchMode):
    """Counts copies from the host to the device; refuses those that the host waits for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        result = func(*args, **(kwargs or {}))
        tensors = [*given, *(each for each in tree_leaves(result) if isinstance(each, Tensor))]
        # A number of no dimensions goes along with a launch.
        if len({each.device for each in tensors if each.dim()}) > 1:
            # `Tensor.copy_` hands it on by its place.
            waits_not = (kwargs or {}).get("non_blocking") or args[2:] == (True,)
            assert waits_not, f"{func} waits"
            self.count += 1
        return result


def check():
    pass


@pytest.fixture
def prompt(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    logits = torch.zeros(50, device=META)
    decoder = SimpleNamespace(
        config=config(),
        dtype=torch.bfloat16,
        device=META,
        last_logits=lambda *_: logits,
        cost=PassCost(),
    )

    def open_(policy):
        made = PromptCache(decoder, 2 * NUM_TOKENS, find_policy(policy), NUM_TOKENS)
        assert made.rows.num_rows == 0  # its memory is there
        return made

    return open_


def num_copies(prompt, *tokens):
    """Bring a prompt to these tokens; return the copies to the device that takes."""
    with Copies() as copies:
        prompt.set_prompt({("prefix",): np.concatenate(tokens)})
        prompt.patch(check)
    return copies.count


@pytest.mark.parametrize("policy", ["turn", "heal"])
def test_the_host_does_not_wait_for_a_device_at_an_edit(prompt, policy):
    prompt, random = prompt(policy), np.random.default_rng(3)
    text = random.integers(0, 40_000, NUM_TOKENS)
    before, lines, behind = text[: PLACE.start], text[PLACE], text[PLACE.stop :]
    num_copies(prompt, text)
    for _ in range(3):
        # The rows that turn, those that are kept, and those that move into the holes.
        assert num_copies(prompt, before, behind) <= 3
        new = random.integers(0, 40_000, len(lines))
        assert num_copies(prompt, before, new, behind) == 1
        assert num_copies(prompt, before, behind) <= 3
        # What turns, and the rows that come back, to one more place.
        assert num_copies(prompt, before, lines, behind) <= 2
        prompt.logits(check)
        assert prompt.num_stale == 0
    at = [slice(200, 220), slice(500, 520), slice(800, 820)]
    places = np.concatenate([np.arange(each.start, each.stop) for each in at])
    assert num_copies(prompt, np.delete(text, places)) <= 3
    text[places] = random.integers(0, 40_000, len(places))
    assert num_copies(prompt, text) == 1


def test_rows_that_were_computed_again_are_put_back_without_waiting(prompt):
    prompt = prompt("heal")
    text = np.random.default_rng(4).integers(0, 40_000, NUM_TOKENS)
    num_copies(prompt, text)
    for _ in range(2):
        num_copies(prompt, text[:100], text[130:])
        with Copies() as copies:
            prompt.heal(NUM_TOKENS, check)
        assert copies.count == 1  # the rows to be kept
        # What turns, goes, moves into the holes; which come back, and where.
        assert num_copies(prompt, text) <= 5
        assert prompt.num_stale == 0
