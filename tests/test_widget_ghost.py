"""The Ghost Attention explorer: where the instruction stands, who obeys, and where models look."""

import threading

import pytest
import torch

from llama2lab.lab.explorer import Explorer
from llama2lab.lessons.n09_gatt import dialogues as g
from llama2lab.lessons.n09_gatt import widget_ghost as ghost


@pytest.fixture(scope="module")
def dialogue(lab):
    return g.kept_dialogues(lab, "gatt")[0]


def test_spans_are_the_instruction_and_the_answers(lab, dialogue) -> None:
    ids, instruction, answers = g.spans(lab, dialogue, 3)
    assert lab.tokenizer.decode(ids[instruction]).strip() == dialogue.instruction.text
    for part, text in zip(answers, dialogue.answers[:3], strict=True):
        assert ids[part.start] == lab.tokenizer.convert_tokens_to_ids("[/INST]")
        assert lab.tokenizer.decode(ids[part.start + 1 : part.stop + 1]).removesuffix("</s>").strip() == text
    assert len(answers) == 3


def test_attention_is_a_share_and_even_falls_with_the_turns(lab, dialogue) -> None:
    for look in g.instruction_attention(lab, lab.model("gatt"), dialogue, 4).values():
        for mean, most in zip(look["mean"], look["max"], strict=True):
            assert 0 <= mean <= most <= 1 + 1e-5
        assert look["even"] == sorted(look["even"], reverse=True) and len(look["even"]) == 4


def test_later_turns_change_nothing_of_earlier_ones(lab, dialogue) -> None:
    two, three = (g.instruction_attention(lab, lab.model("gatt"), dialogue, n)["whole"]["mean"] for n in (2, 3))
    assert two == pytest.approx(three[:2], rel=1e-3)


def test_even_attention_is_what_even_weights_give(lab, dialogue, monkeypatch) -> None:
    def even(_, ids):
        n = len(ids)
        return (torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]).expand(2, 3, n, n)

    monkeypatch.setattr(g, "attention_weights", even)
    for look in g.instruction_attention(lab, None, dialogue, 3).values():
        assert look["mean"] == pytest.approx(look["even"]) and look["max"] == pytest.approx(look["even"])


def test_obedience_by_turn(dialogue) -> None:
    one = g.Dialogue(dialogue.instruction, ("a", "b"), ("x", "y"), (True, False))
    two = g.Dialogue(dialogue.instruction, ("a",), ("x",), (True,))
    assert [(f["mean"], f["n"]) for f in g.obedience([one, two])] == [(1.0, 2), (0.0, 1)]


def test_the_runs_dialogues_give_the_runs_figures(lab) -> None:
    turned = g.obedience(g.kept_dialogues(lab, "gatt"))
    for turn, figure in lab.metrics("gatt")["retention"].items():
        assert turned[int(turn) - 1]["mean"] == pytest.approx(figure["mean"])


def test_hostile_text_is_escaped(dialogue) -> None:
    bad = g.Dialogue(dialogue.instruction, ("<img src=x>",), ("<script>1</script>",), (False,))
    assert "<script>" not in ghost.transcript(bad, 1) and "<img" not in ghost.transcript(bad, 1)


def test_the_explorer_changes_with_its_controls(lab) -> None:
    explorer = ghost.GhostExplorer(lab)
    explorer.turns.value = 3
    shown = explorer.static()
    assert shown.count("<tr>") == 4
    explorer.read.value = False
    assert explorer.static() != shown
    explorer.instruction.value = explorer.instruction.options[1]
    assert explorer.static() != shown
    explorer.instruction.value = ghost.ALL
    assert f"n {len(g.kept_dialogues(lab, 'gatt'))}" in explorer.static()


def test_sampling_is_shown_turn_by_turn_and_can_be_stopped(lab) -> None:
    explorer = ghost.GhostExplorer(lab)
    explorer.turns.value = 2
    job = explorer.sample()
    job.wait(600)
    assert job.state == "done" and {len(d.answers) for d in explorer.sampled["rlhf-v3"]} == {2}
    explorer.instruction.value = explorer.instruction.options[1]
    assert not explorer.sampled
    explorer.turns.value = 20
    job = explorer.sample()
    job.stop()
    job.wait(600)
    assert job.state == "stopped"


class Sampler:
    """In place of `sampled_dialogues`: one turn a `go`, so that a test decides what happens between two turns."""

    def __init__(self, monkeypatch):
        self.go, self.turned = threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr(ghost, "sampled_dialogues", self)

    def __call__(self, lab, stage, instructions, turns, each_turn):
        for turn in range(turns):
            assert self.go.acquire(timeout=120)
            try:
                each_turn([["Sure."] * (turn + 1)] * len(instructions))
            finally:
                self.turned.release()

    def turn(self):
        self.go.release()
        assert self.turned.acquire(timeout=120)


def test_what_comes_after_another_instruction_was_chosen_is_not_shown_under_it(lab, monkeypatch) -> None:
    sampler = Sampler(monkeypatch)
    explorer = ghost.GhostExplorer(lab)
    cowboy, stars = explorer.instruction.options[1:3]
    explorer.instruction.value = cowboy
    job = explorer.sample()
    sampler.turn()
    assert {d.instruction.text for d in explorer.dialogues("rlhf-v3")} == {cowboy}
    explorer.instruction.value = stars  # while the second turn is sampled
    sampler.turn()
    job.wait(120)
    assert job.state == "stopped" and not explorer.sampled
    for stage in ("rlhf-v3", "gatt"):
        assert {d.instruction.text for d in explorer.dialogues(stage)} <= {stars}
    assert cowboy not in explorer.static() and not explorer.go.disabled


def test_sampling_again_shows_only_what_is_sampled_now(lab, monkeypatch) -> None:
    sampler = Sampler(monkeypatch)
    explorer = ghost.GhostExplorer(lab)
    first = explorer.sample()
    sampler.turn()
    older = explorer.sampled
    explorer.job.stop()
    explorer.instruction.value = explorer.instruction.options[1]
    threading.Timer(0.2, sampler.go.release).start()  # the first job ends its turn while the second one is started
    second = explorer.sample()
    assert first.state == "stopped" and explorer.sampled is not older and not explorer.sampled
    assert explorer.go.disabled and not explorer.halt.disabled  # of the second, whatever the first one said last
    second.stop()
    sampler.go.release()
    second.wait(120)
    assert not explorer.go.disabled


def test_a_slow_picture_of_older_settings_does_not_stay(lab) -> None:
    """A job's thread draws under the old choice while the choice changes."""
    import ipywidgets as w

    choice, begun, go_on = w.Dropdown(options=["old", "new"]), threading.Event(), threading.Event()

    class Slow(Explorer):
        def draw(self) -> str:
            shown = choice.value
            if threading.current_thread().name == "slow":
                begun.set()
                assert go_on.wait(120)
            return shown

    explorer = Slow("a title", [choice])
    slow = threading.Thread(target=explorer.redraw, name="slow")
    slow.start()
    assert begun.wait(120)
    threading.Timer(0.3, go_on.set).start()
    choice.value = "new"
    slow.join()
    assert explorer.static() == "new"
