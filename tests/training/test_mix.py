"""A mix has the shares that were asked for; a fit finds the law that made its data."""

import json

import numpy as np
import pytest
import torch

from training import mix_fit
from training.data.shards import read_shards
from training.mix import Share, draw, mix, parse_share
from training.mix_fit import Law, choose, fit, of_run

from .test_batches import write_shard

TRUE = Law(
    ("python", "script"),
    torch.tensor([0.30, 0.10], dtype=torch.float64),
    torch.tensor([2.0, 8.0], dtype=torch.float64),
    torch.tensor(0.4, dtype=torch.float64),
    torch.tensor(6e7, dtype=torch.float64),
    torch.tensor(1.3, dtype=torch.float64),
)


def run(python, script, tokens=19e6, law=TRUE, **more):
    pools = {"python": python, "script": script}
    seen = {"pools": pools, "tokens": tokens, **more}
    return seen | {"loss": {"py": float(law.loss(tokens, *of_run(seen, law.pools)))}}


RUNS = [
    run([0.8, 1], [0.2, 1]),
    run([0.5, 1], [0.5, 1]),
    run([0.2, 1], [0.8, 1]),
    run([0.8, 4], [0.2, 1]),
    run([0.2, 1], [0.8, 4]),
    run([0.5, 8], [0.5, 8]),
    run([0.5, 2], [0.5, 1], tokens=38e6),
]


def test_fit_predicts_a_mix_that_it_has_not_seen():
    law = fit(RUNS, "py", 1.3)
    new = run([0.65, 3], [0.35, 2])
    found = float(law.loss(new["tokens"], *of_run(new, law.pools)))
    spread = np.std([r["loss"]["py"] for r in RUNS])
    assert abs(found - new["loss"]["py"]) < 0.1 * spread
    assert law.utility[0] > 2 * law.utility[1]  # which pool is worth more
    with pytest.raises(ValueError, match="tell nothing"):
        fit(RUNS[:1], "py", 1.3)


def test_a_raised_rate_and_a_pool_that_harms_are_within_the_law():
    harms = torch.tensor([0.30, -0.05], dtype=torch.float64)
    law = TRUE._replace(utility=harms, start=TRUE.start * 1.06)
    runs = [run(*(made["pools"].values()), made["tokens"], law) for made in RUNS]
    assert max(made["loss"]["py"] for made in runs) > 1.3  # above where it was before training
    found = fit(runs, "py", 1.3)
    new = run([0.65, 3], [0.35, 2], law=law)
    spread = np.std([r["loss"]["py"] for r in runs])
    assert (
        abs(float(found.loss(new["tokens"], *of_run(new, law.pools))) - new["loss"]["py"])
        < 0.1 * spread
    )
    assert found.utility[1] < 0 < found.utility[0]


def test_repeats_are_worth_less_and_the_better_pool_is_chosen_until_it_is_worn_out():
    once, often = (run([0.5, n], [0.5, 1])["loss"]["py"] for n in (1, 6))
    assert once < often < 1.3
    plenty, _ = choose({"py": TRUE}, 1e8, {"python": 1e9, "script": 1e9})
    scarce, _ = choose({"py": TRUE}, 1e8, {"python": 2e6, "script": 1e9})
    assert plenty["python"] == 1.0 > scarce["python"]


def test_command_line_predicts_and_chooses(tmp_path, capsys):
    content = {"start": {"py": 1.3}, "runs": [*RUNS, run([0.6, 2], [0.4, 1], held_out=True)]}
    (tmp_path / "runs.json").write_text(json.dumps(content))
    sizes = ["--tokens", "1e8", "--pool", "python=1e9", "--pool", "script=1e9"]
    mix_fit.main([str(tmp_path / "runs.json"), *sizes])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(line.get("held_out") is True for line in lines) == 1
    assert lines[-1]["shares"]["python"] > 0.9


def test_mix_has_its_shares_and_repeats(tmp_path):
    rng = np.random.default_rng(0)
    for number, name in enumerate(("python", "script")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "p00_u000.npz"
        write_shard(path, rng, 400)
        parts = dict(np.load(path))
        np.savez(path, **parts | {"language": parts["language"] + np.uint8(number)})
    shares = dict([parse_share("python=0.75"), parse_share("script=0.25x2")])
    units = mix(tmp_path, tmp_path / "mixed", shares, 4000, seed=1)
    found = read_shards(sorted((tmp_path / "mixed").glob("p*.npz")))
    assert units == 1
    script = found.columns["language"] == 1
    assert found.length[script].sum() == pytest.approx(1000, abs=80)
    assert found.length.sum() == pytest.approx(4000, abs=160)
    seen = [found.sample(i)[0].tobytes() for i in np.flatnonzero(script)]
    assert all(seen.count(one) == 2 for one in seen)
    with pytest.raises(ValueError, match="are there"):
        draw(found.length, 1e6, 1, rng)
    with pytest.raises(ValueError, match="share of a pool"):
        parse_share("python:0.5")
    assert shares["python"] == Share(0.75, 1)
