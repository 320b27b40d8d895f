"""What requests ask, field by field, and what the forms of the answers are."""

import math
from dataclasses import replace

import pytest

from keyturn.engine.wire.config import Completion
from keyturn.engine.wire.errors import BadRequest
from keyturn.server.http.dialect import Piece
from keyturn.server.http.fields import MOST_TOKENS, object_of
from keyturn.server.http.llama_api import Infill
from keyturn.server.http.openai_api import OpenAI
from keyturn.server.settings import COMMAND_LINE

PLACE = {"input_prefix": "a\n", "input_suffix": "\nc", "prompt": "b"}
GIVEN = Completion(" = 1\n", (7, 8, 9), 100, 90, 20.0, 50.0, 2, "end", (0.5, 0.5, 1.0))


def openai(**fields):
    return OpenAI().asked({"prompt": "ab", **fields}, COMMAND_LINE)


def infill(**fields):
    return Infill().asked({**PLACE, **fields}, COMMAND_LINE)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"garbage", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", r"\[\], not a JSON object"),
        (b"3", "3, not a JSON object"),
    ],
)
def test_body_that_is_no_object(body, message) -> None:
    with pytest.raises(BadRequest, match=message):
        object_of(body)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": None}, "prompt is null"),
        ({"prompt": 3}, "prompt is 3"),
        ({"prompt": [1, 2]}, "prompt is a list"),
        ({"prompt": ["a", "b"]}, "prompt is a list"),
        ({"suffix": 3}, "suffix is 3"),
        ({"n": 2}, "n is 2: one completion"),
        ({"n": "1"}, 'n is "1"'),
        ({"best_of": 3}, "best_of is 3"),
        ({"echo": True}, "echo is true"),
        ({"echo": "no"}, 'echo is "no"'),
        ({"logprobs": 6}, "logprobs is 6: it must be a number from 0 to 5"),
        ({"logprobs": True}, "logprobs is true"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5: it must be a whole number"),
        ({"max_tokens": math.inf}, "max_tokens is Infinity"),
        ({"temperature": math.nan}, "temperature is NaN"),
        ({"temperature": 11}, "temperature is 11: it must be a number up to 10"),
        ({"top_p": 2}, "top_p is 2"),
        ({"seed": 2**64}, "seed is"),
        ({"stop": [1]}, r"stop is \[1\]"),
        ({"stop": ["a"] * 33}, "stop has 33 strings"),
        ({"stop": "a" * 1001}, "stop has 1 strings of up to 1001 characters"),
        ({"stream": 1}, "stream is 1"),
    ],
)
def test_openai_field_that_is_not_usable_is_named(fields, message) -> None:
    with pytest.raises(BadRequest, match=message):
        openai(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_prefix": 1}, "input_prefix is 1"),
        ({"input_suffix": None}, "input_suffix is null"),
        ({"prompt": ["a"]}, "prompt is"),
        ({"n_predict": "8"}, 'n_predict is "8"'),
        ({"t_max_predict_ms": []}, "t_max_predict_ms is"),
        ({"input_extra": "text"}, "input_extra must be a list"),
        ({"input_extra": [{"filename": "a.py"}]}, "input_extra must be a list"),
        ({"response_fields": {}}, "response_fields is"),
    ],
)
def test_infill_field_that_is_not_usable_is_named(fields, message) -> None:
    with pytest.raises(BadRequest, match=message):
        infill(**fields)


@pytest.mark.parametrize("missing", ["input_prefix", "input_suffix"])
def test_infill_needs_both_sides(missing) -> None:
    with pytest.raises(BadRequest, match=f"{missing} is missing"):
        Infill().asked({name: PLACE[name] for name in PLACE if name != missing}, COMMAND_LINE)


def test_openai_document_is_prompt_and_suffix() -> None:
    for fields in ({"suffix": "c"}, {"prompt": ["ab"], "suffix": "c"}):
        assert (openai(**fields).text, openai(**fields).offset) == ("abc", 2)
    assert (openai().text, openai(suffix=None).offset) == ("ab", 2)
    marked = openai(prompt="<fim_prefix>ab<fim_suffix>c<fim_middle>")
    assert (marked.text, marked.offset) == ("abc", 2)
    # Marks are a part of the text where there is a suffix beside them.
    kept = openai(prompt="<fim_prefix>ab<fim_suffix>c<fim_middle>", suffix="d")
    assert kept.offset == len(kept.text) - 1


def test_prompt_of_infill_stands_between_prefix_and_cursor() -> None:
    assert (infill().text, infill().offset) == ("a\nb\nc", 3)


def test_what_is_left_out_is_as_in_the_settings() -> None:
    expected = COMMAND_LINE.completion_params()
    assert openai().params == infill().params == expected
    nulls = dict.fromkeys(("temperature", "top_p", "seed", "stop", "n", "logprobs", "max_tokens"))
    assert openai(**nulls).params == expected


def test_what_is_said_is_used() -> None:
    said = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["\n", ""]}
    expected = replace(
        COMMAND_LINE.completion_params(("\n",)), temperature=0.5, top_p=0.9, seed=3, max_tokens=9
    )
    assert openai(**said, max_tokens=9).params == expected
    asked = infill(**said, n_predict=9, t_max_predict_ms=250)
    assert asked.params == replace(expected, time_budget_ms=250.0)


def test_llama_numbers_with_a_meaning_of_their_own() -> None:
    assert infill(n_predict=-1).params.max_tokens == MOST_TOKENS
    assert openai(max_tokens=10**6).params.max_tokens == MOST_TOKENS
    assert infill(n_predict=0).params is None
    assert infill(t_max_predict_ms=-1).params.time_budget_ms == 0
    assert infill(seed=-1).params.seed == COMMAND_LINE.seed
    for greedy in ({"temperature": -1}, {"temperature": 0.8, "top_k": 1}, {"top_p": 0}):
        assert (infill(**greedy).params.temperature, infill(**greedy).params.top_p) == (0.0, 1.0)


def test_other_files_texts_are_left_out_with_a_line_in_the_log(caplog) -> None:
    dialect, extra = Infill(), [{"filename": "a.py", "text": "x = 1"}]
    for _ in range(2):
        asked = dialect.asked({**PLACE, "input_extra": extra}, COMMAND_LINE)
        assert asked.text == "a\nb\nc"
    assert [record.levelname for record in caplog.records if "input_extra" in record.message] == [
        "WARNING"
    ]


def test_openai_answer() -> None:
    asked = openai(logprobs=1)
    answer = OpenAI().whole(asked, "m", GIVEN, [Piece(" =", 0.5), Piece(" 1\n", 1.0)])
    assert answer["object"] == "text_completion" and answer["model"] == "m"
    (choice,) = answer["choices"]
    assert (choice["text"], choice["index"], choice["finish_reason"]) == (" = 1\n", 0, "stop")
    assert choice["logprobs"] == {
        "tokens": [" =", " 1\n"],
        "token_logprobs": [math.log(0.5), 0.0],
        "top_logprobs": [{" =": math.log(0.5)}, {" 1\n": 0.0}],
        "text_offset": [2, 4],
    }
    assert answer["usage"] == {
        "prompt_tokens": 100,
        "completion_tokens": 3,
        "total_tokens": 103,
        "prompt_tokens_details": {"cached_tokens": 90},
    }
    assert OpenAI().whole(openai(), "m", GIVEN, [])["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("reason", "openai_says", "llama_says"),
    [
        ("end", "stop", "eos"),
        ("stop", "stop", "word"),
        ("length", "length", "limit"),
        ("time", "length", "limit"),
        ("low_confidence", "length", "limit"),
    ],
)
def test_why_a_completion_ended(reason, openai_says, llama_says) -> None:
    given = replace(GIVEN, stop_reason=reason)
    whole = OpenAI().whole(openai(), "m", given, [])
    assert whole["choices"][0]["finish_reason"] == openai_says
    answer = Infill().whole(infill(stop=["\n"]), "m", given, [])
    assert answer["stop_type"] == llama_says
    assert answer["stopping_word"] == ("\n" if reason == "stop" else "")


def test_infill_answer() -> None:
    answer = Infill().whole(infill(return_tokens=True), "m", GIVEN, [])
    assert (answer["content"], answer["tokens"], answer["stop"]) == (" = 1\n", [7, 8, 9], True)
    assert (answer["truncated"], answer["has_new_line"]) == (False, True)
    assert (answer["tokens_evaluated"], answer["tokens_predicted"]) == (100, 3)
    assert answer["tokens_cached"] == 103
    assert answer["timings"] == {
        "cache_n": 90,
        "prompt_n": 10,
        "prompt_ms": 20.0,
        "prompt_per_token_ms": 2.0,
        "prompt_per_second": 500.0,
        "predicted_n": 3,
        "predicted_ms": 30.0,
        "predicted_per_token_ms": 10.0,
        "predicted_per_second": 100.0,
    }


def test_infill_answers_with_the_fields_that_were_asked_for() -> None:
    fields = ["content", "timings/prompt_n", "truncated", "nothing", "timings/nothing", "content/x"]
    answer = Infill().whole(infill(response_fields=fields), "m", GIVEN, [])
    assert answer == {"content": " = 1\n", "timings/prompt_n": 10, "truncated": False}
    assert Infill().whole(infill(response_fields=[""]), "m", GIVEN, []) == {}
