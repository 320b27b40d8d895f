"""The peer of the CPU benchmarks, in an interpreter of its own: llama.cpp's server by xllamacpp.

Reads a line of JSON per task and answers with one; where to get it: `INSTALL`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

INSTALL = "python3 -m venv peer && peer/bin/pip install --only-binary :all: xllamacpp numpy gguf"

Run = Callable[[list[int], int], dict[str, Any]]


def serve_lines(ready: dict[str, Any], run: Run, answers: TextIO) -> None:
    """Say what is ready; run a task per line of stdin, which nothing but waits for.

    A task is {"token_ids": a prompt, "num_decoded": tokens to generate after it}; the answer of a
    cold one has "prefill_s", until the first token is known, and "step_ms", the mean of the steps
    after it; the answer of a peer that keeps its cache is `kept`'s.
    """
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps(run(task["token_ids"], task["num_decoded"])), file=answers, flush=True)


def take_stdout() -> TextIO:
    """Return stdout for answers alone: what libraries print goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def write_q8(source: Path, target: Path) -> None:
    """Write a GGUF file's matrices as Q8_0, and all the rest as it is."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

    reader = GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if name[:5] != "GGUF."}
    writer = GGUFWriter(target, fields.pop("general.architecture").contents())
    fields.pop("general.file_type", None)  # it names the format of most tensors
    for name, field in fields.items():
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        blocks = quants.quantize(values, GGMLQuantizationType.Q8_0)
        writer.add_tensor(tensor.name, blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Serve one model file to the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("--q8", action="store_true", help="its weights as Q8_0 instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--capacity", type=int, default=4096, help="tokens of prompt and answer")
    parser.add_argument("--keep", action="store_true", help="the cache from prompt to prompt")
    parser.add_argument("--reuse", type=int, default=0, help="with --keep: n_cache_reuse")
    parser.add_argument("--cache-ram", type=int, default=0, help="MiB for copies of old prompts")
    args = parser.parse_args()
    answers = take_stdout()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if args.q8:
            model = Path(folder) / "q8.gguf"
            write_q8(args.model, model)
        _serve(model, args, answers)


def _serve(model: Path, args: argparse.Namespace, answers: TextIO) -> None:
    import xllamacpp  # type: ignore[import-not-found]

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.port = args.capacity, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.cache_ram_mib = args.cache_ram
    server = xllamacpp.Server(params)

    def ask(token_ids: list[int], num_tokens: int, **more: object) -> dict[str, Any]:
        task = {"prompt": token_ids, "n_predict": num_tokens, "temperature": 0}
        task |= {"samplers": ["temperature"], **more}
        request = urllib.request.Request(
            f"{server.listening_address}/completion",
            json.dumps(task).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def cold(token_ids: list[int], num_decoded: int) -> dict[str, Any]:
        # The first token comes with the prompt.
        timings = ask(token_ids, num_decoded + 1, cache_prompt=False, ignore_eos=True)["timings"]
        asked = (len(token_ids), num_decoded + 1)
        found = (timings["prompt_n"], timings["predicted_n"])
        if asked != found:
            raise RuntimeError(f"asked for {asked} tokens, llama.cpp computed {found}")
        # Its clock for steps starts when the first token is there.
        return {
            "prefill_s": timings["prompt_ms"] / 1e3,
            "step_ms": timings["predicted_ms"] / num_decoded,
        }

    def kept(token_ids: list[int], num_decoded: int) -> dict[str, Any]:
        """Return tokens redone, ms to the first token by its own clock and by ours, and text."""
        start = time.perf_counter()
        told = ask(token_ids, num_decoded + 1, cache_prompt=True, n_cache_reuse=args.reuse)
        request_ms = (time.perf_counter() - start) * 1e3
        timings = told["timings"]
        if timings["prompt_n"] + timings["cache_n"] != len(token_ids):
            raise RuntimeError(f"of {len(token_ids)} tokens llama.cpp accounts for {timings}")
        return {
            "num_redone": timings["prompt_n"],
            "ready_ms": timings["prompt_ms"],
            "request_ms": request_ms - timings["predicted_ms"],
            "text": told["content"],
        }

    ready = {"version": xllamacpp.__version__, "address": server.listening_address}
    serve_lines(ready, kept if args.keep else cold, answers)


if __name__ == "__main__":
    main()
