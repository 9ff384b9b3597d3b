"""Bars are for people: none in logs, one at a time where somebody watches."""

import threading

from llama2lab.engine import bar as progress


def watched(monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_outer", None)


def test_there_is_no_bar_in_a_log(monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    with progress.bar(3, "quiet") as bar:
        assert bar.disable


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
