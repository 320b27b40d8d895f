from dataclasses import fields

import pytest

from keyturn.engine.wire.errors import BadRequest
from keyturn.server.settings import Settings, from_options, with_values


def test_every_default_passes_its_own_check() -> None:
    for item in fields(Settings):
        assert item.metadata["check"].test(item.default), item.name


def test_nothing_changes_when_the_editor_sends_nothing() -> None:
    for options in (None, {}, {"keyturn": None}, {"keyturn": {}}):
        assert from_options(options) == (Settings(), [])


def test_section_and_bare_options_mean_the_same() -> None:
    bare = from_options({"debounce_ms": 10, "layout": "psm"})
    assert bare == from_options({"keyturn": {"debounce_ms": 10, "layout": "psm"}})
    assert bare[0].debounce_ms == 10
    assert bare[0].layout == "psm"
    assert bare[1] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", "64"),
        ("max_tokens", 1.5),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("layout", "SPM"),
        ("layout", ["spm"]),
        ("model", ""),
        ("enabled", 1),
        ("languages", "python"),
        ("languages", [1]),
        ("languages", [""]),
        ("debounce_ms", None),
    ],
)
def test_warning_names_key_value_accepted_and_default_when_value_is_bad(key, value) -> None:
    settings, warnings = from_options({key: value, "seed": 7})
    assert getattr(settings, key) == getattr(Settings(), key)
    assert settings.seed == 7
    (warning,) = warnings
    assert key in warning
    check = next(item for item in fields(Settings) if item.name == key).metadata["check"]
    assert check.accepts in warning
    assert "is used" in warning


def test_unknown_key_is_reported_with_the_nearest_known_one() -> None:
    settings, warnings = from_options({"debounceMs": 10})
    assert settings == Settings()
    assert "debounceMs" in warnings[0]
    assert "did you mean debounce_ms?" in warnings[0]


@pytest.mark.parametrize("options", [[], "fast", 3, {"keyturn": [1]}])
def test_garbage_options_are_reported_and_ignored(options) -> None:
    settings, warnings = from_options(options)
    assert settings == Settings()
    assert len(warnings) == 1


def test_later_options_lie_over_a_base() -> None:
    base, _ = from_options({"seed": 3, "max_tokens": 8})
    settings, warnings = from_options({"max_tokens": -5}, base)
    assert settings.seed == 3
    assert settings.max_tokens == 8
    assert "8 is used" in warnings[0]


def test_engine_and_completion_values_come_from_the_settings() -> None:
    settings = with_values(Settings(), device="cpu", max_tokens=5, seed=None)
    assert settings.engine_config().device == "cpu"
    assert settings.engine_config().cache_bytes == 1_000_000_000
    params = settings.completion_params(("\n",))
    assert (params.max_tokens, params.stop, params.seed) == (5, ("\n",), 0)


def test_with_values_raises_one_clear_line_when_value_is_bad() -> None:
    with pytest.raises(BadRequest, match="--top-p 2: must be a number above 0, up to 1"):
        with_values(Settings(), top_p=2)


def test_depth_is_a_word_or_a_number_of_layers() -> None:
    for value in ("full", "exact", "fast", 14, "14"):
        settings, warnings = from_options({"depth": value})
        assert (settings.completion_params().depth, warnings) == (str(value), [])
    for value in ("half", 0, -1, 2.5, True, None, "٣", "9" * 400):
        settings, warnings = from_options({"depth": value})
        assert settings.depth == "exact"
        assert "depth" in warnings[0]
