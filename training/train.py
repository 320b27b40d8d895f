#!/usr/bin/env python3
r"""Continue-train SmolLM2-135M as a fill-in-the-middle model with early exits, against the clock.

    torchrun --nproc-per-node 2 train.py --weights BASE.gguf --shards DIR --held DIR \
        --out DIR --minutes 20

Each GPU takes a flat stream of tokens a step; the head sees a share of it, middles first. The
learning rate follows the run's progress: warm-up, level, linear down to 1 %. Progress is the
share of the time used, mapped to the part of the schedule from --from to --to, so that a run can
be cut into several: give the next one the checkpoint of the last (masters; the momenta are warm
again after some twenty steps). From --grid-from on, the working copies of all matrices are
rounded to Q4_1, straight through.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import loss as loss_module
import model as model_module
import torch
import torch.distributed as dist
from batches import Stream, held_batches
from loss import EXIT_PAIRS, EXITS, losses
from model import NUM_LAYERS, Model, rms_norm
from optimiser import Optimiser
from weights import load_model

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def learning_rate(progress: float, warm: float, level: float, last: float = 0.01) -> float:
    """Return the share of the peak learning rate at a progress in 0..1."""
    if progress < warm:
        return progress / warm * 0.98 + 0.02
    if progress < level:
        return 1.0
    return max(last, 1 - (1 - last) * (progress - level) / (1 - level))


class Clock:
    """Progress from 0 to 1, the same on all ranks; the deadline file is read again and again."""

    def __init__(self, args: argparse.Namespace, group: dist.ProcessGroup | None) -> None:
        """Start now."""
        self.args, self.group = args, group
        self.start = time.time()
        self.progress, self.rate, self.steps = 0.0, 0.0, 0

    def end(self) -> float:
        """Return the unix time at which the run ends."""
        if self.args.deadline_file and self.args.deadline_file.exists():
            return float(self.args.deadline_file.read_text())
        return self.start + 60 * self.args.minutes

    def tick(self, synchronise: Callable[[], None]) -> float:
        """Advance by one step; every tenth step the first rank's clock is asked."""
        self.steps += 1
        if self.steps % 10 and self.steps > 2:
            self.progress = min(self.progress + self.rate, 0.9999)
            return self.progress
        synchronise()
        elapsed = time.time() - self.start
        value = torch.tensor(
            [elapsed, elapsed / max(1.0, self.end() - self.start)], dtype=torch.float64
        )
        if WORLD > 1:
            dist.broadcast(value, 0, group=self.group)
        self.elapsed, self.progress = value.tolist()
        self.rate = self.progress / self.steps
        return self.progress


@torch.no_grad()
def held_figures(
    model: Model, held: list, group: dist.ProcessGroup | None, chunk: int = 8192
) -> dict:
    """Return loss, top-1 and agreement with the last layer on held-out middles, by layer."""
    total = torch.zeros(len(EXITS) + 1, 4, dtype=torch.float64)
    device = model.embedding.device
    for batch in held:
        batch = batch.to(device)
        hidden = model.hidden(batch.token_ids, batch.positions, batch.bounds, {*EXITS, NUM_LAYERS})
        for a in range(0, batch.num_middle, chunk):
            b = min(a + chunk, batch.num_middle)
            where, y, full = batch.selected[a:b], batch.targets[a:b], None
            for row, layer in enumerate((NUM_LAYERS, *reversed(EXITS))):
                z = (rms_norm(hidden[layer][where], model.norm) @ model.embedding.t()).float()
                nll = torch.logsumexp(z, -1) - z.gather(1, y[:, None])[:, 0]
                top = z.argmax(-1)
                full = top if full is None else full
                sums = [float(b - a), nll.sum(), (top == y).sum(), (top == full).sum()]
                total[row] += torch.tensor([float(s) for s in sums], dtype=torch.float64)
    if WORLD > 1:
        dist.all_reduce(total, group=group)
    out = {"n": int(total[0, 0])}
    for layer, (n, nll, right, same) in zip(
        (NUM_LAYERS, *reversed(EXITS)), total.tolist(), strict=False
    ):
        out[f"loss{layer}"] = round(nll / n, 4)
        out |= (
            {f"top{layer}": round(right / n, 4)}
            if layer == NUM_LAYERS
            else {f"same{layer}": round(same / n, 4)}
        )
    return out


def parse_passes(text: str) -> list[tuple[list[int], int]]:
    """Parse "0+1:48,2:96" into [([0, 1], 48), ([2], 96)]: interleaved passes, their units."""
    groups = []
    for part in text.split(","):
        numbers, units = part.split(":")
        groups.append(([int(n) for n in numbers.split("+")], int(units)))
    return groups


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", required=True, help=".gguf, .pt or packed pieces to start from"
    )
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument(
        "--passes", type=parse_passes, default="0:96,1:96,2:96", help='e.g. "0+1:48,2:96"'
    )
    parser.add_argument("--held", type=Path, help="shards of held-out samples")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument(
        "--deadline-file",
        type=Path,
        help="file with the unix time of the end, read again and again",
    )
    parser.add_argument(
        "--from", dest="begin", type=float, default=0.0, help="progress at the start of this run"
    )
    parser.add_argument("--to", dest="finish", type=float, default=1.0, help="progress at its end")
    parser.add_argument(
        "--lr", type=float, default=1.5e-3, help="of the matrices, an AdamW step's size"
    )
    parser.add_argument("--embedding-lr", type=float, default=6e-4)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--warm", type=float, default=0.015)
    parser.add_argument(
        "--level", type=float, default=0.25, help="progress at which the rate begins to fall"
    )
    parser.add_argument(
        "--grid-from",
        type=float,
        default=0.78,
        help="progress from which copies are Q4_1; 1: never",
    )
    parser.add_argument("--tokens", type=int, default=65536, help="tokens a GPU and step")
    parser.add_argument(
        "--head-share", type=float, default=0.25, help="share of them that the head sees"
    )
    parser.add_argument("--exit-share", type=float, default=0.08, help="share that each exit sees")
    parser.add_argument("--chunk", type=int, default=8192)
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--eval-every", type=float, default=240, help="seconds")
    parser.add_argument("--save-every", type=float, default=300, help="seconds")
    parser.add_argument("--eval-batches", type=int, default=5, help="per rank")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    args = parse_args()
    cuda = torch.cuda.is_available()
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    )
    group = None
    if cuda:
        torch.cuda.set_device(device)
    if WORLD > 1:
        dist.init_process_group(
            "nccl" if cuda else "gloo", **({"device_id": device} if cuda else {})
        )
        group = dist.new_group(backend="gloo")
    torch.manual_seed(args.seed)
    began = time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    log = (args.out / "log.jsonl").open("a") if RANK == 0 else None

    def say(**fields: object) -> None:
        if log:
            print(json.dumps(fields), flush=True)
            log.write(json.dumps(fields) + "\n")
            log.flush()

    model = load_model(args.weights).to(device)
    optimiser = Optimiser(model, args.lr, args.embedding_lr, args.decay, WORLD)
    if cuda:
        model.run = torch.compile(model_module.run_layer, dynamic=False)
        optimiser.round = torch.compile(optimiser.round, dynamic=False)
        loss_module.compile_losses()
    optimiser.publish(True)  # compiles the rounding now, not in the middle of the run
    optimiser.publish(args.begin >= args.grid_from)
    num_head, num_exit = (
        int(args.tokens * share) // 64 * 64 for share in (args.head_share, args.exit_share)
    )
    held = (
        held_batches(args.held, args.tokens, num_head, args.eval_batches, RANK, WORLD)
        if args.held
        else []
    )
    stream = Stream(
        args.shards, args.tokens, num_head, device, args.passes, RANK, WORLD, seed=args.seed
    )
    synchronise = torch.cuda.synchronize if cuda else lambda: None
    first = stream.next()
    say(
        ready_s=round(time.time() - began, 1),
        held=len(held),
        device=torch.cuda.get_device_name() if cuda else "cpu",
    )
    if held:
        say(eval=0, **held_figures(model, held, group))

    def save(name: str, step: int, **more: float) -> None:
        if RANK == 0:
            temporary = args.out / (name + ".tmp")
            torch.save({"model": optimiser.state(), "step": step, **more}, temporary)
            temporary.rename(args.out / name)

    clock, step, tokens, last = None, 0, 0, time.time()
    progress, evaluated, saved = 0.0, 0.0, 0.0
    while step < args.max_steps and progress < 1:
        place = args.begin + (args.finish - args.begin) * progress
        batch = first if step == 0 else stream.next()
        exits = EXIT_PAIRS[step % len(EXIT_PAIRS)]
        loss, nll, stats = losses(model, batch, exits, num_exit, args.chunk)
        loss.backward()
        optimiser.collect()
        scale, on_grid = learning_rate(place, args.warm, args.level), place >= args.grid_from
        norm = optimiser.step(scale, on_grid)
        step += 1
        if step == 1:  # compiled now: the clock starts
            synchronise()
            say(first_step_s=round(time.time() - last, 1))
            clock, last = Clock(args, group), time.time()
            continue
        tokens += args.tokens * WORLD
        progress = clock.tick(synchronise)
        if step % 50 == 0 or step <= 3:
            now, m = time.time(), batch.num_middle
            exit_figures = {
                f"exit{e}": [round(float(x), 3) for x in s]
                for e, s in zip(exits, stats, strict=False)
            }
            say(
                step=step,
                t=round(now - clock.start, 1),
                mtokens=round(tokens / 1e6, 1),
                progress=round(place, 4),
                lr=round(scale, 4),
                on_grid=on_grid,
                norm=round(float(norm), 3),
                middle=round(float(nll[:m].mean()), 4),
                other=round(float(nll[m:].mean()), 4),
                share=round(m / args.tokens, 3),
                tokens_s=int(50 * args.tokens * WORLD / (now - last)),
                waited=round(stream.waited_s, 1),
                shards=stream.num_shards,
                **exit_figures,
            )
            last = now
            if not math.isfinite(float(norm)):
                raise SystemExit("diverged")
        if step % 10 == 0:
            if held and clock.elapsed - evaluated > args.eval_every:
                evaluated = clock.elapsed
                say(eval=step, t=round(evaluated), **held_figures(model, held, group))
                last = time.time()
            if clock.elapsed - saved > args.save_every:
                saved = clock.elapsed
                save("checkpoint.pt", step, progress=place, tokens=tokens)
    elapsed = time.time() - clock.start
    save("final.pt", step, progress=args.finish, tokens=tokens)
    memory = round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else 0
    say(
        done=step,
        tokens=tokens,
        train_s=round(elapsed, 1),
        tokens_s=int(tokens / elapsed),
        gib=memory,
    )
    if RANK == 0:
        (args.out / "DONE").touch()
    if held:
        for on_grid in (True, False):
            optimiser.publish(on_grid)
            say(eval=step, on_grid=on_grid, **held_figures(model, held, group))
    if WORLD > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
