"""A class on PostgreSQL: a database role for the teacher and for each name of a roster.

Who may see what is the database's rule, not our code's. An annotator's role sees the guidelines, the items that it was
given, its own slots and its own labels; it may add labels of its own, and change or remove none. The rest it reaches by
functions that answer for the caller alone (server.py). `create_class` brings an older class under these rules, too.

What remains: on gold items people learn whether they were right, after they have answered; and a login may keep the
server busy, within its own connections.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from llama2lab.annotation.store import server
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import clean_name
from llama2lab.annotation.store.engines import parse_url
from llama2lab.annotation.store.faults import StoreError, sqlstate
from llama2lab.annotation.store.roster import read_roster, read_urls, write_urls
from llama2lab.annotation.store.server import ask
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine.errors import LabError

TEACHER = "(teacher)"  # in the file of URLs; no name of a roster has brackets around it
FUNCTIONS = (
    "llama2lab_me()",
    "llama2lab_claim(text, text, double precision, text, boolean)",
    "llama2lab_waiting(text, text)",
    "llama2lab_gold(text, text)",
    "llama2lab_hold(text, text)",
    "llama2lab_renew(text, text, double precision)",
)
# Who may do what with which table: (table, rights of annotators, rights of teachers).
RIGHTS = (
    ("annotators", "SELECT", "SELECT, INSERT"),
    ("guidelines", "SELECT", "SELECT, INSERT, UPDATE"),
    ("items", "SELECT (id, kind, prompt, answer_1, answer_2, prompt_id)", "SELECT, INSERT, UPDATE (overlap)"),
    ("slots", 'SELECT (item_id, annotator_id, "left", leased_until, state)', "SELECT, INSERT, UPDATE"),
    ("labels", "SELECT, INSERT", "SELECT, INSERT"),
    ("secrets", "", "SELECT, INSERT, UPDATE"),
    ("verdicts", "", "SELECT, INSERT"),
    ("members", "", "SELECT"),
    ("codes", "", "SELECT, INSERT, UPDATE, DELETE"),
    (t.VERSION_TABLE, "SELECT", "SELECT"),
)
MINE = "annotator_id = (SELECT llama2lab_me())"
# Row-level security for annotators: (table, command, condition).
POLICIES = (
    ("annotators", "SELECT", "USING (id = (SELECT llama2lab_me()))"),
    ("guidelines", "SELECT", "USING (true)"),
    ("items", "SELECT", f"USING (EXISTS (SELECT 1 FROM slots WHERE slots.item_id = items.id AND slots.{MINE}))"),
    ("slots", "SELECT", f"USING ({MINE})"),
    ("labels", "SELECT", f"USING ({MINE})"),
    ("labels", "INSERT", f"WITH CHECK ({MINE})"),
)
# How long a student's statement or open transaction lasts. These are defaults that a login can change for itself:
# the functions of server.py wait for nobody's locks, whatever a login does.
PATIENCE = {"statement_timeout": "60s", "idle_in_transaction_session_timeout": "60s", "lock_timeout": "30s"}
CONNECTIONS = 10  # of one login at a time
# What of an administrator's URL is no business of the people of the class: who they are is in their own.
PRIVATE = (
    "user",
    "password",
    "passfile",
    "dbname",
    "service",
    "servicefile",
    "options",
    "sslcert",
    "sslkey",
    "sslpassword",
)


@dataclass(frozen=True)
class ClassReport:
    """What `create_class` did, and where the URLs are."""

    created: list[str]
    known: list[str]
    renewed: list[str]
    file: Path
    notes: Sequence[str] = ()  # what was found and mended, or could not be

    def __str__(self) -> str:
        renewed = f", {len(self.renewed)} new passwords" if self.renewed else ""
        return (
            f"{len(self.created)} new logins, {len(self.known)} were there already{renewed}; the URLs are in "
            f"{self.file}: hand each person their own line, and keep the file to yourself"
            + "".join(f"\n{note}" for note in self.notes)
        )


def create_class(
    url: str, roster: str | os.PathLike[str], out: str | os.PathLike[str] = "class-urls.csv", renew: Sequence[str] = ()
) -> ClassReport:
    """Logins for the names of a roster that have none yet, and for the teacher; their URLs go to the file `out`.

    `url` is the database's with the rights of its owner and the right to create roles. `renew` names people who lost
    their URL: they get a new password. Giving the same roster again changes nothing.
    """
    address = parse_url(url)
    if address.get_backend_name() != "postgresql":
        raise LabError(
            "a class needs a PostgreSQL server (postgresql://...): SQLite has no logins; without a server, "
            "let everybody label in a file of their own and merge the files"
        )
    names = read_roster(roster)
    again = [TEACHER if name == TEACHER else clean_name(name) for name in renew]
    file = Path(os.path.expanduser(out))
    known_urls = read_urls(file)
    with open_store(url) as store:
        try:
            return _create(store, address, names, again, file, known_urls)
        except StoreError as e:
            state = sqlstate(e.__cause__)
            if state == "55P03":
                raise StoreError(f"{e}{_who_waits(store)}", retry=True) from e
            if state == "42501":
                raise StoreError(
                    f"{store.where}: to make a class, the URL's login must own the database's tables and "
                    "have CREATEROLE; give the administrator's URL"
                ) from e
            raise


def _create(
    store: Store, address: URL, names: list[str], again: list[str], file: Path, urls: dict[str, str]
) -> ClassReport:
    before, wrote = dict(urls), False
    try:
        with store.begin() as conn:
            # Two teachers who run this at once go one after the other. No login of the class can hold this lock.
            conn.exec_driver_sql("LOCK TABLE members IN SHARE ROW EXCLUSIVE MODE")
            address = address.set(database=ask(conn, "SELECT current_database()::text"))
            notes = _strangers(conn)
            annotators, teachers = _rules(conn, address, store.where)
            roles = sa.select(t.annotators.c.name, t.members.c.role).join_from(t.annotators, t.members)
            members: dict[str, str] = dict(conn.execute(roles).tuples().all())
            created = [name for name in names if name not in members]
            unknown = [name for name in again if name not in members and name not in names and name != TEACHER]
            if unknown:
                raise LabError(f"{unknown[0]!r} has no login in this class; put the name on the roster")
            teacher = role_name(address, "teacher")
            there = ask(
                conn,
                "SELECT pg_has_role(r.oid, g.oid, 'MEMBER') FROM pg_roles r, pg_roles g "
                "WHERE r.rolname = :r AND g.rolname = :g",
                r=teacher,
                g=teachers,
            )
            if TEACHER in again or not there:
                urls[TEACHER] = _login(conn, address, teacher, teachers)
            for name in created:
                role = role_name(address, "student", name)
                urls[name] = _login(conn, address, role, annotators)
                annotator = conn.execute(sa.select(t.annotators.c.id).where(t.annotators.c.name == name)).scalar()
                if annotator is None:
                    annotator = secrets.token_hex(16)
                    conn.execute(t.annotators.insert().values(id=annotator, name=name, kind="person", vendor=""))
                conn.execute(t.members.insert().values(role=role, annotator_id=annotator))
            renewed = [name for name in again if name in members]
            for name in renewed:
                urls[name] = _login(conn, address, members[name], annotators)
            students = list(conn.execute(sa.select(t.members.c.role)).scalars())
            for role in students:
                _settings(conn, role, PATIENCE)
            _settings(conn, teacher, {})
            notes += _close(conn, address, [*students, annotators, teachers])
            # Before the commit: a password that is nowhere written down would be lost with a login that exists.
            if urls != before or not file.exists():
                write_urls(file, urls)
                wrote = True
    except BaseException:
        if wrote:
            write_urls(file, before)
        raise
    return ClassReport(created, [name for name in names if name in members], renewed, file, notes)


def role_name(address: URL, *parts: str) -> str:
    """A role of this database: short, plain letters, and unlike any other's, whatever the names hold."""
    digest = hashlib.sha256("\0".join([address.database or "", *parts]).encode()).hexdigest()[:8]
    return "_".join(["l2l", _plain(address.database or ""), *map(_plain, parts), digest])[:63]


def _plain(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "", letters)[:16]


def _rules(conn: sa.Connection, address: URL, where: str) -> tuple[str, str]:
    """Groups, their rights, and row-level security; the names of the annotators' and the teachers' group."""
    quote = conn.dialect.identifier_preparer.quote_identifier
    schema, me = conn.exec_driver_sql("SELECT current_schema()::text, current_user::text").one()
    if schema != server.SCHEMA:
        raise StoreError(
            f"{where}: the store stands in the schema {schema}, where others may put functions of their "
            "own under its names; a class needs a schema that is the store's: the database's owner gives "
            f"once: CREATE SCHEMA {server.SCHEMA} AUTHORIZATION {quote(me)}"
        )
    groups = role_name(address, "annotators"), role_name(address, "teachers")
    for group in groups:
        if not ask(conn, "SELECT 1 FROM pg_roles WHERE rolname = :name", name=group):
            conn.exec_driver_sql(f"CREATE ROLE {quote(group)} NOLOGIN")
    annotators, teachers = map(quote, groups)
    run = conn.exec_driver_sql
    server.install(conn)
    run(f"GRANT CONNECT ON DATABASE {quote(address.database or '')} TO {annotators}, {teachers}")
    run(f"REVOKE ALL ON SCHEMA {schema} FROM {annotators}, {teachers}")
    run(f"GRANT USAGE ON SCHEMA {schema} TO {annotators}, {teachers}")
    run(f"GRANT EXECUTE ON FUNCTION {', '.join(FUNCTIONS)} TO {annotators}, {teachers}")
    for table, mine, theirs in RIGHTS:
        run(f"REVOKE ALL ON {table} FROM PUBLIC, {annotators}, {teachers}")
        if mine:
            run(f"GRANT {mine} ON {table} TO {annotators}")
        run(f"GRANT {theirs} ON {table} TO {teachers}")
        if table == t.VERSION_TABLE:
            continue
        if not ask(conn, "SELECT relrowsecurity FROM pg_class WHERE oid = CAST(:table AS regclass)", table=table):
            run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        _policy(conn, "llama2lab_teachers", table, f"TO {teachers} USING (true) WITH CHECK (true)")
    for table, command, condition in POLICIES:
        _policy(conn, f"llama2lab_{command.lower()}", table, f"FOR {command} TO {annotators} {condition}")
    return groups


def _policy(conn: sa.Connection, name: str, table: str, rule: str) -> None:
    """The policy, unless it is there as this version makes it: to make one waits for every open transaction."""
    mark = "llama2lab " + hashlib.sha256(rule.encode()).hexdigest()[:16]
    there = "FROM pg_policy WHERE polname = :name AND polrelid = CAST(:table AS regclass)"
    if ask(conn, f"SELECT obj_description(oid, 'pg_policy') {there}", name=name, table=table) != mark:
        conn.exec_driver_sql(f"DROP POLICY IF EXISTS {name} ON {table}")
        conn.exec_driver_sql(f"CREATE POLICY {name} ON {table} {rule}")
        conn.exec_driver_sql(f"COMMENT ON POLICY {name} ON {table} IS '{mark}'")


def _strangers(conn: sa.Connection) -> list[str]:
    """Take away the functions and operators that logins of the class have made anywhere in this database: nothing here
    would call them, but who types SQL could. What else they own is named."""
    removed, left = [], []
    objects = conn.execute(
        sa.text(
            "SELECT pg_get_userbyid(d.refobjid)::text AS owner, o.type, o.identity FROM pg_shdepend d "
            "CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) o "
            "WHERE d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND d.deptype = 'o' "
            "AND d.refclassid = CAST('pg_authid' AS regclass) AND pg_get_userbyid(d.refobjid)::text IN "
            "(SELECT role FROM members) ORDER BY o.type DESC, o.identity"
        )
    ).all()  # operators before their functions
    for row in objects:
        what = f"{row.type} {row.identity}, made by {row.owner}"
        runs = row.type in ("operator", "function", "procedure", "aggregate")
        if runs and _tried(conn, f"DROP {row.type.upper()} {row.identity}"):
            removed.append(f"removed: {what}")
        else:
            left.append(what)
    more = " ..." if len(left) > 10 else ""
    return removed + ([f"not removed, look into it: {'; '.join(left[:10])}{more}"] if left else [])


def _tried(conn: sa.Connection, statement: str) -> bool:
    """Whether the server did it; the transaction goes on either way."""
    try:
        with conn.begin_nested():
            conn.exec_driver_sql(statement)
        return True
    except SQLAlchemyError as e:
        if sqlstate(e)[:2] in ("", "08", "57", "55"):
            raise  # no answer to the question
        return False


def _close(conn: sa.Connection, address: URL, roles: Sequence[str]) -> list[str]:
    """Nobody of the class may make objects, in `public` or elsewhere in the database: what is left of such rights."""
    quote = conn.dialect.identifier_preparer.quote_identifier
    database = quote(address.database or "")
    people = ", ".join(["PUBLIC", *map(quote, roles)])
    wanted = (
        f"REVOKE CREATE ON SCHEMA public FROM {people}",
        f"REVOKE CREATE, TEMPORARY ON DATABASE {database} FROM {people}",
    )
    for statement in wanted:
        _tried(conn, statement)
    may = conn.execute(
        sa.text(
            "SELECT coalesce(bool_or(has_schema_privilege(r.oid, n.oid, 'CREATE')), false) AS public, "
            "coalesce(bool_or(has_database_privilege(r.oid, current_database(), 'CREATE') OR "
            "has_database_privilege(r.oid, current_database(), 'TEMPORARY')), false) AS database "
            "FROM pg_roles r LEFT JOIN pg_namespace n ON n.nspname = 'public' WHERE r.rolname = ANY(:roles)"
        ),
        {"roles": list(roles)},
    ).one()
    return [
        "this login could not take away that the class may make objects beside the store (nothing here uses them); "
        f"whoever owns the {what} gives: {statement.replace(people, 'PUBLIC')}"
        for what, statement, open_ in (("schema public", wanted[0], may.public), ("database", wanted[1], may.database))
        if open_
    ]


def _who_waits(store: Store) -> str:
    """Whose open transactions stand in the way of the rules, with the cure."""
    with store.begin(read=True) as conn:
        found = conn.execute(
            sa.text(
                "SELECT DISTINCT a.usename::text AS name, l.pid FROM pg_locks l "
                "JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_class c ON c.oid = l.relation "
                "WHERE c.relnamespace = CAST(current_schema() AS regnamespace) "
                "AND l.granted AND l.pid <> pg_backend_pid() ORDER BY 1, 2 LIMIT 5"
            )
        ).all()
    return "".join(
        f"; {row.name} keeps a transaction open, end it with: SELECT pg_terminate_backend({row.pid})" for row in found
    )


def _settings(conn: sa.Connection, role: str, more: dict[str, str]) -> None:
    """A login's defaults: who types SQL finds the store, and nothing that others made under its names."""
    quoted = conn.dialect.identifier_preparer.quote_identifier(role)
    conn.exec_driver_sql(f"ALTER ROLE {quoted} SET search_path = {server.SCHEMA}, pg_temp")
    for name, value in more.items():
        conn.exec_driver_sql(f"ALTER ROLE {quoted} SET {name} = '{value}'")
    conn.exec_driver_sql(f"ALTER ROLE {quoted} CONNECTION LIMIT {CONNECTIONS}")


def _login(conn: sa.Connection, address: URL, role: str, group: str) -> str:
    """Make the login or give it a new password; its URL."""
    password = secrets.token_urlsafe(18)
    raw: Any = conn.connection.dbapi_connection
    # Hashed here, so that the password is in no log of the server.
    hashed = raw.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    quote = conn.dialect.identifier_preparer.quote_identifier
    exists = ask(conn, "SELECT 1 FROM pg_roles WHERE rolname = :name", name=role)
    conn.exec_driver_sql(
        f"{'ALTER' if exists else 'CREATE'} ROLE {quote(role)} LOGIN CONNECTION LIMIT {CONNECTIONS} PASSWORD '{hashed}'"
    )
    conn.exec_driver_sql(f"GRANT {quote(group)} TO {quote(role)}")
    return (
        address.difference_update_query(PRIVATE)
        .set(drivername="postgresql", username=role, password=password)
        .render_as_string(hide_password=False)
    )
