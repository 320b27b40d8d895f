"""What is carried in loads arrives whole, in any order, and damage is seen."""

import random
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training import carry

KEEP = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.integers(1, 40), st.randoms())
@KEEP
def test_files_arrive_whole_in_any_order(tmp_path_factory, contents, room, rng: random.Random):
    folder = tmp_path_factory.mktemp("carry")
    files = [folder / f"file{i}" for i in range(len(contents))]
    for path, data in zip(files, contents, strict=True):
        path.write_bytes(data)
    loads = carry.pack(files, folder / "loads", room / 2**20)
    sizes = [
        sum(p.stat().st_size for p in load.iterdir() if p.name != carry.INDEX) for load in loads
    ]
    assert max(sizes) <= room and sum(sizes) == sum(map(len, contents))
    assert all(size == room for size in sizes[:-1])  # no load goes half empty
    rng.shuffle(loads)
    loads += loads[:1]  # one comes twice
    whole = [path.name for load in loads for path in carry.receive(load, folder / "work")]
    assert sorted(whole) == sorted(path.name for path in files)
    for path, data in zip(files, contents, strict=True):
        assert (folder / "work" / path.name).read_bytes() == data


def test_damage_is_seen_and_wheels_are_unpacked(tmp_path):
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/__init__.py", "WORKS = True\n")
    (load,) = carry.pack([wheel], tmp_path / "loads", 1)
    data = (load / "00").read_bytes()
    (load / "00").write_bytes(data[:-1] + b"?")
    with pytest.raises(ValueError, match="damaged"):
        carry.receive(load, tmp_path / "work")
    (load / "00").write_bytes(data)
    carry.receive(load, tmp_path / "work")
    assert (tmp_path / "work" / "site" / "a" / "__init__.py").read_text() == "WORKS = True\n"
    with pytest.raises(ValueError, match="same name"):
        carry.pack([wheel, wheel], tmp_path / "loads", 1)
