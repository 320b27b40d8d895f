"""The README's settings and figures are those of the code and of the newest saved runs."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_generated_parts_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec and spec.loader
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    text = readme.README.read_text(encoding="utf-8")
    for name in ("headline", "settings", "figures"):
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1
    assert text == readme.written(text), "run benchmarks/readme.py"


def test_map_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    layout = readme[readme.index("## Layout") : readme.index("## Limits")]
    for layer in ("server", "engine", "kernels"):
        for path in sorted((ROOT / layer).glob("[!_]*.py")):
            assert f"{path.name}" in layout.split(), f"{layer}/{path.name} has no place in the map"
