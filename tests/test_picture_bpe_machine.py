"""The BPE machine and the plain byte-pair encoding under it: the same merges as the library's own training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import annotation_browser as real
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2lab.engine.errors import LabError
from llama2lab.lessons.n01_tokenizer.bpe import learn, merge, most_frequent_pair, pair_counts, ranking
from llama2lab.lessons.n01_tokenizer.bpe_machine import LONGEST, BpeMachine, film, tokens, town_text
from llama2lab.model.tokenizer import SMALLEST, encode_text, train_tokenizer
from llama2lab.town.corpus import pretraining_corpus
from llama2lab.town.town import load_town

TEXTS = {
    "plain": "Where does Mira live? Mira lives on Forest Road. Mira's cat lives there too.",
    "all pairs tie": "the quick brown fox jumps over a lazy dog",
    "ties of old and new tokens": "abab baba abba baab cdcd dcdc abcd dcba",
    "runs of one letter": "aaaaaaa aaaa aaa aa a bbbb bbb",
    "digits": "In 2026 Mira is 45, and 45 plus 45 is 90.",
    "other scripts": "Zoë's naïve café in 東京 🙂 東京 🙂🙂 café",
    "blanks": "a\n\n  b\n\n  b\t\tc   \u00a0\u202e end \x00",
    "control tokens as text": "<s> <s> <s> [INST] [INST] <<SYS>> </s></s> <s><s>",
    "markup": "<img src=x onerror=alert(1)> &amp; <b>bold</b>",
    "nothing": "",
    "one byte": "a",
}


def learnt(tokenizer: Any) -> list[tuple[str, str]]:
    """The merges of the library's own training."""
    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def check_against_library(text: str) -> None:
    tokenizer = train_tokenizer([text], 10_000)  # more than the text can fill
    vocabulary, data = tokenizer.get_vocab(), film(text)
    *merged, last = data["steps"]
    assert [(*step["pairs"][0][:2], step["token"]) for step in merged] == [
        (vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in learnt(tokenizer)
    ]
    assert (last["pairs"], last["kinds"], last["vocabulary"]) == ([], 0, len(tokenizer))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_the_machine_merges_what_the_library_learns(text: str) -> None:
    check_against_library(text)


@given(st.text(st.sampled_from("ab c<s>é1🙂\n"), max_size=60))
def test_the_machine_merges_what_the_library_learns_of_any_text(text: str) -> None:
    check_against_library(text)


@pytest.mark.parametrize("seed", range(3))
def test_the_machine_merges_what_the_library_learns_of_the_town(seed: int) -> None:
    check_against_library(" ".join(pretraining_corpus(load_town(), 100, seed))[:LONGEST])


@pytest.mark.parametrize("merges", (0, 1, 7, 20, 1000))
@pytest.mark.parametrize("name", ("plain", "runs of one letter", "other scripts", "blanks"))
def test_the_symbols_are_the_librarys_tokens(name: str, merges: int) -> None:
    data = film(TEXTS[name])
    step = min(merges, len(data["steps"]) - 1)
    found = tokens(data, step)
    assert [piece.id for piece in found] == encode_text(train_tokenizer([TEXTS[name]], SMALLEST + step), TEXTS[name])
    assert b"".join(piece.data for piece in found).decode() == TEXTS[name]
    assert data["steps"][step]["symbols"] == len(found)


# ---- the plain functions -------------------------------------------------------------------------------------------


def test_pairs_are_counted_within_words_and_where_they_overlap() -> None:
    assert pair_counts([list("aaa"), list("ab"), list("b")]) == {("a", "a"): 2, ("a", "b"): 1}
    assert pair_counts([]) == {}


def test_of_equals_the_older_tokens_win() -> None:
    words = [list("ba"), list("ab"), ["ab", "a"]]
    assert most_frequent_pair(words) == ("a", "b")
    assert most_frequent_pair(words, {"b": 0, "a": 1, "ab": 2}) == ("b", "a")
    assert [pair for pair, _ in ranking(words, {"ab": 0, "b": 1, "a": 2})] == [("ab", "a"), ("b", "a"), ("a", "b")]
    assert most_frequent_pair([["a"], []]) is None


def test_a_pair_is_merged_from_left_to_right() -> None:
    assert merge([list("aaaab"), list("a"), []], ("a", "a")) == [["aa", "aa", "b"], ["a"], []]
    assert merge([["a", "a", "a"]], ("a", "a")) == [["aa", "a"]]
    assert merge([["ab", "c"], ["a", "bc"]], ("ab", "c")) == [["abc"], ["a", "bc"]]
    words = [["a", "b"]]
    assert merge(words, ("a", "b")) == [["ab"]] and words == [["a", "b"]]


def test_a_merge_that_spells_a_control_token_adds_none() -> None:
    ids = {"<s>": 0, "<": 1, "s": 2, ">": 3}
    assert [pair for pair, _ in learn([["<", "s", ">"]], ids)] == [("<", "s"), ("<s", ">")]
    assert ids == {"<s>": 0, "<": 1, "s": 2, ">": 3, "<s": 4}


# ---- the picture -------------------------------------------------------------------------------------------------


def test_a_step_counts_what_it_shows() -> None:
    data = film("aaa ab")
    first = data["steps"][0]
    assert [(data["names"][str(a)] + data["names"][str(b)], n) for a, b, n in first["pairs"]] == [
        ("aa", 2),
        ("ab", 1),
        ("·a", 1),
    ]
    assert (first["kinds"], first["tied"], first["symbols"], first["vocabulary"]) == (3, 1, 6, SMALLEST)
    assert [s["symbols"] for s in data["steps"]] == [6, 5, 4, 3, 2]
    assert json.loads(json.dumps(data)) == data


def test_a_character_reads_as_bytes_until_it_is_whole() -> None:
    assert [unit[1:4] for word in film("é")["words"] for unit in word] == [[0xC3, "C3", "é"], [0xA9, "A9", ""]]
    assert [unit[3] for word in film("\u202e")["words"] for unit in word] == ["E2", "80", "AE"]  # is never seen


def test_the_first_text_is_the_longest_document_of_at_most_400_characters() -> None:
    corpus, text = pretraining_corpus(load_town(), 2000, 0), town_text(load_town())
    assert text in corpus and not any(len(text) < len(other) <= 400 for other in corpus)


def test_a_visitors_text_starts_the_machine_again() -> None:
    machine = BpeMachine("abab")
    machine.text = "cdcd"
    assert machine.data == film("cdcd")
    machine.text = "\ud800"
    assert machine.data["text"] == "cdcd" and "surrogate" in machine.data["problem"]
    machine.text = "abab"
    assert machine.data == film("abab")


@pytest.mark.parametrize("text", ("x" * (LONGEST + 1), "\ud800"))
def test_a_text_that_is_too_long_or_none_is_refused(text: str) -> None:
    with pytest.raises(LabError):
        BpeMachine(text)


def test_the_picture_at_rest_escapes_what_it_shows() -> None:
    page = BpeMachine(TEXTS["markup"] + " <<<< >>>> && <<<< >>>> &&").static()
    assert "&lt;&lt;" in page and "&amp;&amp;" in page
    assert "<<" not in page and "&&" not in page and "<|" not in page and "<img" not in page
    assert re.findall(r"After (\d+) merges, (\d+) symbols", BpeMachine("abab").static()) == [("0", "4"), ("2", "1")]
    assert BpeMachine("").static()


# ---- in a browser ------------------------------------------------------------------------------------------------

PAGE = """<!doctype html><meta charset="utf-8"><style>CSS</style><body data-jp-theme-light="true"><div id="el"></div>
<script type="application/json" id="state">STATE</script><script type="module">
SCRIPT
const state = JSON.parse(document.getElementById("state").textContent), heard = [];
const model = { get: (name) => state[name], set: (name, value) => { state[name] = value; }, off() {},
  on: (_, listen) => heard.push(listen), save_changes() { window.sent = state.text; } };
window.give = (data) => { state.data = data; heard.forEach((listen) => listen()); };
document.body.addEventListener("keydown", (event) => { window.leaked = event.key; });
shown.render({ model, el: document.getElementById("el") });
</script>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    real.skip_without_browser()
    with real.chromium() as running:
        yield running


def open_machine(page: Any, machine: BpeMachine) -> None:
    state = json.dumps({"data": machine.data, "text": machine.text}).replace("<", "\\u003c")
    parts = {"CSS": machine._css, "SCRIPT": machine._esm.replace("export default", "const shown ="), "STATE": state}
    page.set_content(re.sub("|".join(parts), lambda found: parts[found[0]], PAGE))
    page.locator(".bpe-unit").first.wait_for()


def read(page: Any) -> list[str]:
    """The tokens as the page shows them."""
    return page.evaluate("""() => {
        const found = [];
        for (const unit of document.querySelectorAll('.bpe-unit')) {
            if (unit.classList.contains('first')) found.push('');
            found[found.length - 1] += unit.textContent;
        }
        return found;
    }""")


def expected(data: dict[str, Any], step: int) -> list[str]:
    return [piece.shown.replace(" ", "") for piece in tokens(data, step)]


@pytest.mark.browser
def test_the_machine_is_driven_by_keys_alone(browser: Any) -> None:
    machine = BpeMachine("Zoë lives there, Zoë lives here: <b>café</b> café 45 aaaa <img src=x>")
    data, last = machine.data, len(machine.data["steps"]) - 1
    with real.page_of(browser, reduced_motion="reduce") as page:
        open_machine(page, machine)
        said = page.locator(".bpe-said")

        def press(name: str, key: str = "Enter") -> None:
            page.get_by_role("button", name=name, exact=True).focus()
            page.keyboard.press(key)

        def stands(step: int) -> None:
            assert read(page) == expected(data, step)
            assert page.locator(".bpe-merge").count() == step
            now = data["steps"][step]
            figures = page.locator(".bpe-figures b").all_inner_texts()
            assert figures == [str(now["symbols"]), str(now["vocabulary"]), f"{data['bytes'] / now['symbols']:.2f}"]
            counts = page.locator(".bpe-pair").evaluate_all("all => all.map(e => [e.place, e.textContent])")
            assert len(counts) == len(now["pairs"])
            for place, words in counts:
                left, right, times = now["pairs"][place]
                assert words.startswith(f"{data['names'][str(left)]} + {data['names'][str(right)]}{times}×")

        stands(0)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Step"
        press("Step")
        stands(1)
        press("Step", "ArrowRight")
        stands(2)
        press("Ten steps", "Space")
        stands(12)
        press("Undo")
        stands(11)
        page.keyboard.press("End")
        stands(last)
        assert "no pair left" in said.inner_text()
        press("Step")  # nothing more, and the focus stays
        assert page.evaluate("document.activeElement.textContent") == "Step"
        press("Start again")
        stands(0)
        page.locator("input[type=range]").focus()
        page.keyboard.press("ArrowRight")
        stands(1)
        press("play")
        real.until(lambda: page.locator(".bpe-merge").count() >= 3, "it plays")
        press("pause")
        halted = page.locator(".bpe-merge").count()
        stands(halted)

        page.locator(".bpe-text").focus()
        page.keyboard.press("ArrowRight")
        first = tokens(data, halted)[0]
        how_many = "byte" if len(first.data) == 1 else f"{len(first.data)} bytes"
        assert said.inner_text().startswith(f"{first.shown}: id {first.id}, {how_many} {first.data.hex(' ').upper()}")
        page.locator(".bpe-pairs").focus()
        page.keyboard.press("ArrowDown")
        left, right, count = data["steps"][halted]["pairs"][0]
        names = data["names"]
        assert said.inner_text().startswith(f"{names[str(left)]} + {names[str(right)]}: {count} times, place 1")
        assert page.locator(".bpe-unit.picked").count()
        assert page.evaluate("window.leaked") == "Tab"  # the only key that leaves the picture
        assert page.errors == [] and page.locator(".bpe-text img, .bpe-text b").count() == 0


@pytest.mark.browser
def test_a_text_of_ones_own(browser: Any) -> None:
    machine = BpeMachine("abab")
    with real.page_of(browser, reduced_motion="reduce") as page:
        open_machine(page, machine)
        page.locator("summary").focus()
        page.keyboard.press("Enter")
        page.locator("textarea").focus()
        page.keyboard.press("Control+a")
        page.keyboard.type("cdcd <i>")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("window.sent") == "cdcd <i>"
        machine.text = "cdcd <i>"
        page.evaluate("data => window.give(data)", machine.data)
        assert read(page) == expected(machine.data, 0)
        assert page.evaluate("document.activeElement.textContent") == "Step"
        assert page.errors == []


@pytest.mark.browser
def test_it_begins_by_itself_once_and_rests_after_ten_merges(browser: Any) -> None:
    machine = BpeMachine(TEXTS["plain"])
    with real.page_of(browser) as page:
        open_machine(page, machine)
        real.until(lambda: page.locator(".bpe-merge").count() == 10, "ten merges play")
        real.until(lambda: page.get_by_role("button", name="play", exact=True).count() == 1, "it rests")
        page.evaluate("data => window.give(data)", machine.data)
        page.wait_for_timeout(1500)
        assert page.locator(".bpe-merge").count() == 0
        assert page.errors == []
