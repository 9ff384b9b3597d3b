"""Personal codes: who chose one is known again, who does not know it stays out, and guessing takes too long."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from test_annotation_store import labelled

from llama2lab.annotation.store import codes
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.store import open_store
from llama2lab.engine.errors import LabError


@pytest.fixture
def store(store_url: str) -> Any:
    with open_store(store_url) as opened:
        yield opened


def rows(store: Any) -> list[Any]:
    with store.begin(read=True) as conn:
        return list(conn.execute(sa.select(t.codes)))


def test_the_first_visit_chooses_and_the_next_ones_must_know(store: Any) -> None:
    who, new = codes.enter(store, "Ada  Byron", " geheim42 ")
    assert new and codes.enter(store, "Ada Byron", "geheim42") == (who, False)
    for wrong in ("geheim43", "GEHEIM42", "geheim42x", rows(store)[0].hash):
        with pytest.raises(LabError, match="not the code of 'Ada Byron'"):
            codes.enter(store, "Ada Byron", wrong)
    (kept,) = rows(store)
    assert "geheim42" not in kept.hash and kept.hash.startswith("scrypt$")
    other, new = codes.enter(store, "Bert", "geheim42")
    assert new and other != who and len({row.hash for row in rows(store)}) == 2  # salted


@pytest.mark.parametrize("code", [None, "", "   ", "abc", "aaaaaaaa", "121212", "ada byron", "Byron!"[:5], "x" * 201])
def test_codes_that_are_none(store: Any, code: Any) -> None:
    with pytest.raises(LabError, match=r"code"):
        codes.enter(store, "Ada Byron", code)
    assert rows(store) == []
    with store.begin(read=True) as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.annotators)).scalar() == 0


def test_whoever_labelled_before_chooses_at_the_next_visit(store_url: str) -> None:
    store, me = labelled(store_url)
    assert codes.enter(store, "Anna", "geheim42") == (me, True)
    with pytest.raises(LabError, match="not the code"):
        codes.enter(store, "Anna", "geheim43")


def test_a_simulated_annotators_name_is_nobodys(store: Any) -> None:
    store.annotator("vendor-1", "simulated")
    with pytest.raises(LabError, match="simulated"):
        codes.enter(store, "vendor-1", "geheim42")
    assert rows(store) == []


def test_tries_are_limited_and_time_gives_one_more(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    who, _ = codes.enter(store, "Ada", "geheim42")
    for n in range(codes.TRIES):
        with pytest.raises(LabError, match="not the code"):
            codes.enter(store, "Ada", f"guess-{n}")
    for code in ("guess-x", "geheim42"):  # the right one too: nobody learns that it is right
        with pytest.raises(LabError, match="10 minutes"):
            codes.enter(store, "Ada", code)
    start = t.now()
    monkeypatch.setattr(t, "now", lambda: start + codes.WAIT + timedelta(seconds=1))
    with pytest.raises(LabError, match="not the code"):
        codes.enter(store, "Ada", "guess-y")
    with pytest.raises(LabError, match="10 minutes"):
        codes.enter(store, "Ada", "geheim42")
    monkeypatch.setattr(t, "now", lambda: start + 3 * codes.WAIT)
    assert codes.enter(store, "Ada", "geheim42") == (who, False)
    with pytest.raises(LabError, match="not the code"):
        codes.enter(store, "Ada", "guess-z")
    assert codes.enter(store, "Ada", "geheim42") == (who, False)
    monkeypatch.undo()
    codes.enter(store, "Bert", "other-42")  # nobody else waits


def test_a_clock_that_was_set_back_locks_nobody_out(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    codes.enter(store, "Ada", "geheim42")
    future = t.now() + timedelta(days=400)
    monkeypatch.setattr(t, "now", lambda: future)
    for n in range(codes.TRIES):
        with pytest.raises(LabError):
            codes.enter(store, "Ada", f"guess-{n}")
    monkeypatch.undo()
    assert not codes.enter(store, "Ada", "geheim42")[1]


def test_many_tries_at_once_are_no_way_around_the_limit(store_url: str) -> None:
    with open_store(store_url) as store:
        codes.enter(store, "Ada", "geheim42")
        said: list[str] = []

        def guess(n: int) -> None:
            try:
                codes.enter(store, "Ada", f"guess-{n}")
            except LabError as e:
                said.append(str(e))

        threads = [threading.Thread(target=guess, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum("not the code" in one for one in said) == codes.TRIES and len(said) == 12


def test_two_first_visits_at_once_leave_one_code(store_url: str) -> None:
    with open_store(store_url) as store:
        ends: list[Any] = []

        def first(code: str) -> None:
            try:
                ends.append(codes.enter(store, "Ada", code))
            except LabError as e:
                ends.append(str(e))

        threads = [threading.Thread(target=first, args=(f"geheim-{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(isinstance(one, tuple) and one[1] for one in ends) == 1 and len(rows(store)) == 1


def test_a_lost_code_is_made_anew(store: Any) -> None:
    who, _ = codes.enter(store, "Ada", "geheim42")
    codes.forget(store, " Ada ")
    with pytest.raises(LabError, match="no code"):
        codes.forget(store, "Ada")
    assert codes.enter(store, "Ada", "another-1") == (who, True)


@pytest.mark.parametrize("damaged", ["", "x", "scrypt$zz$00", "scrypt$00", "scrypt$00$é"])
def test_a_damaged_hash_is_nobodys_code(store: Any, damaged: str) -> None:
    codes.enter(store, "Ada", "geheim42")
    with store.begin() as conn:
        conn.execute(t.codes.update().values(hash=damaged))
    with pytest.raises(LabError, match="not the code"):
        codes.enter(store, "Ada", "geheim42")
    codes.forget(store, "Ada")
    assert codes.enter(store, "Ada", "geheim42")[1]


def test_an_older_class_keeps_its_teacher_and_its_students_out(postgres: Any, tmp_path: Any) -> None:
    """A class made before there were codes: after the upgrade the teacher's login may use them, a student's may not."""
    from llama2lab.annotation.store import classroom, migrations
    from llama2lab.annotation.store.engines import parse_url

    url = postgres.create("older_class")
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as conn:
        migrations.upgrade(conn, "0002")
        conn.exec_driver_sql("CREATE ROLE older_teachers; GRANT SELECT, INSERT ON secrets TO older_teachers")
        conn.exec_driver_sql(
            "CREATE ROLE older_annotators; GRANT SELECT, INSERT ON labels TO older_annotators; GRANT EXECUTE ON "
            "FUNCTION llama2lab_claim(text, text, double precision, text, boolean) TO older_annotators"
        )
    engine.dispose()
    with open_store(url) as store, store.begin() as conn:
        for role, allowed in (("older_teachers", True), ("older_annotators", False)):
            may = conn.execute(sa.text("SELECT has_table_privilege(:r, 'codes', 'SELECT')"), {"r": role}).scalar()
            assert may is allowed, role
        for role in ("older_annotators", "older_teachers"):  # who could save a label before can do so now
            may = conn.execute(
                sa.text("SELECT has_function_privilege(:r, 'llama2lab_hold(text, text)', 'EXECUTE')"), {"r": role}
            ).scalar()
            assert may is (role == "older_annotators")
    roster = tmp_path / "names.txt"
    roster.write_text("Ada\n")
    classroom.create_class(url, roster, tmp_path / "urls.csv")
    urls = classroom.read_urls(tmp_path / "urls.csv")
    with open_store(urls[classroom.TEACHER]) as store:
        assert codes.enter(store, "Bert", "geheim42")[1]
        codes.forget(store, "Bert")
        with pytest.raises(LabError, match="'Ada' has a login of the class"):
            codes.enter(store, "Ada", "geheim42")
    with open_store(urls["Ada"]) as store, pytest.raises(LabError, match="may not"), store.begin(read=True) as conn:
        conn.execute(sa.select(t.codes))
