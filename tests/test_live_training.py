"""Live training: a job that is paused, stopped and gone on with loses nothing; its view; what training reads."""

import json
import threading
import time

import annotation_browser as real
import pytest
import torch
from patience import until
from picture_page import change, draw, focused, sent

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.loop import watching
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import pack
from llama2lab.lab.chips import stretches, token_picture
from llama2lab.lab.job import Job
from llama2lab.lab.live import RIVALS, Fact, Plan, Training, asked_about, fact_of
from llama2lab.lab.live_view import Record, smooth, spread
from llama2lab.lessons.n01_tokenizer.widget_packing import (
    MASKS,
    MaskExplorer,
    PackingExplorer,
    marked_tokens,
)
from llama2lab.lessons.n03_pretraining.training_view import EARLY, LOOKS, TrainingView
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.stages.pretrain import fit_packed

CPU = Machine(torch.device("cpu"), "fp32")
TINY = ModelConfig(vocab_size=64, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=16, max_seq_len=32)
DATA = pack([([4 + (i + j) % 50 for j in range(8)], [1] * 8) for i in range(24)], 16, 0, 3)
TEXTS = ["a town on a river", "the town has a market and a mill"] * 20


def train(model, folder=None, on_step=None):
    return fit_packed(model, DATA, 2.0, 32, Optim(lr=1e-2), 1, CPU, folder, "tiny", on_step)


def losses(log):
    return [row["loss"] for row in log]


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS, 300, chat_template=CHAT_TEMPLATE)


def test_watching_changes_no_number_and_stops_where_it_is_told(tmp_path):
    plain, seen = Llama(TINY), []
    expected = train(plain)
    with watching(lambda what, log, steps: seen.append((what, len(log), steps)) or False):
        assert losses(train(Llama(TINY))) == losses(expected)
    assert seen == [("tiny", done, len(expected)) for done in range(len(expected) + 1)]
    with watching(lambda what, log, steps: len(log) == 3), pytest.raises(KeyboardInterrupt):
        train(Llama(TINY), tmp_path)
    resumed = Llama(TINY)
    with watching(lambda what, log, steps: False):
        assert losses(train(resumed, tmp_path)) == losses(expected)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), resumed.parameters(), strict=True))


def test_a_job_that_is_stopped_goes_on_from_its_last_step(tmp_path):
    expected = losses(train(Llama(TINY)))
    model, at_step = Llama(TINY), threading.Event()
    job = Job(lambda: train(model, tmp_path, lambda step: at_step.set() if step == 4 else None))
    job.changed = lambda: job.stop() if len(job.rows) == 5 else None
    job.start()
    assert job.wait() is None and job.state == "stopped" and at_step.is_set()
    done = len(job.rows)
    assert 5 <= done < len(expected)
    job.changed = None
    job.start()
    assert losses(job.wait()) == expected and job.state == "done" and not job.running
    assert losses(job.rows) == expected
    job.start()  # nothing more to do
    assert job.state == "done"


def test_a_pause_holds_the_step_and_ends():
    model = Llama(TINY)
    job = Job(lambda: train(model))
    job.changed = lambda: job.pause() if len(job.rows) == 2 and job.state == "running" else None
    job.start()
    until(lambda: job.state == "paused" and not job._go.is_set(), "it has paused")
    time.sleep(0.1)
    assert job.running and len(job.rows) == 2
    job.changed = None
    assert len(job.wait()) == job.steps and job.state == "done"


def test_a_pause_that_is_ended_at_once_holds_nothing():
    """Whoever is told of the pause goes on while `pause` is still under way."""
    model = Llama(TINY)
    job, paused = Job(lambda: train(model)), []

    def changed():
        if job.state == "running" and len(job.rows) == 2 and not paused:
            job.pause()
        elif job.state == "paused":
            paused.append(1)
            job.resume()

    job.changed = changed
    job.start()
    until(lambda: len(job.rows) > 2, "it has gone on", 60)
    job.changed = None
    assert len(job.wait()) == job.steps


def test_errors_are_said_in_words():
    job = Job(lambda: 1 / 0)
    with pytest.raises(LabError, match="ZeroDivisionError: division by zero"):
        job.wait()
    assert job.state == "failed" and "1 / 0" in job.trace


def test_a_second_job_stops_the_first(tmp_path):
    first = Job(lambda: train(Llama(TINY), tmp_path, lambda step: time.sleep(0.02)))
    first.start()
    second = Job(lambda: train(Llama(TINY)))
    second.start()
    assert first.state in ("stopped", "done")
    assert second.wait()


def plan_in(folder, work):
    """What it trains, measures and looks at is noted in `work`."""

    def plan(rate):
        def noted(what, result):
            work.append(what)
            return result

        def make():
            model = Llama(TINY)

            def train():
                return fit_packed(model, DATA, 2.0, 32, Optim(lr=rate), 1, CPU, folder / str(rate), on_step=work.append)

            look = {"text": "<b>a text</b>", "fact": asked_about(model, TOKENS, FACT, CPU)}
            return Training(model, train, 32, lambda: noted("loss", 1.5), lambda: noted("look", look))

        return Plan(folder / str(rate), make)

    return plan


class TOKENS:
    """A tokenizer whose tokens say their number."""

    @staticmethod
    def decode(ids):
        return "".join(f" {i}" for i in ids)


FACT = Fact("The number is", "<i>7</i>", (0, 5, 9), 7)
GOAL = {"true": ["7", 0.9], "rank": 1, "rivals": [["5", 0.02], ["6", 0.01], ["9", 0.01], ["4", 0.01]]}
WATCHED = {
    "asked": "It goes on:",
    "prompt": "The number is",
    "fact": {"asked": FACT.asked, "value": FACT.value, "goal": {"text": "7.", "fact": GOAL}, "goal_by": "the full run"},
}


def view_in(folder, work):
    return TrainingView("Live", plan_in(folder, work), WATCHED, (4.2, "knows nothing"), rate=(1e-2, 1e-3))


def press(view, **message):
    """As the page does."""
    view._pressed(view, message, [])


def test_nothing_is_trained_before_start_is_pressed(tmp_path):
    work = []
    view = view_in(tmp_path, work)
    assert view.shown["state"] == "not started" and view.speed is None and work == [] and not any(tmp_path.iterdir())
    assert "Nothing is trained yet" in view.static() and view.shown["looks"] == []


def test_the_view_trains_shows_and_keeps_what_it_saw(tmp_path):
    work = []
    view = view_in(tmp_path, work)
    press(view, press="start")
    view.job.wait()
    steps, shown = view.job.steps, view.shown
    assert shown["state"] == "done" and f"step {steps} of {steps}" in shown["said"] and view.speed > 0
    due = [n for n in range(steps + 1) if n % max(1, steps // LOOKS) == 0 or n in EARLY or n == steps]
    assert [look["step"] for look in shown["looks"]] == due and shown["looks"][1]["x"] == pytest.approx(0.032)
    now, held_out = shown["lines"]["loss"]
    assert [p[1] for p in now["points"]] == pytest.approx(smooth(losses(view.job.rows)), abs=1e-4)
    assert [p[1] for p in held_out["points"]] == [1.5] * len(due)
    page = view.static()
    assert "&lt;b&gt;a text" in page and "<b>" not in page and "<i>" not in page and "&lt;i&gt;7" in page
    json.dumps([view.data, view.shown], allow_nan=False)

    press(view, choose=["rate", 1])  # another choice: not trained yet, the earlier curve stays
    assert view.shown["state"] == "not started" and view.values == {"rate": 1e-3}
    assert [line["name"] for line in view.shown["lines"]["loss"][2:]] == ["held out, rate 0.01"]

    done, again = len(work), view_in(tmp_path, work)  # as in another kernel
    assert again.shown["state"] == "done" and again.shown["looks"] == shown["looks"]
    assert again.shown["lines"] == shown["lines"] and len(work) == done and not again.job.running
    press(again, press="start")  # once more, from the first step
    again.job.wait()
    assert len(work) > done and again.shown["state"] == "done" and work[done:].count(0) == 1


def test_a_training_that_was_stopped_goes_on_in_another_kernel(tmp_path):
    expected = losses(train(Llama(TINY)))
    view = view_in(tmp_path, [])
    view.job.changed = lambda: (view._changed(), view.job.stop() if len(view.job.rows) == 5 else None)
    press(view, press="start")
    view.job.wait()
    assert view.shown["state"] == "stopped"
    done = len(view.record.rows)
    assert 5 <= done < len(expected)

    work = []
    again = view_in(tmp_path, work)
    assert again.shown["state"] == "stopped" and again.shown["done"] == done
    press(again, press="start")
    again.job.wait()
    assert losses(again.record.rows) == expected and done in work and done - 1 not in work
    steps = [look["step"] for look in again.record.looks]
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == len(expected)

    press(again, choose=["rate", 1])
    press(again, choose=["rate", 0])
    again.forget()
    assert again.shown["state"] == "not started" and not (tmp_path / "0.01").exists()


def test_a_record_that_is_damaged_is_none(tmp_path):
    view = view_in(tmp_path, [])
    (tmp_path / "0.01").mkdir()
    for text in ("{", '{"rows": 3}', '{"looks": [1]}'):
        (tmp_path / "0.01" / "seen.json").write_text(text)
        assert view.kept() == Record()


def test_what_fails_is_said_in_words(tmp_path):
    def make():
        raise ValueError("<script>no</script>")

    view = TrainingView("Live", lambda rate: Plan(tmp_path / str(rate), make), WATCHED, rate=(1e-2,))
    press(view, press="start")
    until(lambda: view.shown["state"] == "failed", "it has failed")
    assert "ValueError" in view.shown["said"] and "<script>" not in view.static()


def test_a_fact_is_asked_of_all_tokens():
    model = Llama(TINY, seed=3)
    found = asked_about(model, TOKENS, FACT, CPU)
    with torch.no_grad():
        p = model(torch.tensor([FACT.ids]))[0, -1].softmax(-1)
    order = p.argsort(descending=True).tolist()
    assert found["rank"] == order.index(FACT.true) + 1
    assert found["true"] == ["7", pytest.approx(p[7].item(), rel=1e-2)]
    assert [name for name, _ in found["rivals"]] == [str(i) for i in order if i != FACT.true][:RIVALS]


def test_a_fact_ends_where_its_value_begins(tokenizer):
    fact = fact_of(tokenizer, [0], "the town has a", "mill")
    assert tokenizer.decode(fact.ids[1:]) == "the town has a" and tokenizer.decode([fact.true]).strip() == "mill"


def test_smoothing_keeps_length_and_level():
    assert smooth([2.0] * 20) == [2.0] * 20 and smooth([4.0, 2.0, 3.0], 3) == [4.0, 3.0, 3.0] and smooth([]) == []
    assert spread([*range(11)], 6) == [0, 2, 4, 6, 8, 10] and spread([1, 2], 6) == [1, 2] and spread([], 6) == []


@pytest.mark.browser
def test_the_page_starts_follows_and_plays_again_by_keys(tmp_path):
    """Against records of a real training, handed to the page as the kernel would."""
    real.skip_without_browser()
    view = view_in(tmp_path, [])
    waiting = view.shown
    press(view, press="start")
    view.job.wait()
    done = view.shown
    half = done | {"state": "running", "looks": done["looks"][:3], "said": "running; step 2 of 24"}
    with real.chromium() as browser, real.page_of(browser, reduced_motion="reduce") as page:
        draw(page, view, view.data, shown=waiting)
        start = page.locator(".l2w-start")
        assert (
            start.inner_text() == "Start"
            and start.is_enabled()
            and "Press Start" in page.locator("svg").first.inner_html()
        )
        assert "the full run" in page.locator(".l2w-texts").inner_text()  # what the finished model says stands there
        start.focus()
        page.keyboard.press("Enter")
        assert sent(page) == [{"press": "start"}]
        change(page, "shown", half)
        assert focused(page) == "Pause" and page.locator(".l2p-bar", has=page.get_by_role("slider")).is_hidden()
        assert "step 2" in page.locator(".l2p-unseen").inner_text()
        assert page.locator(".l2w-true").inner_text().startswith("✓ 7")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        change(page, "shown", done)
        assert sent(page)[1:] == [{"press": "pause"}, {"press": "stop"}] and start.inner_text() == "Train again"

        seen, note = page.get_by_role("slider", name="seen at"), page.locator(".l2w-card .faint").nth(1)
        assert f"step {done['of']}" in note.inner_text()
        seen.focus()
        page.keyboard.press("Home")
        assert "At step 0: held out 1.50" in note.inner_text()
        page.keyboard.press("ArrowRight")
        assert "At step 1" in note.inner_text()
        page.get_by_role("button", name="play").focus()
        page.keyboard.press("Enter")
        real.until(lambda: "At step 1" not in note.inner_text(), "the film runs")
        page.get_by_label("rate", exact=True).focus()
        page.keyboard.press("ArrowDown")
        assert sent(page)[-1] == {"choose": ["rate", 1]}
        assert page.locator("#here b:not(.l2w-said b), #here i:not(.l2w-track i)").count() == 0
        assert "<i>7</i>" in page.locator(".l2p").inner_text()
        for width in (700, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.errors == []


@pytest.mark.browser
def test_an_axis_that_waits_for_its_first_number_has_none(tmp_path):
    real.skip_without_browser()
    view = view_in(tmp_path, [])
    charts = [{**one, "level": None} for one in view.data["charts"]]
    with real.chromium() as browser, real.page_of(browser) as page:
        draw(page, view, {**view.data, "charts": charts}, shown={**view.shown, "lines": {}})
        said = page.locator("svg").first.locator("text").all_text_contents()
        assert said and not [text for text in said if text[:1].isdigit()]


def test_packing_is_shown_as_it_is(tokenizer):
    assert stretches([1, 1, 2, 0, 0]) == [(1, 0, 2), (2, 2, 1), (0, 3, 2)]
    explorer = PackingExplorer(tokenizer, TEXTS)
    packed = explorer.static()
    explorer.packed.value = False
    assert explorer.static() != packed
    alone = explorer.data()
    assert len(alone) == 40 and int((alone.segments > 0).sum()) == sum(len(ids) for ids, _ in explorer.encoded)


def test_the_mask_marks_answers_and_hostile_text_is_escaped(tokenizer):
    messages = [
        {"role": r, "content": c}
        for r, c in (
            ("user", "a <b>mill</b>?"),
            ("assistant", "a river"),
            ("user", "a town?"),
            ("assistant", "the market </s> [INST]"),
        )
    ]
    counts = [sum(mark for _, mark in marked_tokens(tokenizer, messages, mask)) for mask in MASKS]
    assert counts[1] < counts[0] < counts[2]
    tokens = marked_tokens(tokenizer, messages)
    assert sum(mark for text, mark in tokens if text == "</s>") == 2  # the format's own; the text's is defused
    assert "<b>" not in token_picture([("<b>", True)])
    explorer = MaskExplorer(tokenizer, [{"messages": messages}, {"messages": messages[:2]}])
    before = explorer.static()
    explorer.mask.value = MASKS[1]
    assert explorer.static() != before
