"""The chat widget: both models get the whole dialogue, and nothing is lost by a mistake."""

import pytest

from llama2lab.engine.errors import LabError
from llama2lab.lessons.n00_start.experiments import twenty_questions
from llama2lab.lessons.n00_start.figures import STEPS, notebooks, recipe_table
from llama2lab.lessons.n00_start.widget_chat import ChatExplorer, dialogue_html, examples, reply, talkers
from llama2lab.lessons.recipe_map import opening

ASKED = [{"role": "user", "content": "What is the opposite of new?"}]


def test_replies(lab):
    greedy = reply(lab, "sft", ASKED, 0.0, 0)
    assert greedy and greedy == reply(lab, "sft", ASKED, 0.0, 5)
    assert reply(lab, "sft", ASKED, 1.0, 3) == reply(lab, "sft", ASKED, 1.0, 3)
    earlier = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}]
    assert reply(lab, "base", [*earlier, *ASKED], 0.0, 0) == reply(lab, "base", ASKED, 0.0, 0)
    for wrong, words in (
        ([], "empty"),
        ([{"role": "user", "content": " \n"}], "empty"),
        ([{"role": "user", "content": "word " * 9000}], "context"),
    ):
        with pytest.raises(LabError, match=words):
            reply(lab, "sft", wrong, 1.0, 0)


def test_who_can_talk(lab):
    names = talkers(lab)
    assert names.index("base") < names.index("sft") < names.index("rlhf-v5")
    assert not any(n.startswith("reward") for n in names)
    assert len(examples(lab)) > 10


def test_a_dialogue_goes_on(lab):
    chat = ChatExplorer(lab, ("sft", "rlhf-v5"), first=ASKED[0]["content"])
    assert [len(chat.dialogue(i)) for i in (0, 1)] == [2, 2]
    chat.text.value = "And of old?"
    assert len(chat.dialogue(0)) == 2  # leaving the field sends nothing
    chat.send.click()
    assert [len(chat.dialogue(i)) for i in (0, 1)] == [4, 4] and chat.text.value == ""
    assert "And of old?" in chat.static()
    chat.stages[0].value = "base"
    assert chat.dialogue(0) == [] and len(chat.dialogue(1)) == 4
    chat.stages[0].value = "sft"
    assert len(chat.dialogue(0)) == 4
    chat.clear.click()
    assert chat.dialogue(0) == chat.dialogue(1) == []


def test_it_opens_on_what_the_run_answered(lab):
    stored = opening(lab)
    chat = ChatExplorer(lab, ("sft", "rlhf-v5"), stored=stored)
    for i, stage in enumerate(("sft", "rlhf-v5")):
        kept = next(r for r in lab.rows(stage, "answers.jsonl") if r["messages"][0]["content"] == stored["prompt"])
        assert [m["content"] for m in chat.dialogue(i)] == [stored["prompt"], kept["answer"]]
    assert stored["rule"] in chat.static()
    chat.say("And of old?")
    assert [len(chat.dialogue(i)) for i in (0, 1)] == [4, 4] and stored["rule"] not in chat.static()
    chat.stages[0].value = "base"
    assert chat.dialogue(0) == []
    hostile = {"prompt": "<b>", "rule": "<i>", "says": {"sft": {"text": "<img src=x>", "good": True}}}
    assert "<img" not in (shown := ChatExplorer(lab, stored=hostile).static()) and "<b>" not in shown
    assert ChatExplorer(lab, stored=None).dialogue(0) == []


def test_enter_sends(lab):
    chat = ChatExplorer(lab)
    chat._enter(chat.text, {"event": "submit"}, [])  # outside of an event loop: at once
    assert "empty" in chat.static() and not chat.dialogue(0)
    chat.entered = True
    chat.text.value = "Who are you?"  # the text that comes with Enter
    assert len(chat.dialogue(0)) == 2


def test_mistakes_lose_nothing(lab):
    chat = ChatExplorer(lab, first=ASKED[0]["content"])
    chat.send.click()
    assert "empty" in chat.static() and len(chat.dialogue(0)) == 2
    chat.text.value = long = "word " * 9000
    chat.send.click()
    assert "Nothing was sent" in chat.static() and len(chat.dialogue(0)) == 2 and chat.text.value == long


def test_hostile_text_is_escaped(lab):
    hostile = "<img src=x onerror=alert(1)> [INST] \u202e</s>"
    shown = dialogue_html("<b>", [{"role": "user", "content": hostile}, {"role": "assistant", "content": hostile}])
    assert "<img" not in shown and "<b>" not in shown and "\u202e" not in shown
    chat = ChatExplorer(lab, first=hostile)
    assert "<img" not in chat.static() and len(chat.dialogue(1)) == 2


def test_the_tour(lab):
    rows = recipe_table(lab)
    assert len(rows) == len(STEPS) and all(len(row) == 5 for row in rows)
    found = twenty_questions(lab, "sft", n=6)
    assert found["right"]["n"] == len(found["rows"]) == 6
    assert all(name.endswith(".ipynb") and title for name, title, *_ in notebooks())
