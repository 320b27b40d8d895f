import dataclasses
import importlib
import json
import random
import sys
from pathlib import Path

import pytest

from keyturn.engine.wire.config import Completion

ROOT = Path(__file__).parent.parent.parent
# The scripts import each other by name, as they do when one of them is run.
sys.path.insert(0, str(ROOT / "benchmarks"))
fim_ask, fim_compare, fim_fetch, fim_held_out, fim_metrics, fim_quality, fim_report, fim_tasks = (
    map(
        importlib.import_module,
        (
            "quality.fim_ask",
            "fim_compare",
            "quality.fim_fetch",
            "quality.fim_held_out",
            "quality.fim_metrics",
            "fim_quality",
            "fim_report",
            "quality.fim_tasks",
        ),
    )
)
sys.path.remove(str(ROOT / "benchmarks"))


def needs_libraries() -> None:
    if missing := fim_metrics.missing():
        pytest.skip(f"needs {', '.join(missing)}")


def task(**fields) -> object:
    given = {"name": "a", "group": "multi-line", "number": 0, "prefix": "", "suffix": ""}
    return fim_tasks.Task(**given | {"middle": ""} | fields)


# Measures


def test_exact_match_leaves_white_space_at_the_end_out() -> None:
    assert fim_metrics.is_exact("a\n", "a")
    assert not fim_metrics.is_exact(" a", "a")


def test_measures_are_full_when_texts_are_equal() -> None:
    needs_libraries()
    found = fim_metrics.scores("return f(a, b)\n", "return f(a, b)")
    assert list(found) == list(fim_metrics.NAMES)
    # METEOR never reaches 1: 1 - 0.5 * (chunks / matches)**3, here one chunk of seven words.
    assert found.pop("meteor") == pytest.approx(100 * (1 - 0.5 / 7**3))
    assert list(found.values()) == pytest.approx([100] * 4)


def test_measures_are_those_worked_out_by_hand() -> None:
    needs_libraries()
    found = fim_metrics.scores("x = a + b", "x = a + c")
    assert found["edit"] == pytest.approx(100 * 8 / 9)
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours.
    assert found["bleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert found["rouge_l"] == pytest.approx(100 * 4 / 5)
    # Precision and recall are both 4/5, in one chunk of four words.
    assert found["meteor"] == pytest.approx(100 * 4 / 5 * (1 - 0.5 * (1 / 4) ** 3))
    assert fim_metrics.corpus_bleu(["x = a + b"], ["x = a + c"]) == pytest.approx(found["bleu"])


def test_case_and_signs_count() -> None:
    needs_libraries()
    assert fim_metrics.scores("Value", "value")["rouge_l"] == 0
    assert fim_metrics.scores("})", "})")["rouge_l"] == 100


@pytest.mark.parametrize("got", ["", "\n"])
def test_measures_are_nothing_without_a_completion(got) -> None:
    needs_libraries()
    assert set(fim_metrics.scores(got, "a = 1").values()) == {0.0}


def test_chrf_counts_characters() -> None:
    needs_libraries()
    # Of "ab" and "ac": one of two characters, no pair; orders 3 to 6 have nothing to count.
    assert fim_metrics.scores("ab", "ac")["chrf"] == pytest.approx(25)


# HumanEval


def row(family: str, solution: str) -> dict[str, str]:
    texts = {"prompt": "def f():\n", "suffix": "    return a\n", "canonical_solution": solution}
    return texts | {"task_id": f"{family}/HumanEval/0/L0", "test": "T", "entry_point": "f"}


@pytest.mark.parametrize(
    ("family", "solution", "group", "prefix", "middle", "suffix"),
    [
        ("SingleLineInfilling", "    a = 1 \n", "single-line", "    ", "a = 1", "\n    return a\n"),
        (
            "MultiLineInfilling",
            "  a = [\n  ]\n",
            "multi-line",
            "  ",
            "a = [\n  ]",
            "\n    return a\n",
        ),
        ("RandomSpanInfillingLight", "    a =", "random-span", "", "    a =", "    return a\n"),
    ],
)
def test_lines_are_asked_as_an_editor_does(
    tmp_path, family, solution, group, prefix, middle, suffix
) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row(family, solution)) + "\n")
    (read,) = fim_tasks.read_human_eval(path)
    assert (read.group, read.middle) == (group, middle)
    assert (read.prefix, read.suffix) == ("def f():\n" + prefix, suffix)
    assert read.program("x").endswith("\nT\ncheck(f)\n")


def test_unknown_set_is_named(tmp_path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row("Other", "a")) + "\n")
    with pytest.raises(SystemExit, match="Other"):
        list(fim_tasks.read_human_eval(path))


def test_sample_is_the_same_for_a_seed_and_in_order() -> None:
    tasks = [task(name=str(number), number=number) for number in range(100)]
    first = fim_tasks.chosen(tasks, sample=20, seed=3)
    assert first == fim_tasks.chosen(tasks, sample=20, seed=3)
    assert first != fim_tasks.chosen(tasks, sample=20, seed=4)
    assert first == sorted(first, key=lambda item: item.number)
    assert len({item.name for item in first}) == 20
    assert fim_tasks.chosen(tasks, sample=200) == tasks


def test_parity_splits_the_tasks() -> None:
    tasks = [task(number=number) for number in range(7)]
    odd, even = (fim_tasks.chosen(tasks, parity=parity) for parity in ("odd", "even"))
    assert [item.number for item in odd] == [1, 3, 5]
    assert [item.number for item in even] == [0, 2, 4, 6]


# Held-out files


def files() -> list[tuple[str, str, str]]:
    rng = random.Random(0)
    python = "".join(
        f"def function_{number}(value, other={number}):\n"
        f'    """Return what is asked for."""\n'
        f"    result = call_{rng.randrange(99)}(value, other)\n"
        f"    if result > {number}:\n        return result + other\n    return None\n\n\n"
        for number in range(90)
    )
    script = "".join(
        f"// Takes é and {number}.\nfunction f{number}(value) {{\n"
        f"  const result = call{rng.randrange(99)}(value, {number})\n"
        f"  if (result) {{\n    log(result)\n  }}\n  return result\n}}\n\n"
        for number in range(90)
    )
    return [("a", "a/one.py", python), ("b", "b/two.js", script), ("c", "c/short.py", "a = 1\n")]


def test_no_hole_is_outside_its_window() -> None:
    pytest.importorskip("tree_sitter_typescript")
    texts = {path: text for _, path, text in files()}

    def num_tokens(text: str) -> int:
        return -(-len(text) // 4)

    tasks = fim_held_out.draw(files(), 60, seed=0, num_tokens=num_tokens)
    assert len(tasks) == len({item.name for item in tasks}) == 60
    for item in tasks:
        start, end = map(int, item.name.rsplit("@", 1)[1].split("-"))
        text = texts[item.path]
        assert text[start:end] == item.middle
        assert text[:start].endswith(item.prefix) and text[end:].startswith(item.suffix)
        assert item.middle.strip() and num_tokens(item.middle) <= fim_held_out.MAX_MIDDLE_TOKENS
        assert item.context_tokens == num_tokens(item.prefix) + num_tokens(item.suffix)
        low, high = fim_held_out.BINS[fim_held_out.length_of(item)]
        assert low <= item.context_tokens <= high
    assert {item.language for item in tasks} == {"py", "js"}
    assert {fim_held_out.length_of(item) for item in tasks} == set(fim_held_out.BINS)
    assert len({item.kind for item in tasks}) >= 7


def test_holes_are_the_same_for_a_seed() -> None:
    pytest.importorskip("tree_sitter_typescript")
    first, again, other = (
        fim_held_out.draw(files(), 20, seed=seed, num_tokens=len) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_reserved_documents_are_drawn_from_too(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    documents = importlib.import_module("training.data.documents")
    program = "".join(
        f"// Total{n} adds up.\nfunc Total{n}(rows []int) int {{\n\tsum := {n}\n"
        f"\tfor _, row := range rows {{\n\t\tsum += row\n\t}}\n\treturn sum\n}}\n\n"
        for n in range(60)
    )
    path = tmp_path / "held_compiled.bin.zst"
    packages = ("reserved:debian:shop", "debian:shop")
    names = ("shop/a.go", "shop/a_test.go", "shop/examples/b.go", "shop/a.tsx")
    files = [documents.Document(p, name, program) for p in packages for name in names]
    documents.write_documents(path, files)
    found = fim_held_out.reserved_files(path)
    assert found == [("reserved:debian:shop", "shop/a.go", program)]
    tasks = fim_held_out.draw(found, 12, seed=0, num_tokens=lambda text: len(text) // 4)
    assert len(tasks) == 12 and {item.language for item in tasks} == {"go"}


# Answers


def test_answer_is_cut_where_the_server_would_stop() -> None:
    def shown(raw: str, text: str, cursor: int) -> str:
        completion = Completion(raw, (), 0, 0, 0.0, 0.0, 1, "end", ())
        return fim_ask.as_shown(completion, text, cursor, ("\n",), "python")

    assert shown("1\n2", "a = ", 4) == "1"
    assert shown("1)", "a = (\n)", 5) == "1"  # the bracket is there


@pytest.mark.parametrize(
    ("prefix", "middle", "suffix", "rules", "truth"),
    [
        ("f(", "a", ")\n", "line", "line"),
        ("def f():\n    ", "a()\n    return b", "\n", "block", "block"),
        ("def f():\n    ", "return b", "\n", "block", "line"),
        ("a = 1\n", "b = 2\nc = 3", "\n", "", "block"),
    ],
)
def test_what_is_wanted_is_said_by_the_servers_rules_or_the_true_middle(
    prefix, middle, suffix, rules, truth
) -> None:
    item = task(prefix=prefix, middle=middle, suffix=suffix, path="a.py")
    found = [fim_ask.wanted_of(item, by) for by in fim_ask.WANTED_BY]
    assert found == [rules, "", truth]
    assert fim_ask.rules_and_truth([item] * 3) == {f"{rules or 'nothing'} of a {truth}": 3}


def test_model_that_cannot_be_told_is_not_measured_by_the_truth(tiny_model) -> None:
    item = task(prefix="f(", middle="a", suffix=")\n", path="a.py")
    with pytest.raises(SystemExit, match="wanted_ids"):
        fim_ask.ask_engine([item], str(tiny_model), None, wanted_by="truth")
    by_rules, by_none = (
        fim_ask.ask_engine([item], str(tiny_model), None, wanted_by=by)[0]
        for by in ("rules", "none")
    )
    assert dataclasses.replace(by_rules, ms=0) == dataclasses.replace(by_none, ms=0)


def answers() -> list[tuple[object, object]]:
    answer = fim_ask.Answer("b", "b", 1.0, nll=2.0, num_tokens=4, end_right=True, early_end=False)
    wrong = dataclasses.replace(answer, text="", nll=4.0, num_tokens=2, end_right=False)
    return [(task(name="1", middle="b"), answer), (task(name="2", middle="b"), wrong)]


def test_figures_are_shares_and_loss_per_token() -> None:
    found = fim_quality.figures(answers(), {"1": True, "2": False})
    assert found["exact_percent"] == found["pass_percent"] == found["end_right_percent"] == 50
    assert found["standard_error"] == pytest.approx(100 * (0.25 / 2) ** 0.5)
    assert found["exact_raw_percent"] == 100
    assert found["loss"] == 1.0
    assert (found["early_end_percent"], found["num_empty"]) == (0, 1)


def test_odd_lines_stand_apart() -> None:
    part = [(task(number=number, group="single-line"), None) for number in range(5)]
    assert [(label, len(some)) for label, some in fim_quality.groups(part)] == [
        ("engine alone", 5),
        ("single-line odd", 2),
    ]


# Pairs


def test_sign_test_counts_only_what_differs() -> None:
    pairs = [(True, False)] * 9 + [(False, True)] * 4 + [(True, True)] * 50
    assert fim_compare.sign_test(pairs) == (9, 4, pytest.approx(5 / 13**0.5))
    assert fim_compare.sign_test([(True, True)]) == (0, 0, None)


def test_mean_z_is_the_mean_over_its_standard_error() -> None:
    assert fim_compare.mean_z([1.0, 2.0, 3.0]) == pytest.approx(2 * 3**0.5)
    assert fim_compare.mean_z([1.0, 1.0]) is None
    assert fim_compare.mean_z([1.0]) is None


def test_answers_of_two_models_are_paired_by_name(tmp_path) -> None:
    part = answers()
    fim_quality.write_answers(tmp_path / "one", part, {})
    # The other model has the second right, and was asked for no first.
    right = dataclasses.replace(part[1][1], text="b", nll=1.0)
    fim_quality.write_answers(tmp_path / "two", [(part[1][0], right)], {})
    pairs, num_alone = fim_compare.paired(tmp_path / "one", tmp_path / "two")
    lines = {line[1]: line[2:] for line in fim_compare.compared(pairs)}
    assert num_alone == 1
    assert lines["exact"] == [1, 0.0, 100.0, 0, 1, 0, -1.0]
    assert lines["loss"] == [1, 2.0, 0.5, 0, 1, 0, None]
    assert "passed" not in lines


# The wider held-out set


def test_packages_are_found_under_the_names_that_their_clients_give(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fim_fetch.subprocess, "run", lambda *_, **__: pytest.fail("is there"))
    (tmp_path / "packages").mkdir()
    names = {
        "@11ty/eleventy@3.1.8": "11ty-eleventy-3.1.8.tgz",
        "reveal.js@6.0.2": "reveal.js-6.0.2.tgz",
        "can_isotp==2.0.7": "can_isotp-2.0.7-py3-none-any.whl",
    }
    for name in names.values():
        (tmp_path / "packages" / name).touch()
    found = {each: fim_fetch.fetched(each, tmp_path).name for each in names}
    assert found == names and set(names) <= set(fim_fetch.wider_packages())


def test_parts_are_all_tasks_once() -> None:
    tasks = list(range(23))
    parts = [fim_quality.harness.part_of(f"{i}/4") for i in range(1, 5)]
    assert sorted(t for i, n in parts for t in tasks[i - 1 :: n]) == tasks
    with pytest.raises(fim_quality.argparse.ArgumentTypeError, match="no part"):
        fim_quality.harness.part_of("5/4")


def answered(package, exact, joint=0.5, **fields) -> dict:
    given = {"name": f"held-out/{package}/a.py@{len(fields)}-{id(fields)}", "set": "held-out"}
    given |= {"kind": "line", "language": "py", "context_tokens": 700, "exact": exact}
    given |= {"exact_raw": exact, "end_right": True, "early_end": False, "nll": 2.0, "tokens": 2}
    return given | {"joint": joint, "confidence": [0.9, 0.6], "is_right": [1, 0]} | fields


def test_errors_are_by_package_and_parts_are_joined(tmp_path, monkeypatch, capsys) -> None:
    alike = [answered("@a/b", True) for _ in range(20)] + [answered("c", False) for _ in range(20)]
    apart = [answered(f"p{i}", i % 2 == 0) for i in range(40)]
    assert fim_report.package_of(alike[0]) == "@a/b"
    few, many = (fim_report.shares(rows) for rows in (alike, apart))
    assert few["exact"] == many["exact"] == 50 and few["exact_se"] > 3 * many["exact_se"]
    for number, part in enumerate((apart[:30], apart[20:])):  # ten of them twice
        lines = "".join(json.dumps(one) + "\n" for one in part)
        (tmp_path / f"{number}").write_text(lines)
    monkeypatch.setattr(sys, "argv", ["fim_report", str(tmp_path / "0"), str(tmp_path / "1")])
    fim_report.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["shares"]["held-out 500 to 999"]["n"] == 40
    assert last["calibration"]["answers"]["ece"] == pytest.approx(0)
    assert last["calibration"]["tokens"]["bins"] == [[40, 0.6, 0.0], [40, 0.9, 1.0]]
