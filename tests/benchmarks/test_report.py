"""The report of the saved runs."""

import importlib
import re
import sys
from pathlib import Path

# The scripts import each other by name, as they do when one of them is run.
BENCHMARKS = str(Path(__file__).parent.parent.parent / "benchmarks")
sys.path.insert(0, BENCHMARKS)
report = importlib.import_module("report")
sys.path.remove(BENCHMARKS)


def test_report_has_every_section_with_its_plot(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "report")])
    report.main()
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    plots = re.findall(r"\]\((.+?)\)", text)
    assert len(plots) == text.count("\n## ") >= 5
    assert all((tmp_path / "report" / plot).stat().st_size > 1000 for plot in plots)
    assert "| elsewhere | ours |" in text
