"""A packed checkpoint keeps the codes exactly and the masters to 1/128 of a step."""

import pytest
import torch

from training.model.rounding import q4_1
from training.pieces import main, pack_checkpoint, read_pieces, unpack_checkpoint, write_pieces


@pytest.fixture
def state():
    torch.manual_seed(0)
    flat = torch.full((2, 64), 0.3)
    return {"a": torch.randn(6, 64), "norm": torch.randn(5), "flat": flat, "b": torch.randn(1, 32)}


def test_codes_and_masters_come_back(state):
    packed = pack_checkpoint({"model": state, "step": 3, "progress": 0.5})
    masters, exact = unpack_checkpoint(packed), unpack_checkpoint(packed, rounded=True)
    assert (masters["step"], masters["progress"]) == (3, 0.5)
    assert list(masters["model"]) == list(state)
    for name, weight in state.items():
        if weight.dim() == 1:
            assert torch.equal(masters["model"][name], weight)
            continue
        assert torch.equal(exact["model"][name], q4_1(weight))
        groups = weight.reshape(-1, 32)
        step = (groups.amax(-1) - groups.amin(-1)) / 15
        lost = (masters["model"][name] - weight).reshape(-1, 32).abs().amax(-1)
        assert (lost <= step * (1 / 128 + 0.02) + groups.abs().amax(-1) * 1e-3).all()
        assert torch.equal(q4_1(exact["model"][name]), exact["model"][name])


def test_without_masters_the_rounded_values_come_back(state):
    packed = pack_checkpoint({"model": state}, with_masters=False)
    assert torch.equal(unpack_checkpoint(packed)["model"]["a"], q4_1(state["a"]))
    assert len(packed) < len(pack_checkpoint({"model": state}))


def test_pieces_come_back_whole(tmp_path):
    data = bytes(range(256)) * 5000
    assert write_pieces(data, str(tmp_path / "x"), 0.5) == 3
    assert read_pieces(str(tmp_path / "x")) == data
    with pytest.raises(FileNotFoundError, match="y"):
        read_pieces(str(tmp_path / "y"))


def test_command_line_packs_and_unpacks(tmp_path, state):
    torch.save({"model": state, "step": 1}, tmp_path / "a.pt")
    main(["pack", str(tmp_path / "a.pt"), str(tmp_path / "a")])
    main(["unpack", str(tmp_path / "a"), str(tmp_path / "b.pt")])
    assert torch.load(tmp_path / "b.pt")["model"].keys() == state.keys()
