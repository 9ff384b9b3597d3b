"""What the store is on a PostgreSQL server: a schema of its own, and functions for logins that may not look.

Where others may create objects in a schema that a session searches, a function or an operator of theirs that fits an
argument better is called in the place of the right one, with the rights of whoever asks: so the store stands in a
schema that belongs to its owner alone, and no session or function searches any other (pg_catalog aside). A store that
was made in `public` moves there when its owner opens it. SQLite has no roles: there queue.py does what functions.sql
does here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import MAX_COMMENT, MAX_EDITS, MAX_LEASE, MAX_SECONDS
from llama2lab.annotation.store.faults import StoreError

FUNCTIONS = (Path(__file__).parent / "functions.sql").read_text(encoding="utf-8")
for _name, _bound in {"COMMENT": MAX_COMMENT, "EDITS": MAX_EDITS, "LEASE": MAX_LEASE, "SECONDS": MAX_SECONDS}.items():
    FUNCTIONS = FUNCTIONS.replace(f"@MAX_{_name}", str(_bound))
FUNCTION = re.compile(r"(CREATE OR REPLACE FUNCTION @SCHEMA\.(\w+\([^)]*\)).*?\$function\$);", re.DOTALL)
SCHEMA = "llama2lab"
NOBODYS = "pg_catalog,pg_temp"  # a search path in which nobody but the server has anything
LOCK = 20230719  # one makes a new store, the others wait
# Logins of annotators, as classroom.py names them: nothing that one of them owns is taken for the store's.
STUDENT = "^l2l_[a-z0-9]*_student_"


def ask(conn: sa.Connection, question: str, **values: Any) -> Any:
    """The first value that a query finds; None where it finds nothing."""
    return conn.execute(sa.text(question), values).scalar()


@dataclass(frozen=True)
class Found:
    """The store of a database: its schema (None: there is none), its version, who owns it, what tables there are."""

    schema: str | None
    version: str | None
    owner: str | None
    tables: frozenset[str]
    moves: bool  # whether it stands in another schema than its own, and this login may move it


def search_path(schema: str) -> str:
    """For a session's settings: the store's schema, and temporary tables last. pg_catalog comes first by itself."""
    return f'"{schema.replace(chr(34), chr(34) * 2)}",pg_temp'


def look(conn: sa.Connection) -> Found:
    """What there is, seen without trusting any object in it; the transaction's search path is nobody's afterwards."""
    conn.exec_driver_sql("SET LOCAL search_path = pg_catalog, pg_temp")
    row = conn.execute(
        sa.text(
            "SELECT n.nspname, pg_catalog.pg_get_userbyid(c.relowner) AS owner, "
            "  pg_catalog.pg_has_role(c.relowner, 'MEMBER') AS mine, "
            "  pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may, "
            "  EXISTS (SELECT 1 FROM pg_catalog.pg_namespace o WHERE o.nspname = :own "
            "          AND pg_catalog.has_schema_privilege(o.oid, 'CREATE')) AS made "
            "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relname = :version AND c.relkind = 'r' AND n.nspname !~ '^pg_' "
            "  AND pg_catalog.pg_get_userbyid(c.relowner) !~ :student "
            "  AND pg_catalog.pg_get_userbyid(n.nspowner) !~ :student "
            "ORDER BY n.nspname = :own DESC, n.nspname = session_user DESC, n.nspname = 'public' DESC, n.nspname "
            "LIMIT 1"
        ),
        {"own": SCHEMA, "version": t.VERSION_TABLE, "student": STUDENT},
    ).first()
    schema: str = row.nspname if row else SCHEMA
    names = sa.text(
        "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = :schema AND c.relkind = 'r'"
    )
    tables = frozenset(conn.execute(names, {"schema": schema}).scalars())
    if row is None:
        return Found(None, None, None, tables, False)
    quoted = conn.dialect.identifier_preparer.quote_identifier(schema)
    version = conn.exec_driver_sql(f"SELECT version_num FROM {quoted}.{t.VERSION_TABLE}").scalar()
    return Found(schema, version, row.owner, tables, schema != SCHEMA and row.mine and (row.may or row.made))


def settle(conn: sa.Connection, where: str) -> str:
    """Make the store's own schema, or move an older store into it, in the caller's transaction; the schema's name.

    Where the login may make no schema the store stays where it is, or goes to `public`: nothing is wrong with that as
    long as everybody comes with one URL. Everything after this is done as the store's owner, and in that schema only.
    """
    with conn.begin_nested() as first:  # taken back: who waits below must hold no lock that the one who moves it needs
        found = look(conn)
        first.rollback()
    quote = conn.dialect.identifier_preparer.quote_identifier
    run = conn.exec_driver_sql
    if found.schema is None:
        ask(conn, "SELECT pg_catalog.pg_advisory_xact_lock(:key)", key=LOCK)
    else:  # no annotator's login can hold this lock, as it could an advisory one
        run(f"LOCK TABLE {quote(found.schema)}.secrets IN SHARE ROW EXCLUSIVE MODE")
    found = look(conn)  # another may have done it meanwhile
    me = ask(conn, "SELECT current_user::text")
    owner = found.owner or me
    schema = found.schema
    if schema != SCHEMA:
        owned = "SELECT pg_catalog.pg_get_userbyid(nspowner) FROM pg_catalog.pg_namespace WHERE nspname = :name"
        there = ask(conn, owned, name=SCHEMA)
        may = ask(conn, "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')")
        cure = f"the database's owner gives once: CREATE SCHEMA {SCHEMA} AUTHORIZATION {quote(owner)}"
        if there is None and may:
            run(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {quote(owner)}")
            there = owner
        if there == owner:
            if schema is not None:
                _move(conn, schema, found)
            schema = SCHEMA
        elif there is not None:
            raise StoreError(
                f"{where}: the schema {SCHEMA}, which the store needs, belongs to {there}; look into it, "
                f"remove it, and {cure}"
            )
        elif schema and "members" in found.tables and run(f"SELECT 1 FROM {quote(schema)}.members LIMIT 1").scalar():
            raise StoreError(f"{where}: a class needs a schema of its own, which this login may not make; {cure}")
        else:
            schema = schema or "public"
    if owner != me:
        run(f"SET LOCAL ROLE {quote(owner)}")
    if schema == SCHEMA:
        run(f"GRANT USAGE ON SCHEMA {SCHEMA} TO PUBLIC")  # what is in it has rights of its own
    run(f"SET LOCAL search_path = {quote(schema)}, pg_temp")
    return schema


def _move(conn: sa.Connection, old: str, found: Found) -> None:
    """The tables and functions of a store from another schema into its own. What they are keeps: rights, triggers."""
    quote = conn.dialect.identifier_preparer.quote_identifier
    for table in sorted(found.tables & {*t.metadata.tables, t.VERSION_TABLE}):
        conn.exec_driver_sql(f"ALTER TABLE {quote(old)}.{quote(table)} SET SCHEMA {SCHEMA}")
    functions = sa.text(
        "SELECT p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc p "
        "JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = :old "
        "AND p.proname LIKE 'llama2lab\\_%' AND pg_catalog.pg_get_userbyid(p.proowner) = :owner"
    )
    for function in conn.execute(functions, {"old": old, "owner": found.owner}).scalars().all():
        conn.exec_driver_sql(f"ALTER FUNCTION {function} SET SCHEMA {SCHEMA}")


def install(conn: sa.Connection) -> None:
    """The functions and triggers as this version wants them, whatever was there. Class logins may call what
    classroom.py hands out; nobody else may call any. Whoever may ask for items may also hold them while saving: a class
    that was made before there was a function for that labels on."""
    quote = conn.dialect.identifier_preparer.quote_identifier
    schema = quote(ask(conn, "SELECT current_schema()"))
    for statement, signature in FUNCTION.findall(FUNCTIONS):
        # Triggers may stay: a function that is replaced keeps its identity.
        conn.exec_driver_sql(statement.replace("@SCHEMA", schema))
        conn.exec_driver_sql(f"REVOKE ALL ON FUNCTION {schema}.{signature} FROM PUBLIC")
    there = (
        "SELECT 1 FROM pg_catalog.pg_trigger WHERE tgname = :name AND tgrelid = CAST(:labels AS pg_catalog.regclass)"
    )
    for name, when, function in TRIGGERS:
        if not ask(conn, there, name=name, labels=f"{schema}.labels"):
            conn.exec_driver_sql(f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION {schema}.{function}()")
    callers = sa.text(
        "SELECT DISTINCT r.rolname FROM pg_catalog.pg_proc p CROSS JOIN LATERAL pg_catalog.aclexplode(p.proacl) a "
        "JOIN pg_catalog.pg_roles r ON r.oid = a.grantee "
        "WHERE p.pronamespace = pg_catalog.current_schema()::pg_catalog.regnamespace "
        "AND p.proname = 'llama2lab_claim' AND a.grantee <> p.proowner"
    )
    for role in conn.execute(callers).scalars().all():
        conn.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {schema}.llama2lab_hold(text, text) TO {quote(role)}")


TRIGGERS = (
    ("labels_stamp", "BEFORE INSERT ON labels FOR EACH ROW", "llama2lab_stamp"),
    ("labels_answered", "AFTER INSERT ON labels FOR EACH ROW", "llama2lab_answered"),
    ("labels_append_only", "BEFORE UPDATE OR DELETE OR TRUNCATE ON labels FOR EACH STATEMENT", "llama2lab_append_only"),
)
