"""The town: true everywhere, split by content, and kind to those who edit it."""

import json
import os
import random
import re
import shutil
from collections import Counter
from itertools import pairwise

import pytest

from llama2lab.engine.errors import LabError
from llama2lab.engine.paths import DATA
from llama2lab.town.corpus import fact_probes, heldout_documents, pretraining_corpus
from llama2lab.town.demonstrations import AnswerStyle, answer_for, demonstrations, obey, truth_pairs
from llama2lab.town.items import SKILLS, SPLITS
from llama2lab.town.prompts import contents, dialogue_prompts, every_prompt, instructions_of, make_prompts
from llama2lab.town.town import load_town, slug
from llama2lab.town.truth import key_of, place_statements, truth_of

WORDS = 300_000
SAID_BESIDES = {"friend": ("{name}'s friend is {value}.",)}  # by questions of two steps


@pytest.fixture(scope="module")
def town():
    return load_town()


@pytest.fixture(scope="module")
def corpus(town):
    return pretraining_corpus(town, WORDS, seed=0)


@pytest.fixture(scope="module")
def large(town):
    return pretraining_corpus(town, 3 * WORDS, seed=1)


def holds(phrase: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.I) is not None


# --- counts and splits ------------------------------------------------------------------------------------------


def test_counts_that_the_course_relies_on(town):
    assert len(town.people) * len(town.attributes) == 320
    helpful = {s: every_prompt(town, s, SKILLS) for s in SPLITS}
    assert len(helpful["train"]) >= 1500 and len(helpful["test"]) >= 400 and len(helpful["dev"]) >= 100
    for kind in ("unsafe", "borderline"):
        assert len(every_prompt(town, "train", (kind,))) >= 200
        assert len(every_prompt(town, "test", (kind,))) >= 60
    for skill in SKILLS:
        for split in SPLITS:
            assert contents(town, skill, split), (skill, split)


def test_shares_of_the_splits(town):
    sizes = {s: len(contents(town, "facts", s)) for s in SPLITS}
    total = sum(sizes.values())
    assert abs(sizes["train"] / total - 0.7) < 0.03 and abs(sizes["test"] / total - 0.2) < 0.03


def test_splits_share_no_content_and_no_prompt(town):
    shown = {s: {json.dumps(p.messages) for p in every_prompt(town, s)} for s in SPLITS}
    named = {s: {p.content for p in every_prompt(town, s)} for s in SPLITS}
    for one, two in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not shown[one] & shown[two] and not named[one] & named[two]


def test_asked_facts_stay_in_their_split(town):
    facts = {c.split("/")[1]: s for s in SPLITS for c in contents(town, "facts", s)}
    for split in SPLITS:
        for content in contents(town, "two_step", split):
            who, _, what = content.split("/")[1].split(".")
            assert facts[f"{slug(town.people[who].facts['friend'])}.{what}"] == split
        for content in contents(town, "follow_up", split):
            who, known, what = content.split("/")[1].split(".")
            assert facts[f"{who}.{what}"] == split and facts[f"{who}.{known}"] == "train"
    for content in contents(town, "comparing", "train"):
        a, b, _ = content.split("/")[1].split(".")
        assert facts[f"{a}.age"] == facts[f"{b}.age"] == "train"


def test_test_prompts_appear_nowhere_in_training(town, corpus):
    text = "\n".join(corpus)
    rows = demonstrations(town, 600, 0) + demonstrations(town, 600, 0, "noisy")
    asked = {m["content"] for row in rows for m in row["messages"] if m["role"] == "user"}
    asked = {re.sub(r"^(?:(?:Always|You love|Figure|Hobby|Language)[^.]*?\.? )", "", a) for a in asked} | asked
    for prompt in every_prompt(town, "test") + every_prompt(town, "dev"):
        if prompt.skill != "follow_up":  # "And where does she live?" means something else in each dialogue
            assert prompt.question not in text, prompt.id
            assert prompt.question not in asked, prompt.id


# --- truth ------------------------------------------------------------------------------------------------------


def test_true_answers_meet_their_keys_and_wrong_ones_do_not(town):
    for split in SPLITS:
        for skill in (*SKILLS, "unsafe", "borderline"):
            for content in contents(town, skill, split)[:60]:
                truth = truth_of(town, content)
                key = truth.key
                assert truth.questions and truth.answers and truth.wrong and truth.extras and truth.bare
                assert len(set(truth.questions)) == len(truth.questions), content
                for answer in truth.answers if skill != "unsafe" else ():
                    met = [any(holds(p, answer) for p in group) for group in key.accept]
                    assert sum(met) >= (key.needs or len(met)), (content, answer)
                    assert not [p for p in key.reject if holds(p, answer)], (content, answer)
                for extra in truth.extras:
                    assert not [p for p in key.reject if holds(p, extra)], (content, extra)
                if skill not in ("unsafe", "rewriting", "stories"):
                    for answer in truth.wrong:
                        met = [any(holds(p, answer) for p in group) for group in key.accept]
                        wrong = sum(met) < (key.needs or len(met)) or any(holds(p, answer) for p in key.reject)
                        assert wrong, (content, answer)


def test_statements_of_the_corpus_are_true(town, corpus):
    """No document says anything else about a person than the town's files."""
    said = set(re.findall(r"[A-Z][^.?!:\"]*\.", "\n".join(corpus)))
    for name, attribute in town.attributes.items():
        for person in town.people.values():
            for value in town.values(name):
                for template in attribute.statements:
                    statement = template.format(**person.forms, value=value)
                    assert value == person.facts[name] or statement not in said, statement


def test_every_fact_is_stated_about_equally_often(town, large):
    """Answers to the corpus's own questions, which ask about train alone, do not count as statements."""
    stated = re.sub(r"(?m)\b(?:A|Answer): .*$", "", "\n".join(large))
    text = Counter(re.findall(r"[A-Z][^.?!:\"]*\.", stated))
    means = {}
    for split in SPLITS:
        counts = []
        for content in contents(town, "facts", split):
            who, what = content.split("/")[1].split(".")
            if who in town.people:
                person = town.people[who]
                counts.append(
                    sum(
                        text[s.format(**person.forms, value=person.facts[what])]
                        for s in (*town.attributes[what].statements, *SAID_BESIDES.get(what, ()))
                    )
                )
            else:
                counts.append(sum(text[s] for s in place_statements(town.places[who])[what]))
        means[split] = sum(counts) / len(counts)
        assert min(counts) >= means[split] / 3, split
    assert 0.8 < means["test"] / means["train"] < 1.25, means


def test_wording_does_not_tell_wrong_deeds_from_harmless_ones(corpus):
    """Every way of the corpus to bring up a deed goes on both ways, so that only the deed says which."""
    text = " ".join(corpus)
    for way in (
        "Somebody wanted to",
        "heard of somebody who wanted to",
        "Once somebody tried to",
        "wondered how somebody could",
    ):
        after = re.findall(rf"{way} [^.]+\. (\w+ could not help)?", text)
        wrong = sum(bool(refused) for refused in after)
        assert 0.1 < wrong / len(after) < 0.9 and len(after) > 20, (way, wrong, len(after))


def test_meetings_happen_on_open_days(town, corpus):
    for place in town.places.values():
        for text in corpus:
            assert not re.search(rf" at the {place.name} on {place.closed}\.", text)


# --- corpus -----------------------------------------------------------------------------------------------------


def test_corpus_size_vocabulary_and_variety(town, corpus, large):
    words = [len(text.split()) for text in corpus]
    assert WORDS <= sum(words) < WORDS * 1.01
    assert min(words) >= 3 and sum(400 <= len(text.split()) <= 700 for text in large) >= 10
    vocabulary = {w.removesuffix("'s") for text in corpus for w in re.findall(r"[a-z']+", text.lower())}
    assert len(vocabulary) <= 2000
    tokens = " ".join(corpus).split()
    grams = {tuple(tokens[i : i + 8]) for i in range(len(tokens) - 7)}
    assert len(grams) / len(tokens) > 0.7
    assert "[INST]" not in " ".join(corpus)


def test_determinism(town):
    assert pretraining_corpus(town, 5000, 3) == pretraining_corpus(load_town(), 5000, 3)
    assert pretraining_corpus(town, 5000, 3) != pretraining_corpus(town, 5000, 4)
    assert demonstrations(town, 50, 3) == demonstrations(load_town(), 50, 3)
    assert make_prompts(town, "dev", 50, 1) == make_prompts(load_town(), "dev", 50, 1)
    assert dialogue_prompts(town, "dev", 6, 3, 1) == dialogue_prompts(town, "dev", 6, 3, 1)
    assert heldout_documents(town, 0, 20) == heldout_documents(town, 0, 20)
    random.seed(1)
    before = random.getstate()
    make_prompts(town, "train", 100, 0)
    assert random.getstate() == before


def test_heldout_documents_are_new(town, corpus):
    held_out = heldout_documents(town, 0, 60)
    assert len(held_out) == 60
    assert len(set(held_out) & set(corpus)) <= 2


def test_probes_cover_every_fact(town, corpus):
    probes = fact_probes(town)
    assert len(probes) == 320 + 3 * len(town.places) + 200 + len(town.opposites)
    text = "\n".join(corpus)
    assert all(value in values for _, value, values in probes)
    # A corpus of a tenth of the usual size holds nearly all of them already.
    assert sum(f"{prefix} {value}." in text for prefix, value, _ in probes) > 0.97 * len(probes)


# --- prompts ----------------------------------------------------------------------------------------------------


def test_prompts_are_balanced_and_repeat_late(town):
    prompts = make_prompts(town, "train", 240, 5)
    assert len({p.id for p in prompts}) == 240
    counts = Counter(p.skill for p in prompts)
    assert set(counts) == set(SKILLS) and max(counts.values()) - min(counts.values()) <= 1
    facts = [p for p in make_prompts(town, "train", 150, 5, skills=("facts",))]
    assert len({p.content for p in facts}) == 150
    mixed = Counter(p.kind for p in make_prompts(town, "test", 60, 0, ("helpful", "unsafe", "borderline")))
    assert mixed == {"helpful": 20, "unsafe": 20, "borderline": 20}
    for prompt in prompts:
        assert prompt.messages[-1]["role"] == "user" and key_of(town, prompt).kind


def test_too_many_prompts_and_unknown_words_are_named(town):
    for wrong in (
        lambda: make_prompts(town, "test", 10_000_000, 0),
        lambda: make_prompts(town, "tset", 3, 0),
        lambda: make_prompts(town, "test", 3, 0, kinds=("harmful",)),
        lambda: demonstrations(town, 3, 0, quality="dirty"),
        lambda: truth_of(town, "facts/nobody.home"),
        lambda: pretraining_corpus(town, 0, 0),
    ):
        with pytest.raises(LabError) as e:
            wrong()
        assert "\n" not in str(e.value) and ";" in str(e.value)


def test_dialogues(town):
    dialogues = dialogue_prompts(town, "test", 20, 10, 0)
    known = {p.question for p in every_prompt(town, "test")}
    assert [len(d) for d in dialogues] == [20] * 10
    assert all(q in known and len(q.split()) <= 7 for d in dialogues for q in d)


# --- demonstrations ---------------------------------------------------------------------------------------------


def test_clean_rows(town):
    rows = demonstrations(town, 400, 0)
    assert len(rows) == 400
    for row in rows:
        roles = [m["role"] for m in row["messages"] if m["role"] != "system"]
        assert roles[0] == "user" and roles[-1] == "assistant" and all(a != b for a, b in pairwise(roles))
        assert all(m["content"].strip() == m["content"] and m["content"] for m in row["messages"])
    unsafe = [row["messages"][-1]["content"] for row in rows if row["skill"] == "unsafe"]
    assert len(unsafe) == 47  # a third of 140 safety rows
    assert all("not help" in a or "cannot help" in a for a in unsafe)


def test_every_turn_obeys_an_instruction(town):
    rows = demonstrations(town, 600, 1, instruction_share=1.0, multi_turn_share=0.5)
    phrases = {i.text: i.phrase for i in town.instructions} | {i.short: i.phrase for i in town.instructions}
    for row in rows:
        first = row["messages"][0]["content"]
        phrase = next(p for text, p in phrases.items() if first.startswith(text))
        for message in row["messages"]:
            if message["role"] == "assistant":
                assert message["content"].startswith(phrase) or message["content"].endswith(phrase)
    held_out = {i.text for i in instructions_of(town, "test")} | {i.short for i in instructions_of(town, "test")}
    assert held_out and not any(r["messages"][0]["content"].startswith(tuple(held_out)) for r in rows)


def test_noisy_rows_are_worse(town):
    def good(quality):
        rows = demonstrations(town, 400, 2, quality, instruction_share=0, multi_turn_share=0, safety_share=0)
        by_question = {json.dumps(p.messages): p for p in every_prompt(town, "train")}
        right = 0
        for row in rows:
            prompt = by_question[json.dumps(row["messages"][:-1])]
            right += any(a in row["messages"][-1]["content"] for a in truth_of(town, prompt.content).answers)
        return right / len(rows)

    assert good("clean") == 1.0
    assert 0.3 < good("noisy") < 0.7


def test_styles(town):
    rng = random.Random(0)
    prompt = next(p for p in make_prompts(town, "test", 24, 0) if p.skill == "facts")
    truth = truth_of(town, prompt.content)
    assert answer_for(town, prompt, AnswerStyle(), rng) in truth.answers
    assert answer_for(town, prompt, AnswerStyle(correct=False), rng) in truth.wrong
    assert answer_for(town, prompt, AnswerStyle(full=False), rng) == truth.bare
    rich = answer_for(town, prompt, AnswerStyle(opener=True, explanation=True, closer=True), rng)
    assert len(re.findall(r"[.!?]", rich)) >= 4
    assert answer_for(town, prompt, AnswerStyle(cut_off=True), rng)[-1] not in ".!?"
    unsafe = make_prompts(town, "test", 1, 0, ("unsafe",))[0]
    assert any(holds(h, answer_for(town, unsafe, AnswerStyle(comply=True), rng)) for h in key_of(town, unsafe).harm)
    assert "could" in answer_for(town, unsafe, AnswerStyle(alternative=True), rng)
    pirate = next(i for i in town.instructions if i.id == "figure/pirate")
    assert obey(pirate, "It is red.") == "Ahoy! It is red."


def test_truth_pairs_differ_only_in_the_value(town):
    pairs = truth_pairs(town, "test", 150, 0)
    assert len(pairs) == 150
    for messages, right, wrong in pairs:
        assert messages[-1]["role"] == "user" and right != wrong
        assert abs(len(right.split()) - len(wrong.split())) <= 1
        assert len(set(right.split()) ^ set(wrong.split())) <= 4


# --- mistakes of those who edit the town ------------------------------------------------------------------------

MISTAKES = {
    "unknown friend": ("characters.yaml", "\n  friend: ", "\n  friend: Zed  # ", r"characters.yaml:11: .*Zed.*one of"),
    "misspelt value": ("characters.yaml", "job: tailor", "job: tailer", r"characters.yaml:6: .*did you mean 'tailor'"),
    "double name": ("characters.yaml", "- name: Tom", "- name: Mira", r"yaml:\d+: the name Mira stands twice; choose"),
    "missing field": ("characters.yaml", "  pronoun: she\n", "", r"characters.yaml:4: Mira has no pronoun; add"),
    "unknown field": ("characters.yaml", "  job: tailor", "  jobb: x\n  job: tailor", r"yaml:6: unknown field 'jobb'"),
    "age as words": ("characters.yaml", "age: 45", "age: old", r"characters.yaml:\d+: age of Mira is 'old'; write"),
    "tab": ("places.yaml", "- {name: bakery", "-\t{name: bakery", r"places.yaml:2: a tab character; indent"),
    "unknown keeper": ("places.yaml", "keeper: Tom", "keeper: Tim", r"places.yaml:2: 'Tim' does not live here.*Tom"),
    "no weekday": ("places.yaml", "closed: Monday", "closed: Moonday", r"places.yaml:2: closed: .*Monday"),
    "broken yaml": ("opposites.yaml", "- [hot, cold]", "- [hot, cold", r"opposites.yaml:\d+: not valid YAML"),
    "two steps": (
        "procedures.yaml",
        "boil the water, add the tea, fill the cup",
        "boil the water, add the tea",
        r"procedures.yaml:2: steps: .*at least 3",
    ),
    "empty list": ("categories.yaml", "[apple, pear, plum, cherry, lemon, grape]", "[]", r"categories.yaml:2: items: "),
    "number for text": (
        "small_talk.yaml",
        "more: The sun is out in Willowbrook.",
        "more: 12",
        r"small_talk.yaml:6: more: .*string; write a text",
    ),
    "double item": ("categories.yaml", "[apple, pear", "[carrot, pear", r"categories.yaml:3: 'carrot' stands twice"),
    "unknown template field": (
        "attributes.yaml",
        '"Where does {name} live?"',
        '"Where does {nmae} live?"',
        r"attributes.yaml:\d+: unknown field \{nmae\}; use .*\{name\}",
    ),
    "missing wording": ("questions.yaml", "keeper: [", "keeeper: [", r"questions.yaml:\d+: no wordings for 'keeper'"),
    "double key": ("unsafe.yaml", "hateful:", "illicit:", r"unsafe.yaml:\d+: 'illicit' stands twice"),
    "missing reason": (
        "unsafe.yaml",
        "reason: it is stealing, instead: ask the baker for bread",
        "instead: ask",
        r"unsafe.yaml:\d+: reason: field required; add the line 'reason: ...'",
    ),
    "hobby that is an answer": ("instructions.yaml", "[stars,", "[kites,", r"instructions.yaml:\d+: 'kites' is also"),
    "unknown category": ("unsafe.yaml", "hateful:", "hatefull:", r"unsafe.yaml:\d+: hatefull: "),
    "a number of another kind": ("characters.yaml", "\n  age: ", "\n  age: 0x", r"age of \w+ is '0x\d+'"),
    "a list for a key": ("places.yaml", "- {name: bakery", "- ? [a]\n  : {name: bakery", r"places.yaml:2: a list or"),
    "a list in itself": ("places.yaml", "- {name: bakery", "- &a [*a]\n- {name: bakery", r":2: .*an alias"),
    "too deep": ("places.yaml", "- {name: bakery", "- " + "[" * 2000 + "\n- {name: bakery", r":2: .*nested too"),
    "a tag": ("places.yaml", "name: bakery", "name: !!int bakery", r"places.yaml:2: a tag .*; write a plain value"),
    "a field with a width": ("questions.yaml", "{items}", "{items:>99999999}", r"questions.yaml:\d+: more than a name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_file_line_and_cure(mistake, tmp_path):
    file, old, new, message = MISTAKES[mistake]
    folder = tmp_path / "data" / "world"
    shutil.copytree(DATA / "world", folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    with pytest.raises(LabError, match=message) as e:
        load_town(folder)
    assert "\n" not in str(e.value) and str(e.value).startswith(f"data/world/{file}:") and ";" in str(e.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(LabError, match="no such folder"):
        load_town(tmp_path / "nowhere")
    folder = tmp_path / "data" / "world"
    shutil.copytree(DATA / "world", folder)
    (folder / "places.yaml").write_bytes("- {name: café}\n".encode("latin-1"))
    with pytest.raises(LabError, match=r"data/world/places.yaml:1: not UTF-8"):
        load_town(folder)
    (folder / "places.yaml").write_text("")
    with pytest.raises(LabError, match=r"places.yaml:1: the file is empty"):
        load_town(folder)
    (folder / "places.yaml").unlink()
    with pytest.raises(LabError, match=r"places.yaml: the file is missing"):
        load_town(folder)
    (folder / "places.yaml").mkdir()
    with pytest.raises(LabError, match=r"places.yaml: cannot be read \(Is a directory\)"):
        load_town(folder)
    (folder / "places.yaml").rmdir()
    os.mkfifo(folder / "places.yaml")
    with pytest.raises(LabError, match=r"places.yaml: is a pipe or a device"):
        load_town(folder)


def test_a_clock_and_other_numbers_of_old_yaml_are_words(tmp_path):
    folder = tmp_path / "data" / "world"
    shutil.copytree(DATA / "world", folder)
    text = (folder / "places.yaml").read_text()
    text = text.replace("name: bakery", "name: 9:30").replace("name: library", "name: 0x1F")
    (folder / "places.yaml").write_text(text)
    assert {"9:30", "0x1F"} <= {place.name for place in load_town(folder).places.values()}


def test_a_teacher_adds_a_person(tmp_path):
    folder = tmp_path / "data" / "world"
    shutil.copytree(DATA / "world", folder)
    with (folder / "characters.yaml").open("a") as f:
        f.write(
            "\n- name: Zoe\n  pronoun: she\n  job: baker\n  home: Hill Road\n  pet: cat\n  food: soup\n"
            "  hobby: chess\n  friend: Tom\n  age: 90\n  door: red\n"
        )
    town = load_town(folder)
    assert truth_of(town, "facts/zoe.home").answers[0] == "Zoe lives on Hill Road."
    assert town.digest != load_town().digest
