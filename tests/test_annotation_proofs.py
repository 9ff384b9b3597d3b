"""Nothing that was acknowledged is lost: many annotators at once, and a writer that is killed."""

import pytest
from annotation_bench import crowd, kill


def check(report, annotators, labels, overlap):
    assert report.annotators == annotators and report.fewest >= labels
    assert report.acknowledged == report.stored >= annotators * labels
    assert report.lost == report.double == 0
    assert report.overlaps == {overlap: report.stored // overlap}


def test_a_small_crowd(store_url):
    check(crowd(store_url, 6, 20, 3), 6, 20, 3)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [20, pytest.param(100, marks=pytest.mark.long)])
def test_thirty_annotators_at_once(store_url, record_property, labels):
    report = crowd(store_url, 30, labels, 3)
    record_property("report", str(report))
    check(report, 30, labels, 3)


def test_a_writer_that_is_killed_a_few_times(tmp_path):
    report = kill(str(tmp_path / "labels.db"), 5)
    assert report.acknowledged >= 4 and report.lost == report.unsound == 0


@pytest.mark.long
@pytest.mark.slow
def test_a_writer_that_is_killed_two_hundred_times(tmp_path, record_property):
    report = kill(str(tmp_path / "labels.db"), 200)
    record_property("report", str(report))
    assert report.acknowledged >= 200 and report.lost == report.unsound == 0
