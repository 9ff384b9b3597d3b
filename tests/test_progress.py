"""Bars are for people, one at a time where somebody watches; logs get plain lines, and none of what is short."""

import re
import threading

from llama2lab.engine import bar as progress


def watched(monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_outer", None)


def test_what_is_short_leaves_no_line_in_a_log(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_outer", None)
    with progress.bar(3, "quiet") as bar:
        for _ in range(3):
            bar.update()
    assert capsys.readouterr().err == ""


def test_a_log_gets_plain_lines_with_the_time_that_is_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_outer", None)
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with progress.bar(4, "pretraining") as bar:
        for _ in range(4):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and "\r" not in "".join(lines)
    assert all(re.fullmatch(r"pretraining: [0-3] of 4 steps, ([\d:]+|\?) left", line) for line in lines)


def test_a_bar_within_a_bar_is_not_shown_and_the_next_one_is(monkeypatch):
    watched(monkeypatch)
    with progress.bar(3, "PPO") as outer:
        assert not outer.disable
        for _ in range(2):
            with progress.bar(3, "sampling") as inner:
                assert inner.disable
    with progress.bar(3, "the next") as following:
        assert not following.disable


def test_another_thread_shows_none(monkeypatch):
    watched(monkeypatch)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(progress.bar(3, "panel").disable))
    thread.start()
    thread.join()
    assert seen == [True]
