import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from keyturn.engine.engine import Engine
from keyturn.engine.replay import replay
from keyturn.engine.wire.config import Completion
from keyturn.engine.wire.errors import BadRequest
from keyturn.server.settings import Settings

CONTRACT = [
    *("policy", "model", "num_edits", "num_completions", "top1_agreement", "kl_mean"),
    *("exact_match_full", "reference_edit_similarity", "open_ms", "edit_ms_p50"),
    *("ttft_ms_p50", "ttft_ms_p95", "ready_ms_p50", "ready_ms_p95", "num_tokens_wanted"),
    *("num_tokens_kept", "num_tokens_turned", "num_tokens_repaired"),
    *("num_tokens_recomputed", "num_tokens_healed", "num_rows_forwarded"),
]
TEXT = Path(replay.__file__).read_text(encoding="utf-8")[:1500]


def write_trace(folder: Path, *records: dict, text: str = TEXT) -> Path:
    path = folder / "trace.jsonl"
    opened = {"open": {"path": "a.py", "text": text}}
    path.write_text("".join(json.dumps(record) + "\n" for record in [opened, *records]))
    return path


class FakeSession:
    """Writes down what it is asked, and takes one simulated millisecond a row."""

    def __init__(self, text, policy):
        self.text, self.policy, self.calls = text, policy, []
        self.anchor = None
        self.layout_name = "spm"
        self.prompt = self  # whose rows it counts
        self.num_rows_forwarded = self.num_rows_healed = 0
        self.num_stale = 30
        self.forced_text = ""
        self.model = SimpleNamespace(
            tokenizer=SimpleNamespace(
                encode=lambda text: SimpleNamespace(token_ids=torch.zeros(len(text)))
            )
        )

    def edit(self, edits):
        self.calls.append(("edit", edits))
        for start, end, text in reversed(edits):
            self.text = self.text[:start] + text + self.text[end:]

    def set_cursor(self, offset):
        self.calls.append(("set_cursor", offset))
        self.anchor = offset

    def sync(self, check):
        self.calls.append(("sync",))
        self.num_rows_forwarded += 100

    def heal(self, max_rows, check):
        rows = min(max_rows, self.num_stale, 8)
        self.calls.append(("heal", max_rows))
        self.num_stale -= rows
        self.num_rows_healed += rows
        return rows

    def complete(self, offset, params, check):
        self.calls.append(("complete", offset))
        assert (params.max_tokens, params.temperature, params.stop) == (64, 0.0, ())
        self.num_rows_forwarded += 7
        return Completion("abc", (1, 2, 3), 50, 40, 5.0, 9.0, 2, "end", (0.5, 0.5, 0.5))

    def take_counts(self):
        self.calls.append(("take_counts",))
        return SimpleNamespace(
            num_wanted=10, num_kept=4, num_turned=3, num_repaired=2, num_recomputed=1
        )


class FakeEngine:
    def __init__(self):
        self.opened, self.closed = [], []

    def open(self, key, text, **options):
        self.opened.append(FakeSession(text, options["policy"]))
        return self.opened[-1]

    def close(self, key):
        self.closed.append(key)


def fake_run(path: Path, policy: str = "turn", rate: float | None = 2.0):
    engine = FakeEngine()
    rows = list(
        replay.run(
            path,
            engine=engine,  # type: ignore[arg-type]
            model="m",
            policy=policy,
            oracle=False,
            heal_tokens_per_ms=rate,
        )
    )
    (session,) = engine.opened
    assert len(engine.closed) == 1
    return session.calls, rows


def test_opening_idle_prefills_where_the_next_completion_will_be(tmp_path) -> None:
    insertion = {"edit": {"start": 2, "end": 2, "text": "xyz"}}
    path = write_trace(tmp_path, {"idle": {"ms": 9}}, insertion, {"complete": {"offset": 8}})
    calls, rows = fake_run(path)
    assert calls[:3] == [("set_cursor", 5), ("sync",), ("take_counts",)]
    assert calls[3:] == [("edit", ((2, 2, "xyz"),)), ("sync",), ("complete", 8), ("take_counts",)]
    assert rows[-1]["num_rows_forwarded"] == 107
    assert rows[-1]["num_edits"] == 1


def test_opening_idle_prefills_at_the_cursor_if_there_is_one(tmp_path) -> None:
    path = write_trace(
        tmp_path, {"cursor": {"offset": 3}}, {"idle": {"ms": 9}}, {"complete": {"offset": 8}}
    )
    calls, _ = fake_run(path)
    assert calls == [
        ("set_cursor", 3),
        ("sync",),
        ("take_counts",),
        ("complete", 8),
        ("take_counts",),
    ]


def test_first_completion_prefills_when_nothing_did(tmp_path) -> None:
    insertion = {"edit": {"start": 0, "end": 1, "text": ""}}
    path = write_trace(tmp_path, insertion, {"complete": {"offset": 8}})
    calls, rows = fake_run(path)
    assert calls[1:] == [
        ("set_cursor", 8),
        ("sync",),
        ("take_counts",),
        ("complete", 8),
        ("take_counts",),
    ]
    assert rows[0]["edit_ms"] == 0.0
    assert rows[0]["ready_ms"] == rows[0]["ttft_ms"] == 5.0
    assert rows[-1]["num_rows_forwarded"] == 7
    assert rows[-1]["open_ms"] is not None


@pytest.mark.parametrize(("policy", "healed"), [("full", 0), ("prefix", 0), ("turn", 0)])
def test_later_idle_heals_nothing_under_other_policies(tmp_path, policy, healed) -> None:
    path = write_trace(
        tmp_path, {"idle": {"ms": 1}}, {"idle": {"ms": 1000}}, {"complete": {"offset": 8}}
    )
    calls, rows = fake_run(path, policy)
    assert rows[-1]["num_tokens_healed"] == healed
    assert not [call for call in calls if call[0] == "heal"]


def test_later_idle_heals_what_the_simulated_time_allows(tmp_path) -> None:
    path = write_trace(
        tmp_path, {"idle": {"ms": 1}}, {"idle": {"ms": 5.7}}, {"complete": {"offset": 8}}
    )
    calls, rows = fake_run(path, "heal", rate=2.0)
    assert [call for call in calls if call[0] == "heal"] == [("heal", 11), ("heal", 3)]
    assert rows[-1]["num_tokens_healed"] == 11
    assert rows[-1]["num_rows_forwarded"] == 7


def test_long_idle_heals_until_nothing_is_stale(tmp_path) -> None:
    path = write_trace(
        tmp_path, {"idle": {"ms": 1}}, {"idle": {"ms": 1e9}}, {"complete": {"offset": 8}}
    )
    _, rows = fake_run(path, "heal")
    assert rows[-1]["num_tokens_healed"] == 30


def test_healing_rate_is_that_of_the_opening_when_none_is_given(tmp_path) -> None:
    path = write_trace(tmp_path, {"idle": {"ms": 1}}, {"complete": {"offset": 8}})
    _, rows = fake_run(path, "heal", rate=None)
    assert rows[-1]["heal_tokens_per_ms"] == pytest.approx(100 / rows[-1]["open_ms"], rel=0.01)


def test_trace_without_completions_sums_to_nothing(tmp_path) -> None:
    path = write_trace(tmp_path, {"edit": {"start": 0, "end": 0, "text": "x"}}, {"idle": {"ms": 5}})
    calls, rows = fake_run(path)
    assert calls == [("edit", ((0, 0, "x"),))]
    assert [*rows[0]][: len(CONTRACT)] == CONTRACT
    assert rows[0]["num_completions"] == 0
    assert rows[0]["ready_ms_p50"] is None


def test_malformed_trace_is_refused_before_any_work(tmp_path) -> None:
    path = write_trace(tmp_path, {"complete": {"offset": 99}}, text="short")
    engine = FakeEngine()
    with pytest.raises(BadRequest, match="line 2: offset 99"):
        next(
            replay.run(
                path,
                engine=engine,  # type: ignore[arg-type]
                model="m",
                policy="turn",
                oracle=True,
                heal_tokens_per_ms=None,
            )
        )
    assert engine.opened == []


# With a real (tiny, random) model.

STORY = [
    {"idle": {"ms": 1000}},
    {"complete": {"offset": 900, "reference": "return None\n"}},
    {"edit": {"start": 300, "end": 310, "text": "something = else_(1)\n"}},
    {"complete": {"offset": 911}},
    {
        "edits": [
            {"start": 1000, "end": 1000, "text": "é\ud800🙂"},
            {"start": 10, "end": 40, "text": ""},
        ]
    },
    {"idle": {"ms": 5}},
    {"complete": {"offset": 881, "reference": ""}},
    {"edit": {"start": 881, "end": 881, "text": "typed = 1"}},
    {"complete": {"offset": 890}},
    {"cursor": {"offset": 500}},
    {"complete": {"offset": 500}},
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Settings(device="cpu", dtype="float32", chunk_tokens=64).engine_config())


def tiny_run(engine, model, path, policy, layout="spm", oracle=True):
    return list(
        replay.run(
            path,
            engine=engine,
            model=str(model),
            policy=policy,
            oracle=oracle,
            heal_tokens_per_ms=2.0,
            layout=layout,
        )
    )


@pytest.mark.parametrize("layout", ["spm", "psm"])
@pytest.mark.parametrize("policy", ["full", "prefix", "turn", "heal"])
def test_sums_add_up_and_exact_policies_agree(engine, tiny_model, tmp_path, policy, layout) -> None:
    path = write_trace(tmp_path, *STORY)
    *rows, summary = tiny_run(engine, tiny_model, path, policy, layout)
    assert [*summary][: len(CONTRACT)] == CONTRACT
    assert (summary["num_completions"], summary["num_edits"]) == (5, 4)
    names = ("kept", "turned", "repaired", "recomputed")
    for row in rows:
        assert row["num_tokens_wanted"] == sum(row[f"num_tokens_{name}"] for name in names)
        assert row["ready_ms"] == row["edit_ms"] + row["ttft_ms"]
    for name in ("wanted", *names):
        key = f"num_tokens_{name}"
        assert summary[key] == sum(row[key] for row in rows)
    assert rows[0]["num_tokens_kept"] == rows[0]["num_tokens_wanted"]
    assert rows[0]["reference_edit_similarity"] is not None
    assert rows[1]["reference_edit_similarity"] is None
    assert summary["num_tokens_turned"] == 0 or policy in ("turn", "heal")
    assert summary["num_tokens_healed"] == 0 or policy == "heal"
    if policy in ("full", "prefix", "heal"):
        assert summary["same_layout_top1_agreement"] == 1.0
        assert summary["same_layout_kl_mean"] < 1e-6
        if layout == "spm":  # PSM keeps typed text behind the middle: another layout than `full`'s
            assert summary["exact_match_full"] == 1.0
            assert summary["kl_mean"] < 1e-6
    else:
        assert summary["num_tokens_turned"] > 0
        assert 0 < summary["kl_mean"] < 10
    assert not engine.sessions


def test_oracle_leaves_the_measured_cache_alone_when_the_budget_is_short(
    tiny_model, tmp_path
) -> None:
    settings = Settings(device="cpu", dtype="float32", cache_bytes=1_000_000)
    engine = Engine(settings.engine_config())
    insertion = {"edit": {"start": 9, "end": 9, "text": "x"}}
    end = len(TEXT) * 3
    path = write_trace(
        tmp_path,
        *({"complete": {"offset": end}}, insertion, {"complete": {"offset": end + 1}}),
        text=TEXT * 3,
    )
    *_, row, _ = tiny_run(engine, tiny_model, path, "turn")
    assert row["num_tokens_kept"] + row["num_tokens_turned"] > 1000
    assert row["num_tokens_recomputed"] < 10


def test_idle_longer_than_any_count_of_rows_heals_all(engine, tiny_model, tmp_path) -> None:
    insertion = {"edit": {"start": 9, "end": 9, "text": "x"}}
    idle = {"idle": {"ms": 1.7e308}}
    path = write_trace(tmp_path, idle, insertion, idle, {"complete": {"offset": 900}})
    summary = tiny_run(engine, tiny_model, path, "heal")[-1]
    assert summary["num_tokens_healed"] > 100


def test_psm_tail_is_compared_with_both_layouts(engine, tiny_model, tmp_path) -> None:
    typed = {"edit": {"start": 900, "end": 900, "text": "typed = 1"}}
    path = write_trace(tmp_path, *STORY[:2], typed, {"complete": {"offset": 909}})
    *_, row, _ = tiny_run(engine, tiny_model, path, "prefix", "psm")
    assert row["same_layout_kl_mean"] < 1e-6 < row["kl_mean"]


def test_without_oracle_nothing_is_compared(engine, tiny_model, tmp_path) -> None:
    path = write_trace(tmp_path, *STORY)
    *rows, summary = tiny_run(engine, tiny_model, path, "turn", oracle=False)
    assert summary["top1_agreement"] is summary["exact_match_full"] is None
    assert "full_text" not in rows[0]


def test_scoring_changes_nothing_that_is_measured(engine, tiny_model, tmp_path) -> None:
    path = write_trace(tmp_path, *STORY)
    keys = ("text", "num_tokens_kept", "num_tokens_turned", "num_tokens_recomputed")
    with_oracle, without = (
        tiny_run(engine, tiny_model, path, "turn", oracle=oracle) for oracle in (True, False)
    )
    assert [[row[key] for key in keys] for row in with_oracle[:-1]] == [
        [row[key] for key in keys] for row in without[:-1]
    ]
    assert with_oracle[-1]["num_rows_forwarded"] == without[-1]["num_rows_forwarded"]


def test_output_is_json_lines_or_a_table(engine, tiny_model, tmp_path) -> None:
    path = write_trace(tmp_path, *STORY)
    rows = tiny_run(engine, tiny_model, path, "turn")
    out = io.StringIO()
    replay.write(rows, as_json=True, out=out)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == rows
    out = io.StringIO()
    replay.write(rows, as_json=False, out=out)
    assert "ready_ms" in out.getvalue().splitlines()[0]
    assert "num_rows_forwarded" in out.getvalue()
