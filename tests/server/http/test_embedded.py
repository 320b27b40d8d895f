"""The embedded model behind HTTP: OpenAI's library, llama.vim's requests, the engine's tokens."""

import asyncio
import json
from dataclasses import replace

import openai
import pytest

from keyturn.engine.wire.address import at_socket
from keyturn.engine.wire.config import CompletionParams
from keyturn.server.engine_client import EngineClient
from keyturn.server.settings import COMMAND_LINE

from .conftest import real_process, serving

pytestmark = pytest.mark.slow

SOURCE = '''class Stack:
    """Last in, first out."""

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()

    def peek(self):
        return HERE

    def is_empty(self):
        return len(self.items) == 0
'''.replace("HERE", "")
CURSOR = SOURCE.index("return \n") + len("return ")
# What is repaired and healed does not depend on the machine's load.
EXACT = replace(
    COMMAND_LINE,
    num_threads=1,
    repair_budget_ms=0.0,
    cold_budget_ms=0.0,
    heal="off",
    host_idle_s=20.0,
)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """The command itself, without a token."""
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    with real_process(folder, "--threads", "1") as tool:
        yield tool


@pytest.fixture
def client(process):
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{process.port}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def ask(client, **options):
    asked = {"model": "any", "prompt": SOURCE[:CURSOR], "suffix": SOURCE[CURSOR:]}
    return client.completions.create(**{**asked, "max_tokens": 16, **options})


def test_openai_s_library_completes(client) -> None:
    whole = ask(client, stop=["\n"], temperature=0, logprobs=1, n=1, seed=3)
    (choice,) = whole.choices
    assert choice.text.startswith("self.items")
    assert choice.finish_reason == "stop"
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert all(value <= 0 for value in logprobs.token_logprobs)
    assert logprobs.text_offset[0] == CURSOR
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.prompt_tokens > 50


def test_openai_s_library_streams(client) -> None:
    events = list(ask(client, stop=["\n"], stream=True, stream_options={"include_usage": True}))
    text = "".join(one.choices[0].text for one in events if one.choices)
    assert text.startswith("self.items")
    assert len(events) > 4
    assert [one.choices[0].finish_reason for one in events[:-1]] == [None] * (len(events) - 2) + [
        "stop"
    ]
    assert events[-1].usage.completion_tokens > 3


def test_openai_s_library_ends_a_stream_early(client) -> None:
    with ask(client, stream=True, max_tokens=4000, suffix="") as events:
        assert next(iter(events)).choices[0].text
    assert ask(client, stop=["\n"]).choices[0].text.startswith("self.items")


def test_openai_s_library_lists_the_model_and_raises_what_is_refused(client) -> None:
    assert [model.id for model in client.models.list()] == ["embedded"]
    with pytest.raises(openai.BadRequestError, match="n is 2: one completion"):
        ask(client, n=2)
    with pytest.raises(openai.BadRequestError, match="echo is true"):
        ask(client, echo=True)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="any", messages=[])


def test_a_sampled_completion_depends_on_its_seed(client) -> None:
    options = {"temperature": 1.2, "suffix": "", "prompt": "names = ["}
    texts = {seed: ask(client, seed=seed, **options).choices[0].text for seed in (1, 1, 2, 3)}
    assert len({*texts.values()}) > 1
    assert ask(client, seed=1, **options).choices[0].text == texts[1]


# What llama.vim sends for a place, in its words (autoload/llama.vim): the lines around the cursor,
# at most 256 above and 64 below, and what of the cursor's line stands before it as the prompt.
def of_llama_vim(lines, row, column, n_prefix=256, n_suffix=64):
    line = lines[row]
    return {
        "id_slot": 0,
        "input_prefix": "\n".join(lines[max(0, row - n_prefix) : row]) + "\n",
        "input_suffix": line[column:]
        + "\n"
        + "\n".join(lines[row + 1 : row + n_suffix + 1])
        + "\n",
        "input_extra": [{"text": "x = 1\n", "time": [1, 2], "filename": "other.py"}],
        "prompt": line[:column],
        "n_predict": 16,
        "stop": ["\n"],
        "n_indent": len(line) - len(line.lstrip()),
        "top_k": 40,
        "top_p": 0.90,
        "samplers": ["top_k", "top_p", "infill"],
        "stream": False,
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 60_000,
        "response_fields": [
            *("content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms"),
            *("timings/prompt_per_second", "timings/predicted_n", "timings/predicted_ms"),
            *("timings/predicted_per_token_ms", "timings/predicted_per_second"),
            *("truncated", "tokens_cached"),
        ],
    }


def warming_of_llama_vim():
    return {
        "id_slot": 0,
        **{"input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0},
        "input_extra": [{"text": "x = 1\n", "time": [1, 2], "filename": "other.py"}],
        **{"temperature": 0.0, "samplers": [], "stream": False, "cache_prompt": True},
        **{"t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": [""]},
    }


def test_replay_of_llama_vim(process) -> None:
    """Its requests as somebody types, moves and edits; each is answered in the fields it reads."""
    lines = SOURCE.split("\n")
    row = SOURCE[:CURSOR].count("\n")
    assert process.post("/infill", warming_of_llama_vim()) == (200, {})
    contents = []
    for typed in ("return", "return ", "return self", "return self."):
        typed = lines[row] = " " * 8 + typed
        asked = of_llama_vim(lines, row, len(typed))
        status, answer = process.post("/infill", asked)
        assert status == 200
        assert answer.keys() == {*asked["response_fields"]}
        contents.append(typed + answer["content"])
    assert all(line.startswith("        return self.items") for line in contents), contents
    # The lines around the cursor only, which slide as it moves.
    for at in (row, row - 1, row - 6, row):
        asked = of_llama_vim(lines, at, len(lines[at]), n_prefix=6, n_suffix=3)
        status, answer = process.post("/infill", asked)
        assert (status, answer["truncated"]) == (200, False)


def test_llama_vim_finds_content_by_its_pattern(process) -> None:
    asked = of_llama_vim(SOURCE.split("\n"), 4, 23)
    _, body, _ = process.raw("POST", "/infill", json.dumps(asked).encode())
    assert body.startswith(b"{") and b'"content":"' in body


def test_llama_vscode_reads_the_whole_answer(process) -> None:
    asked = of_llama_vim(SOURCE.split("\n"), 4, 23)
    del asked["response_fields"]
    answer = process.infill(asked.pop("input_prefix"), asked.pop("input_suffix"), **asked)
    assert {"content", "generation_settings", "tokens_cached", "truncated"} <= answer.keys()
    for name in ("prompt", "predicted"):
        assert {f"{name}_n", f"{name}_ms", f"{name}_per_second"} <= answer["timings"].keys()


def test_after_an_edit_above_the_cursor_few_rows_are_computed(process) -> None:
    text = SOURCE.replace("Stack", "Heap").replace("items", "nodes") * 3
    cursor = text.rindex("return \n") + len("return ")
    asked = {"n_predict": 8, "stop": ["\n"]}
    cold = process.infill(text[:cursor], text[cursor:], **asked)["timings"]
    assert cold["prompt_n"] + cold["cache_n"] > 200
    edited = text[:cursor].replace("first out", "first out, of nodes", 1)
    warm = process.infill(edited, text[cursor:], **asked)["timings"]
    # New tokens, and those that repair finds worth it in the time that it has.
    assert warm["prompt_n"] < cold["prompt_n"] / 3
    usage = process.post("/v1/completions", {"prompt": edited, "suffix": text[cursor:]})[1]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] * 2 / 3


PARAMS = CompletionParams(8, 0.0, 1.0, 0, (), 0.0)


def test_same_tokens_as_of_the_engine_under_lsp(tmp_path) -> None:
    """Through HTTP as texts, and as a language server asks: by the edits that lead to each."""
    tmp_path.chmod(0o700)
    places = walk()
    with serving(at_socket(tmp_path / "h.sock"), None, EXACT) as tool:
        through_http = [
            tool.infill(text[:at], text[at:], n_predict=8, return_tokens=True)["tokens"]
            for text, _, at in places
        ]
        through_lsp = asyncio.run(asked_by_edits(at_socket(tmp_path / "h.sock"), places))
    assert through_http == through_lsp
    assert len({*map(tuple, through_http)}) > len(places) / 2


def walk():
    """Return (text, the edits that lead to it from the one before, cursor) as somebody works."""
    text, at = SOURCE, CURSOR
    found = [(text, [], at)]

    def edit(start, end, inserted):
        nonlocal text, at
        text = text[:start] + inserted + text[end:]
        at += len(inserted) - (end - start)
        found.append((text, [(start, end, inserted)], at))

    edit(0, 0, "import collections\n\n")  # above the cursor
    edit(at, at, "self")  # typed at it
    edit(at, at, ".")
    above = text.index("    def pop")
    edit(above, above, "    def size(self):\n        return 0\n\n")
    edit(0, len("import collections"), "from typing import Any")
    found.append((text, [], text.index("self.items.append")))  # a jump
    return found


async def asked_by_edits(address, places):
    engine, texts, current = EngineClient(None, address), {}, 0
    engine.start(EXACT, on_change=lambda *_: None, text_of=texts.get)
    found = []
    try:
        engine.open("doc", 0, places[0][0], "", cursor=places[0][2])
        for text, edits, cursor in places:
            texts["doc"] = text
            if edits:
                engine.edit("doc", current, current + 1, edits)
                current += 1
            completion = await engine.complete("doc", current, cursor, PARAMS, invoked=True)
            found.append(list(completion.token_ids))
    finally:
        await engine.stop()
    return found
