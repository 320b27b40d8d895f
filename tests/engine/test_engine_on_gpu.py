"""The engine on a GPU gives what it gives on the CPU, after edits too."""

import pytest
import torch

from keyturn.engine.engine import Engine
from keyturn.engine.wire.config import CompletionParams, EngineConfig

from ..tolerance import assert_close

TEXT = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n" * 12


PARAMS = CompletionParams(
    max_tokens=6, temperature=0.0, top_p=1.0, seed=0, stop=(), time_budget_ms=0
)


def check():
    pass


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["full", "turn"])
def test_logits_agree_with_the_cpu_after_every_edit(tiny_model, policy):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = {}
    for device in ("cpu", "cuda"):
        engine = Engine(EngineConfig(device, "bfloat16", 0, 1 << 28, 0, 256))
        session = engine.open("d", TEXT, path="a.py", model=str(tiny_model), policy=policy)
        rows = []
        for edit in ((40, 40, "x = 1\n" * 9), (100, 160, ""), (5, 8, "sum"), (700, 700, "q")):
            session.edit([edit])
            session.complete(720, PARAMS, check)
            session.prompt.drop_generated()
            rows.append(session.prompt.logits(check).float().cpu())
        found[device] = torch.stack(rows)
    assert_close(found["cuda"], found["cpu"], torch.bfloat16)
