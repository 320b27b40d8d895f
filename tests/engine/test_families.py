"""Every family of models computes what transformers computes: prefill, decoding, edits, turns."""

import shutil

import numpy as np
import pytest
import torch

from keyturn.engine.engine import Engine
from keyturn.engine.files.weights import load_model
from keyturn.engine.model.captured_pass import DecodeGraph, PatchGraph
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.model.passes import GraphPass
from keyturn.engine.prompt.policy import find_policy
from keyturn.engine.prompt.prompt_cache import PromptCache
from keyturn.engine.prompt.repair import RepairLimit
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.kernels import dispatch

from ..tolerance import ONE_ROUNDING, assert_close
from .families import CASES, SIZES, make_model

LENGTH, CAPACITY = 40, 64
TEXT = ("prefix",)


def check():
    pass


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models so small wait for threads longer than those compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request):
    if not request.param.is_there:
        pytest.skip("this transformers does not have it")
    return request.param


@pytest.fixture(scope="module")
def reference(case):
    return make_model(case)


@pytest.fixture(scope="module")
def folder(case, reference, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    reference.save_pretrained(folder)
    shutil.copy(tiny_model / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module", params=["auto", "reference"])
def decoder(request, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(dispatch.VARIABLE, request.param)
        files = load_model(folder, torch.float32)
        yield Decoder(files.config, files.tensors)


@pytest.fixture(scope="module")
def token_ids():
    return np.random.default_rng(3).integers(0, SIZES["vocab_size"], LENGTH)


def expected(reference, token_ids):
    with torch.no_grad():
        return reference(torch.from_numpy(np.asarray(token_ids))[None]).logits[0]


def prefilled(decoder, token_ids):
    cache = KVCache(decoder.config, CAPACITY, decoder.dtype, decoder.device)
    slots = cache.append(np.asarray(token_ids), np.arange(len(token_ids)))
    hidden = decoder.forward(cache, slots, check)
    cache.mark_computed(slots)
    return cache, decoder.logits(hidden)


def edited(token_ids, random):
    """Return tokens after an insertion, a deletion or a replacement somewhere."""
    at, length = int(random.integers(1, len(token_ids) - 8)), int(random.integers(0, 6))
    new = random.integers(0, SIZES["vocab_size"], int(random.integers(0, 6)))
    return np.concatenate([token_ids[:at], new, token_ids[at + length :]])


def test_prefill_equals_transformers(decoder, reference, token_ids):
    _, logits = prefilled(decoder, token_ids)
    assert_close(logits, expected(reference, token_ids), torch.float32)


def test_decoding_equals_transformers(decoder, reference, token_ids):
    cache, _ = prefilled(decoder, token_ids[:-3])
    logits = []
    for at in range(LENGTH - 3, LENGTH):
        slots = cache.append(token_ids[at : at + 1], np.array([at]))
        logits.append(decoder.last_logits(cache, slots, check))
    assert_close(torch.stack(logits), expected(reference, token_ids)[-3:], torch.float32)


def test_edits_with_prefix_equal_transformers(decoder, reference, token_ids):
    random = np.random.default_rng(5)
    prompt = PromptCache(decoder, CAPACITY, find_policy("prefix"), 16)
    for _ in range(4):
        prompt.set_prompt({TEXT: token_ids})
        prompt.patch(check)
        logits = prompt.logits(check)
        assert_close(logits, expected(reference, token_ids)[-1], torch.float32)
        token_ids = edited(token_ids, random)


def test_turned_keys_are_exact_in_the_first_layer_and_all_rows_once_healed(
    decoder, reference, token_ids
):
    random = np.random.default_rng(6)
    prompt = PromptCache(decoder, CAPACITY, find_policy("turn"), 16)
    for _ in range(3):
        prompt.set_prompt({TEXT: token_ids})
        prompt.patch(check)
        fresh, _ = prefilled(decoder, prompt.token_ids)
        order = np.argsort(prompt.rows.positions)
        for found, wanted in zip(prompt.rows.layer(0), fresh.layer(0), strict=True):
            error = (found[:, order] - wanted).norm() / wanted.norm()
            assert error < 4 * ONE_ROUNDING[torch.float32]
        token_ids = edited(token_ids, random)
    assert prompt.num_stale
    prompt.heal_now(check)
    assert_close(prompt.logits(check), expected(reference, prompt.token_ids)[-1], torch.float32)


def test_repair_leans_on_weights_of_every_kind_of_layer(folder, reference, token_ids):
    files = load_model(folder, torch.float32)
    prompt = PromptCache(Decoder(files.config, files.tensors), CAPACITY, find_policy("repair"), 16)
    random = np.random.default_rng(7)
    for _ in range(2):
        prompt.set_prompt({TEXT: token_ids})
        prompt.patch(check)
        prompt.repair(RepairLimit(max_rows=6), check)
        token_ids = edited(token_ids, random)
    prompt.heal_now(check)
    assert_close(prompt.logits(check), expected(reference, prompt.token_ids)[-1], torch.float32)


def test_a_document_is_completed_as_if_opened_anew(folder):
    text, params = (
        "def area(w, h):\n    return w * h\n" * 6,
        CompletionParams(5, 0.0, 1.0, 0, (), 0.0),
    )
    engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 28, 60, 16))
    edited, fresh = (
        engine.open(policy, text, path="a.py", model=str(folder), policy=policy)
        for policy in ("prefix", "full")
    )
    edited.complete(100, params, check)
    for session in (edited, fresh):
        session.edit([(40, 46, "size"), (90, 90, "  # note")])
    found, wanted = (session.complete(112, params, check) for session in (edited, fresh))
    assert (found.text, found.token_ids) == (wanted.text, wanted.token_ids)


def test_a_graph_of_few_rows_equals_transformers(folder, reference, token_ids, monkeypatch):
    """As it is launched where nothing is captured, with torch's versions of the kernels."""
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    files = load_model(folder, torch.float32)
    decoder = Decoder(files.config, files.tensors)
    if any(GraphPass.lacks(block) for block in files.config.blocks()):
        pytest.skip("graphs do not compute such layers")
    cache, _ = prefilled(decoder, token_ids[:-3])
    slots = cache.append(token_ids[-3:], np.arange(LENGTH - 3, LENGTH))
    graph = PatchGraph(decoder.stack, cache, decoder.stack.kernels, 4)
    logits = decoder.logits(graph.forward(slots))
    assert_close(logits, expected(reference, token_ids)[-3:], torch.float32)
    several = DecodeGraph(decoder.stack, cache, decoder.stack.kernels, 4).decode(slots).rows
    assert_close(several, expected(reference, token_ids)[-3:], torch.float32)
    if not any(block.beyond_llama() for block in files.config.blocks()):
        step = DecodeGraph(decoder.stack, cache, decoder.stack.kernels).step(int(slots[-1]))
        assert_close(step, expected(reference, token_ids)[-1], torch.float32)


def test_bfloat16_is_as_close_as_transformers_own(folder, reference, token_ids):
    files = load_model(folder, torch.bfloat16)
    _, logits = prefilled(Decoder(files.config, files.tensors), token_ids)
    wanted = expected(reference, token_ids)
    if files.config.experts is not None:  # where two experts are nearly as good, rounding chooses
        errors = (logits - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        wanted, logits = (part[errors <= errors.median()] for part in (wanted, logits))
    assert_close(logits, wanted, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_by_every_pass_that_it_has(folder, reference, token_ids, dtype):
    """Launches in float32, captured graphs in bfloat16 where they support the layers."""
    files = load_model(folder, dtype)
    decoder = Decoder(files.config, {name: part.cuda() for name, part in files.tensors.items()})
    wanted = expected(reference, token_ids)
    cache, logits = prefilled(decoder, token_ids[:-3])
    found = [logits.cpu()]
    for at in range(LENGTH - 3, LENGTH):
        slots = cache.append(token_ids[at : at + 1], np.array([at]))
        found.append(decoder.last_logits(cache, slots, check).cpu()[None])
    again = decoder.logits(decoder.forward(cache, np.arange(LENGTH - 9, LENGTH), check)).cpu()
    found, wanted = [*found, again], [wanted, wanted[-9:]]
    for count in (9, 3, 3, 3):  # launched one by one, captured, replayed
        slots = np.arange(LENGTH - count, LENGTH)
        found.append(decoder.decode(cache, slots, check).rows.cpu())
        wanted.append(wanted[0][-count:])
    found, wanted = torch.cat(found), torch.cat(wanted)
    if files.config.experts is not None and dtype == torch.bfloat16:
        errors = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        wanted, found = (part[errors <= errors.median()] for part in (wanted, found))
    assert_close(found, wanted, dtype)
