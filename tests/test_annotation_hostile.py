"""A class login that means harm: what it makes is run by nobody else, what it holds stops nobody, what it sends has
bounds; and a database that an older version made is brought under the same rules."""

import contextlib
import threading
import time

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from test_annotation_classroom import ROSTER, Class, insert
from test_annotation_queue import answer
from test_annotation_store import pairs

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.files.merging import merge
from llama2lab.annotation.store import migrations, queue, server
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import MAX_COMMENT, MAX_EDITS, MAX_LEASE
from llama2lab.annotation.store.classroom import TEACHER, create_class
from llama2lab.annotation.store.engines import parse_url
from llama2lab.annotation.store.faults import StoreError
from llama2lab.annotation.store.store import open_store
from llama2lab.engine.errors import LabError

SIGNATURES = {
    "me": [],
    "allow": ["text"],
    "free": ["text"] * 2,
    "waiting": ["text"] * 2,
    "gold": ["text"] * 2,
    "left": ["text"] * 3,
    "hold": ["text"] * 2,
    "claim": ["text", "text", "float8", "text", "bool"],
    "renew": ["text", "text", "float8"],
    "until": ["float8"],
}
COLUMNS = "id, item_id, annotator_id, choice, grade, comment, flag, seconds, created_at"


def functions_in_public(conn):
    return conn.execute("SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace").fetchone()[0]


@pytest.fixture
def room(postgres, tmp_path):
    made = Class(postgres, tmp_path)
    yield made
    made.admin.close()


def connect(room, name):
    return psycopg.connect(room.urls[name], autocommit=True)


def as_admin(room, *statements):
    with psycopg.connect(room.admin_url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)


def open_up(room):
    """As databases were up to PostgreSQL 14, and more."""
    database = parse_url(room.admin_url).database
    as_admin(
        room, "GRANT CREATE ON SCHEMA public TO PUBLIC", f"GRANT CREATE, TEMPORARY ON DATABASE {database} TO PUBLIC"
    )


def set_traps(conn, schema="public"):
    """Whatever the library's statements could call by mistake, in this schema; each trap writes down who ran it."""
    conn.execute(f"CREATE TABLE {schema}.loot (who text, trap text)")
    conn.execute(f"GRANT INSERT, SELECT ON {schema}.loot TO PUBLIC")
    conn.execute(f"GRANT USAGE ON SCHEMA {schema} TO PUBLIC")

    def trap(name, arguments, returns):
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):  # the store's own, where it stands in `public`
            conn.execute(
                f"CREATE OR REPLACE FUNCTION {schema}.{name}({', '.join(arguments)}) RETURNS {returns} "
                f"LANGUAGE plpgsql AS $$ BEGIN INSERT INTO {schema}.loot VALUES (current_user, '{name}'); "
                "RETURN NULL; END $$"
            )

    for name, arguments in SIGNATURES.items():
        for wanted in ("text", "varchar", "bpchar", "name"):
            trap(f"llama2lab_{name}", [wanted if a == "text" else a for a in arguments], "text")
        trap(f"llama2lab_{name}", ["numeric" if a == "float8" else a for a in arguments], "text")
        if "text" in arguments:
            trap(f"llama2lab_{name}", ["anyelement" if a == "text" else a for a in arguments], "text")
    for name in (
        "lower",
        "length",
        "md5",
        "count",
        "max",
        "min",
        "strpos",
        "decode",
        "has_table_privilege",
        "current_schema",
        "hashtextextended",
        "now",
        "clock_timestamp",
        "obj_description",
    ):
        for one in ("varchar", "bpchar"):
            trap(name, [one], "text")
            trap(name, [one, one], "text")
    for left in ("varchar", "text", "name", "bpchar"):
        for right in ("varchar", "text", "name", "bpchar"):
            trap(f"eq_{left}", [left, right], "bool")
            for operator in ("=", "<>", "<", ">", "~", "!~", "||", "~~"):
                conn.execute(
                    f"CREATE OPERATOR {schema}.{operator} (LEFTARG = {left}, RIGHTARG = {right}, "
                    f"FUNCTION = {schema}.eq_{left})"
                )
    for left, right in (
        ("int4", "numeric"),
        ("int4", "int8"),
        ("timestamptz", "timestamp"),
        ("float8", "numeric"),
        ("float8", "int4"),
        ("timestamptz", "text"),
        ("bool", "text"),
    ):
        trap(f"eq_{left}", [left, right], "bool")
        for operator in ("=", "<", ">", ">=", "<=", "<@@"):
            conn.execute(
                f"CREATE OPERATOR {schema}.{operator} (LEFTARG = {left}, RIGHTARG = {right}, "
                f"FUNCTION = {schema}.eq_{left})"
            )
    conn.execute(f"CREATE TYPE {schema}.varchar AS (x int)")
    conn.execute(f"CREATE DOMAIN {schema}.text AS int")


def loot(room, schema="public"):
    with psycopg.connect(room.admin_url) as conn:
        return set(conn.execute(f"SELECT * FROM {schema}.loot").fetchall())


def everyday(store, name=None):
    """All that the library asks of a server, under an annotator's login or the teacher's."""
    if name is None:
        name = "Guest of the teacher"
        add_pairs(store, pairs(3, start=300), overlap=2)
        store.add_guidelines("helpfulness", "fairer")
        store.labels()
    assert store.login() in (name, None)
    me = store.annotator(name)
    store.guidelines("helpfulness")
    answer(store, me, 2)
    answer(store, me, 1, gold_first=True)
    task = queue.next_task(store, me, kind="helpfulness")
    assert queue.renew(store, me, task.item_id)
    queue.skip(store, me, task.item_id, "no")
    queue.submit(store, me, queue.history(store, me)[0].task.item_id, "right", "slightly")
    assert queue.progress(store, me).done == 3 and queue.qualify(store, me).done >= 1


def test_what_one_login_makes_is_run_by_nobody_else(room, tmp_path):
    open_up(room)
    with connect(room, "Anna") as anna:
        set_traps(anna)
        anna.execute("SET search_path = public")
        anna.execute("SELECT public.llama2lab_claim('a'::varchar, 'b'::varchar, 1::float8, 'c'::varchar, true)")
        assert [trap for _, trap in loot(room)] == ["llama2lab_claim"]  # the traps are live
        anna.execute("DELETE FROM public.loot")
        teacher = parse_url(room.urls[TEACHER]).username
        for schema in (teacher, "aaa", parse_url(room.admin_url).username):  # "$user" of the others
            anna.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            anna.execute(
                sql.SQL("CREATE TABLE {}.llama2lab_version AS SELECT '0004'::pg_catalog.varchar AS version_num").format(
                    sql.Identifier(schema)
                )
            )
            anna.execute(sql.SQL("GRANT ALL ON SCHEMA {} TO PUBLIC").format(sql.Identifier(schema)))
    everyday(room.admin)  # was open before
    with open_store(tmp_path / "other.db") as other:
        add_pairs(other, pairs(3))
        answer(other, other.annotator("At Home"), 3)
    for name in (*ROSTER[1:3], TEACHER):
        with room.open(name) as store:
            if name == TEACHER:
                add_pairs(store, pairs(6, start=400))
                assert len(store.labels()) == 4 * 3
                assert merge(store, [tmp_path / "other.db"]).labels == 3
            else:
                everyday(store, name)
    with open_store(room.admin_url) as admin:
        admin.labels()
    with connect(room, ROSTER[1]) as conn:  # who types SQL under a login is safe as well
        conn.execute("SELECT llama2lab_waiting(llama2lab_me(), NULL), llama2lab_gold(llama2lab_me()::varchar, NULL)")
        conn.execute("SELECT * FROM labels WHERE annotator_id = llama2lab_me()")
    create_class(room.admin_url, room.roster, room.file)
    assert loot(room) == set()


def test_making_the_class_again_takes_such_things_away_and_names_them(room):
    open_up(room)
    with connect(room, "Anna") as anna:
        set_traps(anna)
    report = create_class(room.admin_url, room.roster, room.file)
    role = parse_url(room.urls["Anna"]).username
    said = str(report)
    assert "removed: function public.llama2lab_claim(" in said and f"made by {role}" in said
    assert "removed: operator public.=(" in said and "not removed, look into it" in said and "table public.loot" in said
    with psycopg.connect(room.admin_url) as conn:
        assert functions_in_public(conn) == 0
        assert conn.execute(
            "SELECT count(*) FROM pg_operator WHERE oprnamespace = 'public'::regnamespace"
        ).fetchone() == (0,)
    with connect(room, "Anna") as anna:
        for statement in (
            "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE SCHEMA mine",
            "CREATE TEMP TABLE members (role text)",
            "CREATE TABLE public.x (y int)",
            "CREATE TYPE public.x AS (y int)",
            "CREATE TABLE llama2lab.x (y int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                anna.execute(statement)
        anna.execute("DROP TABLE public.loot")
    again = create_class(room.admin_url, room.roster, room.file)
    assert "public.loot" not in str(again) and "removed: f" not in str(again)


def test_an_owner_who_may_not_close_public_says_who_may(postgres, tmp_path):
    """As on PostgreSQL 14: the schema `public` is the superuser's, the database the teacher's."""
    url = postgres.create("theirs")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE ROLE owner_14 LOGIN CREATEROLE PASSWORD 'x'")
        conn.execute("ALTER DATABASE theirs OWNER TO owner_14")
        conn.execute("ALTER SCHEMA public OWNER TO teacher_admin")
        conn.execute("GRANT ALL ON SCHEMA public TO PUBLIC")
    mine = parse_url(url).set(drivername="postgresql", username="owner_14", password="x").render_as_string(False)
    (tmp_path / "roster.txt").write_text("Anna\n")
    said = str(create_class(mine, tmp_path / "roster.txt", tmp_path / "urls.csv"))
    assert "whoever owns the schema public gives: REVOKE CREATE ON SCHEMA public FROM PUBLIC" in said
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    assert "REVOKE" not in str(create_class(mine, tmp_path / "roster.txt", tmp_path / "urls.csv"))


def test_who_may_make_no_schema_may_keep_a_store_but_no_class(postgres, tmp_path):
    url = postgres.create("guest")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE ROLE guest LOGIN CREATEROLE PASSWORD 'x'")
        conn.execute("GRANT ALL ON SCHEMA public TO guest")
    mine = parse_url(url).set(drivername="postgresql", username="guest", password="x").render_as_string(False)
    (tmp_path / "roster.txt").write_text("Anna\n")
    with open_store(mine) as store:
        add_pairs(store, pairs(3))
        answer(store, store.annotator("Anna"), 2)
    with pytest.raises(StoreError, match='CREATE SCHEMA llama2lab AUTHORIZATION "guest"'):
        create_class(mine, tmp_path / "roster.txt", tmp_path / "urls.csv")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA llama2lab AUTHORIZATION guest")
    with open_store(mine) as store:  # it moves, and what it calls moves with it
        answer(store, store.annotator("Anna"), 1)
    assert create_class(mine, tmp_path / "roster.txt", tmp_path / "urls.csv").created == ["Anna"]
    with open_store(mine) as store:
        assert len(store.labels()) == 3


def test_a_schema_of_the_stores_name_that_is_another_s_is_not_used(postgres):
    url = postgres.create("squatted")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE ROLE l2l_squatted_student_eve_1 LOGIN")
        conn.execute("CREATE SCHEMA llama2lab AUTHORIZATION l2l_squatted_student_eve_1")
    with pytest.raises(StoreError, match="belongs to l2l_squatted_student_eve_1"):
        open_store(url)


def test_a_class_that_an_older_version_made_is_repaired_and_loses_nothing(postgres, tmp_path):
    url = postgres.create("old")
    engine = sa.create_engine(parse_url(url))
    moment = t.now()
    with engine.begin() as conn:  # as it was made up to migration 0002: everything in `public`
        migrations.upgrade(conn, "0002")
        conn.execute(t.annotators.insert().values(id="a", name="Anna", kind="person", vendor="", created_at=moment))
        conn.execute(sa.text("CREATE ROLE l2l_old_student_anna_1 LOGIN PASSWORD 'x'"))
        conn.execute(t.members.insert().values(role="l2l_old_student_anna_1", annotator_id="a"))
        conn.execute(
            t.items.insert().values(
                id="i",
                kind="helpfulness",
                prompt=[{"role": "user", "content": "Q"}],
                answer_1="x",
                answer_2="y",
                prompt_id="",
                overlap=1,
                position=1,
            )
        )
        conn.execute(t.secrets.insert().values(item_id="i"))
        conn.execute(
            t.slots.insert().values(
                item_id="i", number=1, position=1, annotator_id="a", left=2, state="leased", leased_until=moment
            )
        )
        conn.execute(t.labels.insert().values(id="l", item_id="i", annotator_id="a", choice=1, grade="better", left=2))
        conn.exec_driver_sql("GRANT CREATE ON SCHEMA public TO PUBLIC")
        conn.exec_driver_sql("CREATE TABLE notes (x int)")  # somebody else's, and none of our business
    engine.dispose()
    student = parse_url(url).set(drivername="postgresql", username="l2l_old_student_anna_1", password="x")
    with pytest.raises(StoreError, match=r"not set up for this version|may not do that"):
        open_store(student.render_as_string(False))
    with psycopg.connect(student.render_as_string(False), autocommit=True) as conn:
        set_traps(conn)
        conn.execute("BEGIN")
        conn.execute("SELECT pg_advisory_xact_lock(20230719), pg_advisory_xact_lock(20230720)")
        (tmp_path / "roster.txt").write_text("Anna\nBert\n")
        report = create_class(url, tmp_path / "roster.txt", tmp_path / "urls.csv", renew=["Anna"])
    assert report.created == ["Bert"] and report.renewed == ["Anna"] and "removed: function public." in str(report)
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT * FROM public.loot").fetchall() == []
        left = conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        )
        assert {name for (name,) in left} == {"notes", "loot"}
        assert functions_in_public(conn) == 0
        for name, config in conn.execute("SELECT proname, proconfig FROM pg_proc WHERE proname LIKE 'llama2lab%'"):
            assert "search_path=llama2lab, pg_temp" in [c.replace('"', "") for c in config], name
    with open_store(url) as store:
        assert [x["label_id"] for x in store.labels()] == ["l"]
        add_pairs(store, pairs(8))
        with open_store(dict(line.split(",") for line in (tmp_path / "urls.csv").read_text().split())["Anna"]) as anna:
            assert queue.history(anna, "a")[0].label.side == "right"
            answer(anna, "a", 2)
        with pytest.raises(StoreError, match="may not do that"), store.begin() as conn:
            conn.exec_driver_sql("DELETE FROM labels")


def test_many_who_open_an_older_store_at_once_all_get_it(postgres):
    """As the pages of `annotate` do after an upgrade: one moves the store, nobody is in its way."""
    url = postgres.create("older_at_once")
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as conn:
        migrations.upgrade(conn, "0002")
    engine.dispose()
    said = []

    def open_it(number):
        try:
            with open_store(url) as store:
                said.append(len(store.annotator(f"P{number}")))
        except LabError as e:
            said.append(e)

    threads = [threading.Thread(target=open_it, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [32] * 6


def test_temporary_tables_and_settings_of_ones_own_change_nobody(room):
    open_up(room)
    zoe = room.admin.annotator("Zoë Müller")
    with room.open("Anna") as store:
        me = store.annotator("Anna")
        item = queue.next_task(store, me).item_id
    with connect(room, "Anna") as conn:
        conn.execute(f"CREATE TEMP TABLE members AS SELECT session_user::text AS role, '{zoe}'::text AS annotator_id")
        conn.execute("CREATE TEMP TABLE secrets (item_id text)")
        conn.execute("SET search_path = pg_temp, public")
        assert conn.execute("SELECT llama2lab.llama2lab_me()").fetchone() == (me,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT llama2lab.llama2lab_claim(%s, '0', 900, NULL, false)", [zoe])
        conn.execute("SET search_path = llama2lab")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            insert(conn, "forged", item, zoe)


def test_urls_of_a_class_hold_nothing_of_the_administrators(postgres, tmp_path):
    plain = parse_url(postgres.create("query"))
    url = plain.set(drivername="postgresql", username=None, password=None, database=None).update_query_dict(
        {"user": plain.username, "password": plain.password, "dbname": "query", "sslmode": "prefer"}
    )
    (tmp_path / "roster.txt").write_text("Anna\n")
    create_class(url.render_as_string(False), tmp_path / "roster.txt", tmp_path / "urls.csv")
    text = (tmp_path / "urls.csv").read_text()
    assert plain.password not in text and "teacher_admin" not in text and "sslmode=prefer" in text
    for line in text.split()[1:]:
        open_store(line.split(",")[1]).close()


# What a login holds stops nobody


def timed(work):
    """Seconds and result. A lock that does not come ends as an error, after 30 s or more with all tries."""
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


def test_an_open_transaction_on_a_claim_stops_nobody(room, tmp_path):
    with connect(room, "Anna") as conn:
        me = conn.execute("SELECT llama2lab_me()").fetchone()[0]
        conn.execute("SET idle_in_transaction_session_timeout = 0")
        conn.execute("BEGIN")
        for gold_first in (True, False):
            (item,) = conn.execute("SELECT llama2lab_claim(%s, '0', 900, NULL, %s)", [me, gold_first]).fetchone()
            insert(conn, f"open{gold_first}", item, me)
        conn.execute("SELECT llama2lab_claim(%s, '0', 900, NULL, false)", [me])
        conn.execute("SELECT pg_advisory_lock(20230719), pg_advisory_lock(20230720)")
        conn.execute("LOCK TABLE labels, annotators, guidelines IN ACCESS SHARE MODE")
        for name in ROSTER[1:3]:

            def work(name=name):
                with room.open(name) as store:
                    mine = store.annotator(name)
                    answer(store, mine, 2, gold_first=True)
                    answer(store, mine, 2)
                    return queue.progress(store, mine).done

            seconds, done = timed(work)
            assert done == 4 and seconds < 12  # four claims, which look three seconds for a last item
        with open_store(tmp_path / "other.db") as other:
            add_pairs(other, pairs(8))
            answer(other, other.annotator("At Home"), 8)
        with room.open(TEACHER) as store:
            seconds, counts = timed(lambda: merge(store, [tmp_path / "other.db"]))
            assert counts.labels == 8 and seconds < 25
        seconds, report = timed(lambda: create_class(room.admin_url, room.roster, room.file))
        assert report.known == ROSTER and seconds < 25
        conn.execute("ROLLBACK")


def test_the_last_item_in_an_open_transaction_is_waited_for_briefly(room):
    with room.admin.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE slots SET state = 'done', annotator_id = (SELECT min(id) FROM annotators) "
            "WHERE (item_id, number) <> (SELECT item_id, number FROM slots ORDER BY 1, 2 LIMIT 1) "
            "AND number = 1"
        )
        conn.exec_driver_sql("DELETE FROM slots WHERE state = 'free' AND number > 1")
        conn.exec_driver_sql("UPDATE secrets SET gold_choice = NULL")
    with connect(room, "Anna") as conn, room.open("Zoë Müller") as store:
        conn.execute("SET idle_in_transaction_session_timeout = 0")
        conn.execute("BEGIN")
        conn.execute("SELECT llama2lab_claim(llama2lab_me(), '0', 900, NULL, false)")
        zoe = store.annotator("Zoë Müller")
        seconds, task = timed(lambda: queue.next_task(store, zoe))
        assert task is None and seconds < 25  # it is three
        conn.execute("ROLLBACK")
        assert queue.next_task(store, zoe) is not None


def test_an_item_that_ran_out_and_is_being_taken_does_not_hold_its_old_owner_up(room):
    with room.open("Zoë Müller") as store:
        zoe = store.annotator("Zoë Müller")
        first = queue.next_task(store, zoe, lease_seconds=0.01).item_id
        time.sleep(0.05)
        with connect(room, "Anna") as conn:
            conn.execute("SET idle_in_transaction_session_timeout = 0")
            conn.execute("BEGIN")
            taken = conn.execute("SELECT llama2lab_claim(llama2lab_me(), '0', 900, NULL, false)").fetchone()[0]
            assert taken == first
            seconds, task = timed(lambda: queue.next_task(store, zoe))
            assert task.item_id != first and seconds < 25
            with pytest.raises(StoreError) as caught:  # whose it is will be known when the other ends
                queue.submit(store, zoe, first, "left", "better")
            assert caught.value.retry
            conn.execute("ROLLBACK")
        queue.submit(store, zoe, first, "left", "better")


def test_open_transactions_of_students_end_by_themselves_and_who_is_in_the_way_is_named(room, monkeypatch):
    with connect(room, "Anna") as conn:
        shown = {
            name: conn.execute(f"SHOW {name}").fetchone()[0]
            for name in ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout", "search_path")
        }
        assert shown == {
            "statement_timeout": "1min",
            "idle_in_transaction_session_timeout": "1min",
            "lock_timeout": "30s",
            "search_path": "llama2lab, pg_temp",
        }
        monkeypatch.setattr("llama2lab.annotation.store.engines.BUSY_SECONDS", 1)
        with room.admin.begin() as admin:
            admin.exec_driver_sql("COMMENT ON POLICY llama2lab_select ON labels IS 'of another version'")
        conn.execute("BEGIN")
        conn.execute("SELECT count(*) FROM labels")
        with pytest.raises(StoreError, match=r"student_anna_\w+ keeps a transaction open.*pg_terminate_backend\(\d+\)"):
            create_class(room.admin_url, room.roster, room.file)
    assert create_class(room.admin_url, room.roster, room.file).known == ROSTER


# What a login sends has bounds


@pytest.mark.parametrize("lease", ["1e9", "-1e9", "'NaN'", "'Infinity'", "'-Infinity'", "NULL", "86400.1"])
def test_a_lease_has_bounds(room, lease):
    with connect(room, "Anna") as conn:
        for call in (
            f"llama2lab_claim(llama2lab_me(), '0', {lease}, NULL, false)",
            f"llama2lab_renew(llama2lab_me(), item_id, {lease}) FROM slots",
        ):
            conn.execute("SELECT llama2lab_claim(llama2lab_me(), '0', 900, NULL, false)")
            with pytest.raises(psycopg.errors.InvalidParameterValue, match="a lease is at most"):
                conn.execute(f"SELECT {call}")


@pytest.mark.parametrize("lease", [1e9, -1e9, float("nan"), float("inf"), MAX_LEASE + 1])
def test_a_lease_has_bounds_in_python(store_url, lease):
    with open_store(store_url) as store:
        add_pairs(store, pairs(1))
        me = store.annotator("Anna")
        with pytest.raises(LabError, match="at most 86,400 seconds"):
            queue.next_task(store, me, lease_seconds=lease)
        item = queue.next_task(store, me).item_id
        with pytest.raises(LabError, match="at most 86,400 seconds"):
            queue.renew(store, me, item, lease)


@pytest.mark.parametrize(
    "values",
    [
        {"comment": "x" * (MAX_COMMENT + 1)},
        {"comment": "x" * 200_000_000},
        {"seconds": 1e10},
        {"seconds": "Infinity"},
        {"seconds": "NaN"},
        {"choice": None, "grade": None, "skip_reason": "x" * (MAX_COMMENT + 1)},
        {"choice": None, "grade": None, "skip_reason": " \n"},
        {"choice": None, "grade": None, "skip_reason": ""},
    ],
    ids=lambda v: str(v)[:30],
)
def test_what_a_login_may_write_has_bounds(room, values):
    with room.open("Anna") as store:
        me = store.annotator("Anna")
        item = queue.next_task(store, me).item_id
    with connect(room, "Anna") as conn, pytest.raises(psycopg.errors.CheckViolation):
        insert(conn, "odd", item, me, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"comment": "x" * (MAX_COMMENT + 1)},
        {"comment": "\0" * (MAX_COMMENT // 4)},
        {"seconds": 1e10},
        {"seconds": float("inf")},
    ],
    ids=lambda v: str(v)[:20],
)
def test_what_python_saves_has_bounds(store_url, values):
    with open_store(store_url) as store:
        add_pairs(store, pairs(2))
        me = store.annotator("Anna")
        item = queue.next_task(store, me).item_id
        with pytest.raises(LabError, match=r"at most|from 0 to"):
            queue.submit(store, me, item, "left", "better", **values)
        with pytest.raises(LabError, match="reason has at most"):
            queue.skip(store, me, item, "x" * (MAX_COMMENT + 1))
        queue.submit(store, me, item, "left", "better", comment="x" * MAX_COMMENT)


def test_labels_supersede_in_no_circle_and_not_without_end(room):
    with room.open("Anna") as store:
        me = store.annotator("Anna")
        item = queue.next_task(store, me).item_id
    with connect(room, "Anna") as conn:
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            insert(conn, "self", item, me, supersedes="self")
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            conn.execute(
                f"INSERT INTO labels ({COLUMNS}, supersedes) VALUES "
                "('a', %s, %s, 1, 'better', '', false, 0, now(), 'b'), "
                "('b', %s, %s, 1, 'better', '', false, 0, now(), 'a')",
                [item, me, item, me],
            )
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute(
                f"INSERT INTO labels ({COLUMNS}) SELECT 'x' || n, %s, %s, 1, 'better', '', false, 0, now() "
                f"FROM generate_series(0, {MAX_EDITS}) n",
                [item, me],
            )
        assert conn.execute("SELECT count(*) FROM labels").fetchone() == (0,)


def test_a_login_cannot_choose_the_guidelines_or_the_time_of_its_labels(room):
    room.admin.add_guidelines("safety", "another kind's")
    with room.open("Anna") as store:
        me = store.annotator("Anna")
        item = queue.next_task(store, me).item_id
        wanted = store.guidelines("helpfulness")[0]
        other = store.guidelines("safety")[0]
    with connect(room, "Anna") as conn:
        insert(conn, "mine", item, me, guidelines=other, created_at="9999-01-01T00:00:00Z")
    (label,) = room.admin.labels()
    assert label["guidelines"] == wanted and abs((label["created_at"] - t.now()).total_seconds()) < 600


def test_the_class_labels_while_one_login_floods(room):
    """Statements of one login that fail again and again leave the others their queue."""
    stop = threading.Event()

    def flood():
        with connect(room, "Anna") as conn:
            me = conn.execute("SELECT llama2lab_me()").fetchone()[0]
            while not stop.is_set():
                conn.execute("BEGIN")
                conn.execute("SELECT llama2lab_claim(%s, '0', 900, NULL, false)", [me])
                time.sleep(0.1)
                conn.execute("ROLLBACK")

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        with room.open("Zoë Müller") as store:
            seconds, done = timed(lambda: answer(store, store.annotator("Zoë Müller"), 5))
            assert len(done) == 5 and seconds < 60
    finally:
        stop.set()
        thread.join()


def test_the_servers_schema_is_in_no_other_sessions_reach(room):
    assert server.search_path('odd "name" here') == '"odd ""name"" here",pg_temp'
    with room.open("Anna") as store, store.begin(read=True) as conn:
        assert conn.exec_driver_sql("SHOW search_path").scalar() == '"llama2lab",pg_temp'
