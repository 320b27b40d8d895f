"""Keyturn's side of the CPU benchmark, one process per variant: the product's own path."""

from __future__ import annotations

import argparse
import time

import cpu_peer
import numpy as np

from keyturn.engine.engine import Engine
from keyturn.engine.generation.decoding_cache import DecodingCache
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt.policy import find_policy
from keyturn.kernels import dispatch
from keyturn.server.settings import Settings


def main() -> None:
    """Serve one model to the benchmark; KEYTURN_KERNELS says with which kernels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--capacity", type=int, default=4096, help="tokens of prompt and answer")
    args = parser.parse_args()
    answers = cpu_peer.take_stdout()
    settings = Settings(device="cpu", dtype=args.dtype, num_threads=args.threads)
    engine = Engine(settings.engine_config())
    model = engine.load(args.model)
    # Policy "full" empties the cache for every new prompt.
    capacity = max(args.capacity, model.capacity)
    prompt = DecodingCache(model.decoder, capacity, find_policy("full"), settings.chunk_tokens)

    def run(token_ids: list[int], num_decoded: int) -> dict[str, float]:
        start = time.perf_counter()
        prompt.set_prompt({("prefix",): np.array(token_ids)})
        prompt.patch(go_on)
        token_id = int(prompt.logits(go_on).argmax())
        first = time.perf_counter()
        for _ in range(num_decoded):
            token_id = int(prompt.decode(token_id, go_on).argmax())
        step_s = (time.perf_counter() - first) / num_decoded
        return {"prefill_s": first - start, "step_ms": step_s * 1e3}

    ready = {
        "kernels": dispatch.choose(engine.device).why,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "vocab_size": model.decoder.config.vocab_size,
    }
    cpu_peer.serve_lines(ready, run, answers)


if __name__ == "__main__":
    main()
