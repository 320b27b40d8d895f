"""Ask for middles: the engine in this or several processes, or the whole language server."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quality.fim_tasks import SINGLE, Task
from quality.lsp_client import LspClient

from keyturn.engine.engine import Engine
from keyturn.engine.model.layers import go_on
from keyturn.engine.session import Session
from keyturn.engine.syntax.languages import language_of
from keyturn.engine.wire.config import Completion, CompletionParams
from keyturn.server.settings import Settings
from keyturn.server.suggestion import asked, offered

KEYTURN = str(Path(sys.executable).parent / "keyturn")
MAX_TOKENS, MAX_TOKENS_OF_LINE = 96, 72
# What a model that can be told is told of a middle: what the server's rules say of the place,
# nothing, or what the true middle is.
WANTED_BY = ("rules", "none", "truth")
# Of a middle that is scored: the engine's cache has room for 576 rows behind the prompt.
_MAX_SCORED = 400


@dataclass
class Answer:
    """What came back for one task.

    Attributes:
        text: what a user is shown; of a single line it is the first line, not trimmed.
        raw: what the model wrote until it, or the budget, ended; `text` if that was not asked.
        ms: until the answer was there.
        nll: nats of the true middle's tokens together, the end not among them.
        num_tokens: how many those are.
        end_right: whether the likeliest token behind the true middle is one that ends it; None of
            a model that only continues text.
        early_end: whether that is so anywhere before.
        num_prompt_tokens: tokens that the model saw.
        joint: probability of all that the model wrote together, its end not among it; None if that
            was not asked.
        confidence: of the likeliest token at each of the true middle's.
        is_right: whether that is the true one.
    """

    text: str
    raw: str
    ms: float
    nll: float = math.nan
    num_tokens: int = 0
    end_right: bool | None = None
    early_end: bool | None = None
    num_prompt_tokens: int = 0
    joint: float | None = None
    confidence: list[float] = field(default_factory=list)
    is_right: list[bool] = field(default_factory=list)


def ask_engine(
    tasks: list[Task],
    model: str,
    layout: str | None,
    *,
    wanted_by: str = "rules",
    threads: int = 0,
    jobs: int = 1,
) -> list[Answer]:
    """Return the answers of the engine, and its scores of the true middles, in the tasks' order.

    The jobs share nothing, so that the answers do not depend on how many there are; on the number
    of threads they may, as sums are then added up in another order.

    Args:
        tasks: what to ask.
        model: as for `Engine.load`.
        layout: "spm", "psm" or None for the model's own.
        wanted_by: one of `WANTED_BY`; of a model that cannot be told, "truth" is refused.
        threads: CPU threads of each job; 0 is torch's choice, shared out among the jobs.
        jobs: processes.
    """
    if jobs > 1 and not threads:
        threads = max(1, (os.cpu_count() or 1) // jobs)
    if jobs <= 1:
        return _ask_engine(tasks, model, layout, wanted_by, threads)
    answers: list[Answer | None] = [None] * len(tasks)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        shares = [slice(number, None, jobs) for number in range(jobs)]
        futures = [
            pool.submit(_ask_engine, tasks[share], model, layout, wanted_by, threads)
            for share in shares
        ]
        for share, future in zip(shares, futures, strict=True):
            answers[share] = future.result()
    return [answer for answer in answers if answer is not None]


def _ask_engine(
    tasks: Iterable[Task], model: str, layout: str | None, wanted_by: str, threads: int
) -> list[Answer]:
    engine = Engine(Settings(num_threads=threads, cold_budget_ms=0).engine_config())
    template = engine.load(model).template
    if wanted_by == "truth" and (template is None or not template.wanted_ids):
        raise SystemExit(f"{model} has no wanted_ids in its fim.json: it cannot be told the truth")
    return [_ask(engine, task, model, layout, wanted_by) for task in tasks]


def wanted_of(task: Task, wanted_by: str) -> str:
    """Return what a model is told that is wanted, one of `config.WANTED` or ""."""
    if wanted_by == "truth":
        return "block" if "\n" in task.middle else "line"
    return _asked(task).wanted if wanted_by == "rules" else ""


def rules_and_truth(tasks: Iterable[Task]) -> dict[str, int]:
    """Return how often the rules say what ("line", "block", "nothing") of what there truly is."""
    pairs = ((wanted_of(task, "rules") or "nothing", wanted_of(task, "truth")) for task in tasks)
    return dict(sorted(Counter(f"{rules} of a {truth}" for rules, truth in pairs).items()))


def _asked(task: Task) -> CompletionParams:
    """Return what the server would ask for in the place of a middle that may have several lines."""
    text, cursor = task.prefix + task.suffix, len(task.prefix)
    params = CompletionParams(MAX_TOKENS, 0.0, 1.0, 0, (), 0.0)
    return asked(text, cursor, params, language=language_of("", task.path))


def _ask(engine: Engine, task: Task, model: str, layout: str | None, wanted_by: str) -> Answer:
    """Complete one task, then score its true middle behind the same prompt.

    A middle that may have several lines is decoded without the server's stop strings, and cut at
    them afterwards, which gives the text that a user gets and the model's own.
    """
    text, cursor = task.prefix + task.suffix, len(task.prefix)
    session = engine.open("task", text, path=task.path, model=model, policy="turn", layout=layout)
    wanted = wanted_of(task, wanted_by)
    if task.group == SINGLE:
        params = CompletionParams(MAX_TOKENS_OF_LINE, 0.0, 1.0, 0, ("\n",), 0.0, wanted=wanted)
        completion = session.complete(cursor, params, go_on)
        shown = raw = completion.text
    else:
        params = CompletionParams(MAX_TOKENS, 0.0, 1.0, 0, (), 0.0, wanted=wanted)
        stops = _asked(task).stop
        # One that does not know where a middle ends would fill the budget every time.
        params = params if session.model.template else replace(params, stop=stops)
        completion = session.complete(cursor, params, go_on)
        raw = completion.text
        shown = as_shown(completion, text, cursor, stops, language_of("", task.path))
    answer = Answer(shown, raw, completion.total_ms)
    answer.num_prompt_tokens = completion.num_prompt_tokens
    answer.joint = math.prod(completion.probabilities)
    _score(session, task.middle, answer)
    return answer


def as_shown(
    completion: Completion, text: str, cursor: int, stops: tuple[str, ...], language: str
) -> str:
    """Return what the server would insert at the cursor, had it given these stop strings."""
    found = [at for at in map(completion.text.find, stops) if at >= 0]
    if found:
        cut = completion.text[: min(found)]
        completion = replace(completion, text=cut, stop_reason="stop")
    return offered(completion, text, cursor, language).text


def _score(session: Session, middle: str, answer: Answer) -> None:
    """Note how likely the true middle is, and where the model would have ended it.

    White space that the model has to write again counts only as part of the token that also begins
    the middle.
    """
    model, forced = session.model, session.forced_text
    encoded = model.tokenizer.encode(forced + middle)
    token_ids = encoded.token_ids[:_MAX_SCORED].tolist()
    is_whole = len(token_ids) == len(encoded.token_ids)
    after = [*encoded.starts[1:].tolist(), len(forced + middle)]
    first = sum(end <= len(forced) for end in after)
    # Which token is fed last does not matter: nothing is predicted from it.
    logits = session.prompt.score([*token_ids, 0], go_on)
    log_probs = logits[first:-1].double().log_softmax(-1)
    wanted = log_probs.new_tensor(token_ids[first:]).long()
    answer.nll = -log_probs.gather(1, wanted[:, None]).sum().item()
    answer.num_tokens = len(wanted)
    best = log_probs.max(-1)
    answer.confidence = best.values.exp().tolist()
    answer.is_right = (best.indices == wanted).tolist()
    if model.template is not None:
        ends = [at in model.template.end_ids for at in logits[first:].argmax(-1).tolist()]
        answer.end_right = ends[-1] if is_whole else None
        answer.early_end = any(ends[:-1])


def ask_server(
    tasks: list[Task], model: str, layout: str | None, *, threads: int = 0
) -> list[Answer]:
    """Open each task as a document of `keyturn serve`; return the first lines that it suggests."""
    options = {
        "model": model,
        "layout": layout,
        "num_threads": threads,
        "max_tokens": MAX_TOKENS_OF_LINE,
        "time_budget_ms": 0,
    }
    answers = []
    with LspClient([KEYTURN, "serve", "--stdio"], options) as client:
        for number, task in enumerate(tasks):
            uri = f"file:///tasks/{number}.py"
            item = {"uri": uri, "languageId": "python", "version": 1}
            document = {"textDocument": item | {"text": task.prefix + task.suffix}}
            client.notify("textDocument/didOpen", document)
            row = task.prefix.count("\n")
            column = len(task.prefix) - task.prefix.rfind("\n") - 1
            asked = time.perf_counter()
            answer = client.request(
                "textDocument/inlineCompletion",
                {
                    "textDocument": {"uri": uri},
                    "position": {"line": row, "character": column},
                    "context": {"triggerKind": 1},
                },
            )
            ms = (time.perf_counter() - asked) * 1e3
            items = answer if isinstance(answer, list) else (answer or {}).get("items", [])
            line = inserted_line(items[0], column) if items else ""
            answers.append(Answer(line, line, ms))
            client.notify("textDocument/didClose", {"textDocument": {"uri": uri}})
    return answers


def inserted_line(item: dict[str, Any], column: int) -> str:
    """Return the first line of what an item puts at the cursor."""
    typed = column - item["range"]["start"]["character"] if item.get("range") else 0
    return item["insertText"][typed:].split("\n")[0]
