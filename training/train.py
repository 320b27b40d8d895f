#!/usr/bin/env python3
r"""Train on SmolLM2-135M as a fill-in-the-middle model with early exits, against the clock.

    torchrun --nproc-per-node 2 -m training.train --weights embedded --shards data/shards \
        --held data/held --out out --minutes 25 --resume

Each GPU takes a flat stream of tokens a step; the head sees a share of it, middles first. The
learning rate follows the run's progress: warm-up, level, linear down to 1 %. Progress is the share
of the time used, or of --steps. From --grid-from on, the working copies of all matrices are
rounded to Q4_1, straight through. The same command with --resume goes on where it was killed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from .data.batches import CLASS_WEIGHTS, Packing, held_batches
from .data.layouts import LAST, LINE_START
from .data.stream import Stream, parse_passes
from .model import checkpoint
from .model import decoder as model_module
from .model.decoder import Model
from .model.loss import EXIT_PAIRS, LossOptions, losses
from .model.optimiser import Optimiser
from .model.processes import Processes
from .model.schedule import Clock, Span, learning_rate
from .model.validation import held_figures
from .model.weights import load_model, of_state

REPORT_EVERY = 50  # steps


class Trainer:
    """One process's part of a run."""

    def __init__(self, args: argparse.Namespace, processes: Processes) -> None:
        """Load, compile and read the held-out batches; nothing is trained yet."""
        self.args, self.processes = args, processes
        self.step, self.tokens, shards = 0, 0, 0
        self.span = Span(args.begin, args.finish, 0.0, args.steps, args.minutes, args.deadline_file)
        self._log = (args.out / "log.jsonl").open("a") if processes.rank == 0 else None
        began, resumed = time.time(), None
        if args.resume and (args.out / checkpoint.CHECKPOINT).exists():
            resumed = checkpoint.load(args.out)
            self.step, self.tokens = resumed["step"], resumed["tokens"]
            shards = resumed.get("shards", 0)
            self.span.done = (resumed["progress"] - args.begin) / (args.finish - args.begin)
        model = of_state(resumed["model"]) if resumed else load_model(args.weights)
        self.model: Model = model.to(processes.device)
        self.optimiser = Optimiser(
            self.model, args.lr, args.embedding_lr, args.decay, processes.world
        )
        if resumed:
            warm = checkpoint.load_momenta(args.out, self.step, self.optimiser)
            self.say(resumed=self.step, progress=resumed["progress"], momenta=warm)
        num_head, num_exit = (
            max(64, int(args.tokens * share) // 64 * 64)
            for share in (args.head_share, args.exit_share)
        )
        self.options = LossOptions(
            num_exit,
            args.chunk,
            args.exit_weight,
            args.soft_share,
            args.turned_weight,
            args.turned_soft_share,
            args.candidates,
        )
        self._compile()
        ranks = (processes.rank, processes.world)
        most = args.eval_batches
        self.held = (
            held_batches(args.held, args.tokens, num_head, most, *ranks) if args.held else []
        )
        packing = Packing(args.tokens, num_head, int(args.tokens * args.turned_share))
        packing.weights[[LAST, LINE_START]] = args.end_weight, args.line_start_weight
        self.stream = Stream(
            args.shards,
            packing,
            processes.device,
            args.passes,
            *ranks,
            seed=args.seed,
            skip=shards,
        )
        name = torch.cuda.get_device_name() if processes.cuda else "cpu"
        self.say(ready_s=round(time.time() - began, 1), held=len(self.held), device=name)

    def _compile(self) -> None:
        if self.processes.cuda:
            self.model.run = torch.compile(model_module.run_layer, dynamic=False)
            self.optimiser.round = torch.compile(self.optimiser.round, dynamic=False)
            self.options.compile()
            self.optimiser.publish(True)  # compiles the rounding now, not in the middle of the run
        self.optimiser.publish(self.span.place(self.span.done) >= self.args.grid_from)

    def say(self, **fields: object) -> None:
        """Print a line of JSON and append it to log.jsonl, in the first process."""
        if self._log:
            tqdm.write(json.dumps(fields))
            self._log.write(json.dumps(fields) + "\n")
            self._log.flush()

    def run(self) -> None:
        """Train until the part of the schedule, or of the time for this call, is over."""
        args = self.args
        if self.held and self.step == 0:
            self.evaluate(eval=0)
        began = time.time()
        self._one_step(self.span.done)
        self.processes.synchronise()
        self.say(first_step_s=round(time.time() - began, 1))  # compiled now: the clock starts
        clock = Clock(self.span, self.processes, self.step)
        reported = evaluated = saved = 0.0
        before = reported_tokens = self.tokens
        bar = tqdm(
            total=100, unit="%", disable=None if self.processes.rank == 0 else True, leave=False
        )
        while clock.progress < 1 and self.step < args.max_steps:
            report = self._one_step(clock.progress)
            looked = clock.tick()
            bar.update(round(100 * clock.progress, 1) - bar.n)
            if self.step % REPORT_EVERY == 0 or self.step <= 3:
                now = time.time() - clock.start_s
                speed = (self.tokens - reported_tokens) / max(now - reported, 1e-9)
                self.say(**report(), t=round(now, 1), tokens_s=int(speed))
                reported, reported_tokens = now, self.tokens
            if looked and self.held and clock.elapsed_s - evaluated > args.eval_every:
                evaluated = clock.elapsed_s
                self.evaluate(eval=self.step, t=round(evaluated))
                reported = time.time() - clock.start_s
            stops = bool(args.stop_after) and clock.elapsed_s > 60 * args.stop_after
            if looked and (stops or clock.elapsed_s - saved > args.save_every):
                saved = clock.elapsed_s
                self.save(checkpoint.CHECKPOINT, clock.progress)
            if stops:
                self.say(stopped=self.step, progress=self.span.place(clock.progress))
                return
        bar.close()
        seconds = time.time() - clock.start_s
        self._finish(seconds, (self.tokens - before) / max(seconds, 1e-9))

    def _one_step(self, progress: float) -> Callable[[], dict[str, object]]:
        """Train on one batch; return what makes a report of it (and waits for the GPU)."""
        args, place = self.args, self.span.place(progress)
        batch = self.stream.next()
        exits = EXIT_PAIRS[self.step % len(EXIT_PAIRS)] if args.exit_weight else ()
        loss, nll, stats = losses(self.model, batch, exits, self.options)
        loss.backward()
        self.optimiser.collect()
        scale = learning_rate(place, args.warm, args.level)
        on_grid = place >= args.grid_from
        norm = self.optimiser.step(scale, on_grid)
        self.step += 1
        self.tokens += args.tokens * self.processes.world
        step, tokens, num = self.step, self.tokens, batch.num_middle

        def report() -> dict[str, object]:
            if not math.isfinite(float(norm)):
                raise SystemExit(f"step {step} diverged; try a smaller --lr")
            figures: dict[str, object] = {
                "step": step,
                "mtokens": round(tokens / 1e6, 1),
                "progress": round(place, 4),
                "lr": round(scale, 4),
                "on_grid": on_grid,
                "norm": round(float(norm), 3),
                "middle": round(float(nll[:num].mean()), 4),
                "other": round(float(nll[num:].mean()), 4),
                "share": round(num / args.tokens, 3),
                "waited": round(self.stream.waited_s, 1),
                "shards": self.stream.num_shards,
            }
            names = [*(f"exit{layer}" for layer in exits), *["turned"] * (batch.turned is not None)]
            for name, row in zip(names, stats.tolist(), strict=True):
                figures[name] = [round(value, 3) for value in row]
            return figures

        return report

    def evaluate(self, **fields: object) -> None:
        """Say the figures on the held-out batches."""
        self.say(**fields, **held_figures(self.model, self.held, self.processes))

    def save(self, name: str, progress: float) -> None:
        """Write a checkpoint, in the first process."""
        if self.processes.rank == 0:
            checkpoint.save(
                self.args.out,
                name,
                self.optimiser,
                step=self.step,
                progress=self.span.place(min(progress, 1.0)),
                tokens=self.tokens,
                shards=self.stream.num_shards,
            )

    def _finish(self, seconds: float, speed: float) -> None:
        """Write final.pt; say the last figures, on the grid and off it."""
        self.save(checkpoint.FINAL, 1.0)
        memory = torch.cuda.max_memory_allocated() / 2**30 if self.processes.cuda else 0
        self.say(
            done=self.step,
            tokens=self.tokens,
            train_s=round(seconds, 1),
            tokens_s=int(speed),
            gib=round(memory, 1),
        )
        if self.processes.rank == 0:
            (self.args.out / checkpoint.DONE).touch()
        for on_grid in (True, False) if self.held else ():
            self.optimiser.publish(on_grid)
            self.evaluate(eval=self.step, on_grid=on_grid)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--weights", required=True, help="to start from: embedded, .gguf, folder, .pt, pieces")
    add("--shards", type=Path, required=True, help="folder that prepare.py filled or still fills")
    add("--passes", type=parse_passes, default="0:96,1:96,2:96", help='e.g. "0+1:48,2:96"')
    add("--held", type=Path, help="shards of held-out samples")
    add("--out", type=Path, required=True)
    add("--resume", action="store_true", help="go on from OUT/checkpoint.pt, if it is there")
    add("--minutes", type=float, default=20, help="length of the run")
    add("--deadline-file", type=Path, help="unix time of the end, read again and again")
    add("--steps", type=int, help="length in steps instead, the same on any machine")
    add("--stop-after", type=float, help="minutes after which this call ends with a checkpoint")
    add("--max-steps", type=int, default=10**9, help="end here, wherever the schedule is")
    add("--from", dest="begin", type=float, default=0.0, help="place of the schedule at the start")
    add("--to", dest="finish", type=float, default=1.0, help="place at the end")
    add("--lr", type=float, default=1.5e-3, help="of the matrices, an AdamW step's size")
    add("--embedding-lr", type=float, default=6e-4)
    add("--decay", type=float, default=0.05, help="weight decay of the matrices")
    add("--warm", type=float, default=0.015, help="place where the warm-up ends")
    add("--level", type=float, default=0.25, help="place where the rate begins to fall")
    add("--grid-from", type=float, default=0.78, help="place from which copies are Q4_1; 1: never")
    add("--tokens", type=int, default=65536, help="tokens a GPU and step")
    add("--head-share", type=float, default=0.25, help="share of them that the head sees")
    add("--exit-share", type=float, default=0.08, help="share that each exit sees")
    add("--exit-weight", type=float, default=1.0, help="of the exits' loss; 0: no exits")
    add("--soft-share", type=float, default=0.85, help="of the last layer in an exit's target")
    add("--turned-share", type=float, default=0, help="share of rows over a turned cache; 0: none")
    add("--turned-weight", type=float, default=1.0, help="of their loss")
    add("--turned-soft-share", type=float, default=0.85, help="of the fresh rows in their target")
    add("--candidates", type=int, default=1, help="a middle's loss fades where N samples have it")
    ends = CLASS_WEIGHTS[[LAST, LINE_START]].tolist()
    add("--end-weight", type=float, default=ends[0], help="of the end token")
    add("--line-start-weight", type=float, default=ends[1], help="of lines inside a middle")
    add("--chunk", type=int, default=8192, help="positions whose logits exist at a time")
    add("--eval-every", type=float, default=240, help="seconds")
    add("--save-every", type=float, default=300, help="seconds")
    add("--eval-batches", type=int, default=5, help="a GPU")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not args.begin < args.finish:
        parser.error("--from has to be smaller than --to")
    if (args.out / checkpoint.CHECKPOINT).exists() and not args.resume:
        parser.error(f"{args.out} holds a run; add --resume to go on, or choose another folder")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    if args.resume and (args.out / checkpoint.DONE).exists():
        print(f"{args.out} is done; {checkpoint.FINAL} is there")
        return
    processes = Processes.start()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    Trainer(args, processes).run()
    processes.close()


if __name__ == "__main__":
    main()
