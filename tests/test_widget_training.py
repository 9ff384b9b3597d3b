"""Live training: a job that is paused, stopped and gone on with loses nothing; its panel; what training reads."""

import threading
import time

import pytest
import torch
from patience import until

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.loop import watching
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import pack
from llama2lab.lab.job import Job
from llama2lab.lab.live import Training
from llama2lab.lessons.n01_tokenizer.widget_packing import (
    MASKS,
    MaskExplorer,
    PackingExplorer,
    marked_tokens,
    stretches,
    token_picture,
)
from llama2lab.lessons.n03_pretraining.widget_training import TrainingPanel, smooth, spread
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


def make_setup(tmp_path, work):
    """What it trains, measures and writes is noted in `work`."""

    def setup(rate):
        model = Llama(TINY)

        def noted(what, result):
            work.append(what)
            return result

        return Training(
            model,
            lambda: fit_packed(
                model,
                DATA,
                2.0,
                32,
                Optim(lr=rate),
                1,
                CPU,
                tmp_path / str(rate),
                on_step=work.append,
            ),
            tmp_path / str(rate),
            32,
            lambda: noted("loss", 1.5),
            lambda number: noted("text", f"<b>text {number}</b>"),
        )

    return setup


def test_the_panel_trains_shows_and_keeps_what_it_measured(tmp_path):
    work = []
    panel = TrainingPanel("Live", make_setup(tmp_path, work), every=4, rate=(1e-2, 1e-3))
    assert "Press Start" in panel.static() and panel.buttons["Stop"].disabled
    with pytest.raises(LabError, match="Start"):
        _ = panel.model
    shown = panel.wait().data
    assert "done" in shown and f"step {panel.job.steps} of {panel.job.steps}" in shown
    assert "&lt;b&gt;text 4" in shown and "<b>text" not in shown
    assert [n["step"] for n in panel.notes] == [*range(0, panel.job.steps, 4), panel.job.steps]
    assert panel.speed > 0 and panel.buttons["Start"].disabled and not panel.buttons["Forget"].disabled
    panel.controls["rate"].value = 1e-3  # another choice: not trained yet, the earlier curve stays
    assert panel.job.state == "not started" and list(panel.earlier) == ["0.01"]
    panel.buttons["Start"].click()
    panel.wait()
    assert panel.training.folder.name == "0.001"
    again = TrainingPanel("Live", make_setup(tmp_path, work), every=4, rate=(1e-2, 1e-3))  # as after a new kernel
    done = len(work)
    again.wait()
    assert len(again.job.rows) == panel.job.steps and len(again.notes) == len(panel.notes)
    assert len(work) == done > 2 * panel.job.steps  # nothing is trained or measured again
    again.buttons["Forget"].click()
    assert again.job.state == "not started" and not (tmp_path / "0.01").exists()


def test_smoothing_keeps_length_and_level():
    assert smooth([2.0] * 20) == [2.0] * 20 and smooth([4.0, 2.0], 2) == [4.0, 3.0] and smooth([]) == []
    assert spread([*range(11)], 6) == [0, 2, 4, 6, 8, 10] and spread([1, 2], 6) == [1, 2] and spread([], 6) == []


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
