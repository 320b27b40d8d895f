"""Training sees a turned cache as the policy "turn" has it; edits leave the middle alone."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.engine.engine import Engine
from keyturn.engine.wire.config import EngineConfig
from training import prepare, train
from training.data import layouts
from training.data.batches import Packing, pack
from training.data.documents import Document, write_documents
from training.data.edits import Window, before_edit, hunks_between
from training.data.samples import Builder, Sample, Shares
from training.data.shards import read_shards
from training.data.syntax import Source
from training.data.turned import Edit, old_rows
from training.model.decoder import TINY, Model
from training.model.loss import LossOptions, losses
from training.model.weights import load_model


def go_on():
    pass


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 0, 256))


@pytest.fixture(scope="module")
def edited(documents, tokenizer_path) -> list[Sample]:
    """Samples of this repository's files, whose prompts were computed before an edit."""
    builder = Builder(documents[:4] + documents[-2:], tokenizer_path, Shares(edited=1.0))
    rng = random.Random(3)
    found = [s for i in range(len(builder.documents)) for s in builder.samples(rng, i) if s]
    return [s for s in found if s.edit is not None and len(s.tokens) < 400]


def as_batch(samples, num_head=64, room=None):
    pairs = [(np.array(s.tokens, np.uint16), np.array(s.classes, np.uint8)) for s in samples]
    edits = [s.edit for s in samples]
    size = sum(len(s.tokens) + len(s.edit.old) + s.edit.num_anew for s in samples) + 100
    room = room or sum(len(s.tokens) for s in samples) + 50
    return pack(pairs, Packing(size, num_head, room), np.random.default_rng(0), edits)


def test_most_samples_have_edits_of_every_layout(edited):
    assert len(edited) > 12
    assert {s.layout for s in edited} == {layouts.PSM, layouts.SPM, layouts.EFIM}
    assert any(len(s.edit.old) != s.edit.cursor + 1 for s in edited)
    for sample in edited:
        edit, tokens = sample.edit, np.array(sample.tokens)
        served = np.flatnonzero(edit.sources >= 0)
        assert (edit.old[edit.sources[served]] == tokens[served]).all()
        assert (edit.sources[edit.cursor :] == -1).all() and len(edit.sources) == len(tokens)
        assert sample.classes[edit.cursor + 1] == layouts.FIRST


TEXT = """import math


def area(radius, unit):
    scale = unit * 2
    value = math.pi * radius * radius
    print(value, scale, radius, unit, value)
    return value + scale - unit * value + radius


def other(width, height):
    return width * height + area(width, height)
"""
CHANGES = {
    "rename": ("radius", "half_width"),
    "insertion": ("    scale = unit * 2\n", "    scale = unit * 2\n    scale += 1\n"),
    "deletion": ("    print(value, scale, radius, unit, value)\n", ""),
}


@pytest.mark.parametrize("layout", ["spm", "psm"])
@pytest.mark.parametrize("change", CHANGES)
def test_logits_over_a_turned_cache_are_the_engines(
    engine, exported, tokenizer_path, layout, change
):
    """Oracle: a session of the engine that is edited, and then scores the middle."""
    at = "width * height + "
    old, new = TEXT, TEXT.replace(*CHANGES[change])
    middle = "math.pi * scale\n    return"
    session = engine.open("a", old, path="", model=str(exported), policy="turn", layout=layout)
    session.set_cursor(old.index(at) + len(at))
    session.sync(go_on)
    cursor = new.index(at) + len(at)
    start = next(i for i in range(len(old)) if old[i:] != new[i:] and old[i] != new[i])
    end = next(i for i in range(len(old)) if old[len(old) - 1 - i] != new[len(new) - 1 - i])
    end = min(end, len(old) - start, len(new) - start)
    session.edit([(start, len(old) - end, new[start : len(new) - end])])
    session.set_cursor(cursor)
    session.sync(go_on)

    builder = Builder([Document("p", "a.py", new)], tokenizer_path)
    encode = lambda text: builder._encode(text)[0]  # noqa: E731
    ids = encode(middle)
    engines = session.prompt.score([*ids, 0], go_on)

    number = layouts.LAYOUTS.index(layout)
    parts, prompts = {}, {}
    for name, text in (("old", old), ("new", new)):
        place = text.index(at) + len(at)
        order = layouts.segments(text[:place], "", text[place:], number)
        parts = {"prefix": encode(text[:place]), "tail": [], "suffix": encode(text[place:])}
        prompts[name] = layouts.by_segment(order, parts)
    flat = {name: [t for part in p.values() for t in part] for name, p in prompts.items()}
    assert session.prompt.token_ids.tolist() == flat["new"]
    sources = old_rows(prompts["old"], prompts["new"])
    rows = np.concatenate([sources, np.full(len(ids) + 1, -1)]).astype(np.int16)
    edit = Edit(np.array(flat["old"], np.uint16), rows, len(sources) - 1)
    assert 0 < (sources >= 0).sum() < len(sources)
    classes = [layouts.NONE] * len(sources) + [layouts.MIDDLE] * len(ids) + [layouts.LAST]
    sample = Sample([*flat["new"], *ids, layouts.END], classes, 1, number, edit)
    batch = as_batch([sample])
    model = load_model(exported)
    last = model.shape.num_layers
    with torch.no_grad():
        hidden = model.hidden(batch.token_ids, batch.positions, batch.bounds, {last}, batch.turned)[
            last
        ]
        turned = batch.turned
        live = turned.weights > 0
        order = batch.selected[: len(turned.rows)][live].argsort()
        mine = model.logits(hidden[turned.rows[live][order]])
        fresh = model.logits(hidden[batch.selected[: len(turned.rows)][live][order]])
    torch.testing.assert_close(mine, engines, rtol=1e-4, atol=1e-4)
    after = np.flatnonzero(sources < 0)[0]
    if (sources[after:] >= 0).any():  # rows that are stale, not only rows before the change
        assert (fresh - engines).abs().max() > 1e-3


def test_gradient_goes_through_the_stale_rows_and_not_to_the_teacher(edited, tiny):
    batch = as_batch(edited[:2])
    rows = batch.turned.source >= len(batch.token_ids)
    assert rows.sum() == sum(s.edit.num_anew for s in edited[:2])
    model = load_model("random-tiny")
    model.load_state_dict(tiny.state_dict())
    embedded = []
    run = model.run

    def spy(x, *rest):
        if not embedded:
            x.retain_grad()
            embedded.append(x)
        return run(x, *rest)

    model.run = spy
    options = LossOptions(8, exit_weight=0, turned_soft_share=1.0)
    batch.weights.zero_()  # only the turned rows' loss is left
    loss, _, stats = losses(model, batch, (), options)
    loss.backward()
    grad = embedded[0].grad.abs().sum(-1)
    fresh = sum(len(s.tokens) for s in edited[:2])
    assert torch.isfinite(grad).all() and not grad[:fresh].any()
    assert (grad[fresh : fresh + len(edited[0].edit.old)] > 0).any()
    assert stats.shape == (1, 2)


def test_edits_are_left_out_where_there_is_no_room_for_them(edited, tiny):
    """The head sees the same places, and the same states, with and without turned rows."""
    pairs = [(np.array(s.tokens, np.uint16), np.array(s.classes, np.uint8)) for s in edited[:2]]
    plain = pack(pairs, Packing(2000, 2000), np.random.default_rng(0))
    assert plain.turned is None
    batch = as_batch(edited[:2], num_head=2000)
    last = {30}
    with torch.no_grad():
        alone = tiny.hidden(plain.token_ids, plain.positions, plain.bounds, last)[30]
        turned = tiny.hidden(batch.token_ids, batch.positions, batch.bounds, last, batch.turned)[30]
    size = sum(len(t) for t, _ in pairs)
    torch.testing.assert_close(alone[:size], turned[:size], rtol=1e-4, atol=1e-4)
    real = {int(i) for i, w in zip(batch.selected, batch.weights, strict=True) if w}
    assert real == {int(i) for i, w in zip(plain.selected, plain.weights, strict=True) if w}


@given(st.integers(0, 10_000), st.integers(0, 200), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_an_edit_leaves_the_middle_alone(seed, start, length):
    source = Source(TEXT, "py")
    window = Window(0, start, start + length, len(TEXT))
    hunks = hunks_between(TEXT.replace("value", "amount"), TEXT)
    found = before_edit(random.Random(seed), source, window, hunks)
    if found is not None:
        assert found != (TEXT[:start], TEXT[start + length :])


def test_changes_between_releases_lead_back():
    old = TEXT.replace("value", "amount").replace("import math\n", "")
    text = TEXT
    for low, high, was in reversed(hunks_between(old, TEXT)):
        text = text[:low] + was + text[high:]
    assert text == old


def test_run_over_turned_rows(documents, tokenizer_path, tmp_path):
    """From documents with an older release, through shards, to a step that trains on them."""
    old = [Document("old:" + d.package, d.path, d.text.replace("self", "this")) for d in documents]
    write_documents(tmp_path / "a.bin.zst", documents[:2] + old[:2])
    command = [str(tokenizer_path), str(tmp_path), str(tmp_path / "a.bin.zst"), "--workers", "1"]
    more = ["--passes", "1", "--units", "3", "--edited", "1", "--wanted", "0.5"]
    prepare.main([*command, *more])
    shards = read_shards(sorted(tmp_path.glob("p*.npz")))
    edited = [e for e in shards.edits if e is not None]
    assert len(edited) > len(shards.length) / 2
    assert any(token in layouts.WANTED.values() for token in shards.tokens.tolist())
    for path in tmp_path.glob("p*.npz"):  # a small vocabulary, for speed
        parts = dict(np.load(path))
        small = {name: parts[name] % 1024 for name in ("tokens", "old")}
        np.savez(path, **parts | small)
    out, weights = tmp_path / "out", tmp_path / "tiny.pt"
    torch.save({"model": Model(dataclasses.replace(TINY, vocabulary=1024)).state_dict()}, weights)
    options = ["--weights", str(weights), "--shards", str(tmp_path), "--out", str(out)]
    options += ["--tokens", "1024", "--steps", "2", "--passes", "0:3", "--candidates", "3"]
    train.main([*options, "--turned-share", "0.5"])
    lines = (out / "log.jsonl").read_text()
    assert '"turned": [' in lines
