"""JSON and values from outside: what is wrong is a LabError that names the place, never another exception."""

import json
from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from llama2lab.engine.errors import LabError
from llama2lab.engine.validation import parse_json, shown, validated


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"a": NaN}', "NaN is no JSON"),
        ("[Infinity]", "Infinity is no JSON"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('"\\ud83d"', "half a character"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "thousands of digits"),
        ('{"a": 1e999}', "1e999 is too large"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ("{", "broken JSON"),
        (b"\xff", "not UTF-8"),
        ('{\n"a"\n}', "line 3"),
    ],
)
def test_what_is_no_json_is_named(text, says):
    with pytest.raises(LabError, match=r"f\.json: .*; mend") as e:
        parse_json(text, "f.json", "mend it")
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_byte_order_mark_and_whole_surrogate_pairs_are_json():
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', "f") == {"a": "\U0001f600"}


def test_what_is_deep_but_not_too_deep_is_json():
    assert json.dumps(parse_json("[" * 100 + "1" + "]" * 100, "f"))
    assert len(parse_json("[" + "[1]," * 500 + "[1]]", "f")) == 501


@given(st.one_of(st.binary(), st.text(), st.from_regex(r'[\[{"0-9:,}\] eNa-]*')))
def test_only_lab_errors_come_out(text):
    try:
        found = parse_json(text, "f")
    except LabError:
        return
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Inner:
    steps: Annotated[int, Field(ge=1)] = 3


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()


def test_a_value_that_does_not_fit_is_named_by_its_path():
    assert validated(Outer, {"inner": {"steps": 2}}, "x.yaml") == Outer(Inner(2))
    with pytest.raises(LabError, match=r"x\.yaml: inner\.steps: input should be greater than or equal to 1, not 0; "):
        validated(Outer, {"inner": {"steps": 0}}, "x.yaml")


def test_whatever_a_value_holds_it_is_shown_on_one_short_line():
    for value in ("a\nb", 10**6000, "x" * 1000, "\ud83d", [[]]):
        assert len(shown(value)) <= 60 and shown(value).isprintable()
