"""What the store is on a PostgreSQL server: a schema of its own, and functions for logins that may not look.

Where others may create objects in a schema that a session searches, a function or an operator of theirs that fits an
argument better than the right one is called in its place, with the rights of whoever asks: so the store's tables and
functions stand in a schema `llama2lab` that belongs to their owner alone, and neither the library's sessions nor the
functions search any other (pg_catalog aside). A store that was made in `public` moves there when its owner opens it.

An annotator's role sees its own slots and labels only. To be given an item, to count what waits, and to hear how it
fared on gold items, it calls these functions, which run with their owner's rights and answer for the caller alone.
SQLite has no roles: there queue.py does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import MAX_COMMENT, MAX_EDITS, MAX_LEASE, MAX_SECONDS
from llama2lab.annotation.store.faults import StoreError

SCHEMA = "llama2lab"
NOBODYS = "pg_catalog,pg_temp"  # a search path in which nobody but the server has anything
LOCK = 20230719  # one makes a new store, the others wait
# Logins of annotators, as classroom.py names them: nothing that one of them owns is taken for the store's.
STUDENT = "^l2l_[a-z0-9]*_student_"


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
    row = conn.execute(sa.text(
        "SELECT n.nspname, pg_catalog.pg_get_userbyid(c.relowner) AS owner, "
        "  pg_catalog.pg_has_role(c.relowner, 'MEMBER') AS mine, "
        "  pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may, "
        "  EXISTS (SELECT 1 FROM pg_catalog.pg_namespace o WHERE o.nspname = :own "
        "          AND pg_catalog.has_schema_privilege(o.oid, 'CREATE')) AS made "
        "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relname = :version AND c.relkind = 'r' AND n.nspname !~ '^pg_' "
        "  AND pg_catalog.pg_get_userbyid(c.relowner) !~ :student "
        "  AND pg_catalog.pg_get_userbyid(n.nspowner) !~ :student "
        "ORDER BY n.nspname = :own DESC, n.nspname = session_user DESC, n.nspname = 'public' DESC, n.nspname LIMIT 1"),
        {"own": SCHEMA, "version": t.VERSION_TABLE, "student": STUDENT}).first()
    schema: str | None = row.nspname if row else None
    tables = frozenset(conn.execute(sa.text(
        "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = :schema AND c.relkind = 'r'"), {"schema": schema or SCHEMA}).scalars())
    if row is None or schema is None:
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
        conn.execute(sa.text("SELECT pg_catalog.pg_advisory_xact_lock(:key)"), {"key": LOCK})
    else:  # no annotator's login can hold this lock, as it could an advisory one
        run(f"LOCK TABLE {quote(found.schema)}.secrets IN SHARE ROW EXCLUSIVE MODE")
    found = look(conn)  # another may have done it meanwhile
    me = run("SELECT current_user::text").scalar_one()
    owner = found.owner or me
    schema = found.schema
    if schema != SCHEMA:
        there = conn.execute(sa.text(
            "SELECT pg_catalog.pg_get_userbyid(nspowner) FROM pg_catalog.pg_namespace WHERE nspname = :name"),
            {"name": SCHEMA}).scalar()
        may = conn.execute(sa.text("SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')")
                           ).scalar()
        cure = f'the database\'s owner gives once: CREATE SCHEMA {SCHEMA} AUTHORIZATION {quote(owner)}'
        if there is None and may:
            run(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {quote(owner)}")
            there = owner
        if there == owner:
            _move(conn, schema, found)
            schema = SCHEMA
        elif there is not None:
            raise StoreError(f"{where}: the schema {SCHEMA}, which the store needs, belongs to {there}; look into it, "
                             f"remove it, and {cure}")
        elif schema is not None and "members" in found.tables and run(
                f"SELECT EXISTS (SELECT 1 FROM {quote(schema)}.members)").scalar():
            raise StoreError(f"{where}: a class needs a schema of its own, which this login may not make; {cure}")
        else:
            schema = schema or "public"
    if owner != me:
        run(f"SET LOCAL ROLE {quote(owner)}")
    if schema == SCHEMA:
        run(f"GRANT USAGE ON SCHEMA {SCHEMA} TO PUBLIC")  # what is in it has rights of its own
    run(f"SET LOCAL search_path = {quote(schema)}, pg_temp")
    return schema


def _move(conn: sa.Connection, old: str | None, found: Found) -> None:
    """The tables and functions of a store from another schema into its own. What they are keeps: rights, triggers."""
    if old is None:
        return
    quote = conn.dialect.identifier_preparer.quote_identifier
    for table in sorted(found.tables & {*t.metadata.tables, t.VERSION_TABLE}):
        conn.exec_driver_sql(f"ALTER TABLE {quote(old)}.{quote(table)} SET SCHEMA {SCHEMA}")
    for function in conn.execute(sa.text(
            "SELECT p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc p "
            "JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = :old "
            "AND p.proname LIKE 'llama2lab\\_%' AND pg_catalog.pg_get_userbyid(p.proowner) = :owner"),
            {"old": old, "owner": found.owner}).scalars().all():
        conn.exec_driver_sql(f"ALTER FUNCTION {function} SET SCHEMA {SCHEMA}")


def install(conn: sa.Connection) -> None:
    """The functions and triggers as this version wants them, whatever was there. Class logins may call what
    classroom.py hands out; nobody else may call any. Whoever may ask for items may also hold them while saving: a class
    that was made before there was a function for that labels on."""
    schema = conn.dialect.identifier_preparer.quote_identifier(
        conn.exec_driver_sql("SELECT current_schema()").scalar_one())
    for signature, returns, options, body in FUNCTIONS:
        # Triggers may stay: a function that is replaced keeps its identity.
        conn.exec_driver_sql(f"CREATE OR REPLACE FUNCTION {schema}.{signature} RETURNS {returns} {options} "
                             f"SET search_path = {schema}, pg_temp AS $function${body}$function$")
        name, arguments = signature.rstrip(")").split("(")
        types = ", ".join(argument.strip().split(" ", 1)[1] for argument in arguments.split(",") if argument)
        conn.exec_driver_sql(f"REVOKE ALL ON FUNCTION {schema}.{name}({types}) FROM PUBLIC")
    for name, when, function in TRIGGERS:
        if not conn.execute(sa.text("SELECT 1 FROM pg_catalog.pg_trigger WHERE tgname = :name AND tgrelid = "
                                    "CAST(:labels AS pg_catalog.regclass)"),
                            {"name": name, "labels": f"{schema}.labels"}).scalar():
            conn.exec_driver_sql(f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION {schema}.{function}()")
    for role in conn.execute(sa.text(
            "SELECT DISTINCT r.rolname FROM pg_catalog.pg_proc p CROSS JOIN LATERAL pg_catalog.aclexplode(p.proacl) a "
            "JOIN pg_catalog.pg_roles r ON r.oid = a.grantee WHERE p.pronamespace = pg_catalog.current_schema()"
            "::pg_catalog.regnamespace AND p.proname = 'llama2lab_claim' AND a.grantee <> p.proowner")).scalars().all():
        conn.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {schema}.llama2lab_hold(text, text) TO "
                             f"{conn.dialect.identifier_preparer.quote_identifier(role)}")


TRIGGERS = (
    ("labels_stamp", "BEFORE INSERT ON labels FOR EACH ROW", "llama2lab_stamp"),
    ("labels_answered", "AFTER INSERT ON labels FOR EACH ROW", "llama2lab_answered"),
    ("labels_append_only", "BEFORE UPDATE OR DELETE OR TRUNCATE ON labels FOR EACH STATEMENT", "llama2lab_append_only"),
)

# (signature, what it returns, options, body). Locks of one's own rows are waited for briefly; others' rows are passed
# over, so that a transaction that somebody leaves open stops nobody else.
FUNCTIONS = (
    # The annotator of the login that is asking; NULL for teachers and owners. A login's role cannot be changed by SET
    # ROLE here: session_user is who connected.
    ("llama2lab_me()", "text", "LANGUAGE sql STABLE SECURITY DEFINER",
     "SELECT annotator_id FROM members WHERE role = session_user"),
    # Refuses whoever asks for somebody else, unless they may read everything anyway.
    ("llama2lab_allow(who text)", "void", "LANGUAGE plpgsql STABLE SECURITY DEFINER", """
BEGIN
  IF who IS DISTINCT FROM llama2lab_me()
     AND NOT has_table_privilege(session_user, 'secrets', 'SELECT') THEN
    RAISE EXCEPTION 'this login is another annotator''s' USING ERRCODE = '42501';
  END IF;
END """),
    ("llama2lab_until(lease double precision)", "timestamptz", "LANGUAGE plpgsql", f"""
BEGIN
  IF lease IS NULL OR NOT lease BETWEEN -{MAX_LEASE} AND {MAX_LEASE} THEN  -- NaN is greater than every number
    RAISE EXCEPTION 'a lease is at most {MAX_LEASE} seconds' USING ERRCODE = '22023';
  END IF;
  RETURN clock_timestamp() + make_interval(secs => lease);
END """),
    ("llama2lab_left(seed text, item text, person text)", "integer", "LANGUAGE sql IMMUTABLE",
     "SELECT 1 + (get_byte(decode(md5(seed || ':' || item || ':' || person), 'hex'), 0) & 1)"),
    ("llama2lab_free(who text, wanted text)", "bigint", "LANGUAGE sql STABLE SECURITY DEFINER", """
  SELECT count(DISTINCT s.item_id) FROM slots s
    WHERE s.state IN ('free', 'leased') AND (s.state = 'free' OR s.leased_until < clock_timestamp())
      AND NOT EXISTS (SELECT 1 FROM slots m WHERE m.item_id = s.item_id AND m.annotator_id = who)
      AND (wanted IS NULL OR EXISTS (SELECT 1 FROM items i WHERE i.id = s.item_id AND i.kind = wanted))
"""),
    ("llama2lab_claim(who text, seed text, lease double precision, wanted text, gold_first boolean)", "text",
     "LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '5s'", """
DECLARE
  person text;
  until timestamptz;
  held text;
  held_gold boolean;
  gold text;
  gold_at integer;
  free text;
  free_at integer;
  free_number integer;
BEGIN
  PERFORM llama2lab_allow(who);
  until := llama2lab_until(lease);
  IF length(seed) > 100 THEN
    RAISE EXCEPTION 'a seed is a number' USING ERRCODE = '22023';
  END IF;
  -- One claim at a time for each person, so that two windows are not given two items.
  SELECT name INTO person FROM annotators WHERE id = who FOR NO KEY UPDATE;
  IF person IS NULL THEN RETURN NULL; END IF;
  -- What ran out and is being taken by another at this moment is held no more.
  SELECT s.item_id, g.gold_choice IS NOT NULL INTO held, held_gold
    FROM slots s JOIN items i ON i.id = s.item_id LEFT JOIN secrets g ON g.item_id = s.item_id
    WHERE s.annotator_id = who AND s.state = 'leased' AND (wanted IS NULL OR i.kind = wanted)
    ORDER BY CASE WHEN gold_first AND g.gold_choice IS NOT NULL THEN 0 ELSE 1 END, s.position LIMIT 1
    FOR UPDATE OF s SKIP LOCKED;
  IF held IS NULL OR (gold_first AND NOT held_gold) THEN
    SELECT i.id, i.position INTO gold, gold_at FROM secrets g JOIN items i ON i.id = g.item_id
      WHERE g.gold_choice IS NOT NULL AND (wanted IS NULL OR i.kind = wanted)
        AND NOT EXISTS (SELECT 1 FROM slots m WHERE m.item_id = i.id AND m.annotator_id = who)
      ORDER BY i.position LIMIT 1;
  END IF;
  IF held IS NOT NULL AND gold IS NULL THEN
    UPDATE slots SET leased_until = until WHERE item_id = held AND annotator_id = who;
    RETURN held;
  END IF;
  IF gold IS NULL OR gold_first IS NOT TRUE THEN
    FOR attempt IN 1..150 LOOP
      -- Slots that others are taking at this moment are passed over, not waited for.
      SELECT s.item_id, s.number, s.position INTO free, free_number, free_at FROM slots s
        WHERE s.state IN ('free', 'leased') AND (s.state = 'free' OR s.leased_until < clock_timestamp())
          AND NOT EXISTS (SELECT 1 FROM slots m WHERE m.item_id = s.item_id AND m.annotator_id = who)
          AND (wanted IS NULL OR EXISTS (SELECT 1 FROM items i WHERE i.id = s.item_id AND i.kind = wanted))
        ORDER BY s.position, s.number LIMIT 1 FOR UPDATE SKIP LOCKED;
      -- None: is there really nothing left, or is the last of it in somebody's hands who may yet let go? Three seconds
      -- are long for an honest claim, and as long as a transaction left open can hold others up.
      EXIT WHEN free IS NOT NULL OR gold IS NOT NULL OR llama2lab_free(who, wanted) = 0;
      PERFORM pg_sleep(0.02);
    END LOOP;
  END IF;
  IF gold IS NOT NULL AND (free IS NULL OR gold_at < free_at) THEN
    -- A number that nobody else is just drawing: to count up, one would have to wait for the others.
    INSERT INTO slots (item_id, number, position, annotator_id, "left", leased_until, state)
      VALUES (gold, 1 + floor(random() * 1000000000)::integer, gold_at, who, llama2lab_left(seed, gold, person), until,
              'leased');
    RETURN gold;
  END IF;
  IF free IS NOT NULL THEN
    UPDATE slots SET annotator_id = who, state = 'leased', leased_until = until,
                     "left" = llama2lab_left(seed, free, person)
      WHERE item_id = free AND number = free_number;
  END IF;
  RETURN free;
END """),
    ("llama2lab_waiting(who text, wanted text)", "bigint", "LANGUAGE plpgsql STABLE SECURITY DEFINER", """
BEGIN
  PERFORM llama2lab_allow(who);
  RETURN llama2lab_free(who, wanted) + (
    SELECT count(*) FROM secrets g JOIN items i ON i.id = g.item_id
      WHERE g.gold_choice IS NOT NULL AND (wanted IS NULL OR i.kind = wanted)
        AND NOT EXISTS (SELECT 1 FROM slots m WHERE m.item_id = i.id AND m.annotator_id = who));
END """),
    # [how many gold items there are, then 1 or 0 for each that is answered, in the order of the first answers]
    ("llama2lab_gold(who text, wanted text)", "integer[]", "LANGUAGE plpgsql STABLE SECURITY DEFINER", """
BEGIN
  PERFORM llama2lab_allow(who);
  RETURN (
    WITH gold AS (
      SELECT g.* FROM secrets g JOIN items i ON i.id = g.item_id
        WHERE g.gold_choice IS NOT NULL AND (wanted IS NULL OR i.kind = wanted)
    ), answered AS (
      SELECT l.*, g.gold_choice, g.gold_grades, g.gold_safe_1, g.gold_safe_2,
             min(l.created_at) OVER (PARTITION BY l.item_id) AS first,
             min(l.id) OVER (PARTITION BY l.item_id) AS tie,
             EXISTS (SELECT 1 FROM labels n WHERE n.supersedes = l.id) AS superseded
        FROM labels l JOIN gold g ON g.item_id = l.item_id WHERE l.annotator_id = who
    ), in_force AS (
      SELECT DISTINCT ON (item_id) *,
             coalesce(choice = gold_choice AND (gold_safe_1 IS NULL OR safe_1 IS NOT DISTINCT FROM gold_safe_1)
                      AND (gold_safe_2 IS NULL OR safe_2 IS NOT DISTINCT FROM gold_safe_2)
                      AND (gold_grades = '' OR strpos(gold_grades, ',' || grade || ',') > 0), false) AS agreed
        FROM answered WHERE NOT superseded ORDER BY item_id, created_at DESC, id DESC
    )
    SELECT ARRAY[(SELECT count(*) FROM gold)::integer]
           || coalesce((SELECT array_agg(agreed::integer ORDER BY first, tie) FROM in_force), '{}'));
END """),
    ("llama2lab_renew(who text, item text, lease double precision)", "boolean",
     "LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '2s'", """
BEGIN
  PERFORM llama2lab_allow(who);
  UPDATE slots SET leased_until = llama2lab_until(lease)
    WHERE item_id = item AND annotator_id = who AND state = 'leased';
  RETURN FOUND;
END """),
    # Two windows that edit the same label go one after the other: the slot is the caller's until the transaction ends.
    ("llama2lab_hold(who text, item text)", "boolean",
     "LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '2s'", """
BEGIN
  PERFORM llama2lab_allow(who);
  PERFORM 1 FROM slots s WHERE s.item_id = item AND s.annotator_id = who FOR UPDATE;
  RETURN FOUND;
END """),
    # What a login that is an annotator's cannot make up about its own labels: the side, the time and the guidelines, an
    # id that files cannot carry, labels that supersede each other in a circle, one item edited without end, and a
    # choice that the report's rule forbids. What nobody can: texts and times without measure.
    ("llama2lab_stamp()", "trigger", "LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '2s'", f"""
DECLARE
  side integer;
  of_kind text;
BEGIN
  IF length(NEW.comment) > {MAX_COMMENT} OR length(NEW.skip_reason) > {MAX_COMMENT} OR NEW.seconds > {MAX_SECONDS} THEN
    RAISE EXCEPTION 'a comment has at most {MAX_COMMENT} characters, and nobody takes {MAX_SECONDS} seconds'
      USING ERRCODE = '23514';
  END IF;
  SELECT s."left", i.kind INTO side, of_kind FROM slots s JOIN items i ON i.id = s.item_id
    WHERE s.item_id = NEW.item_id AND s.annotator_id = NEW.annotator_id FOR UPDATE OF s;
  -- Seen from here, labels of the same statement that come later are not there yet.
  IF NEW.supersedes IS NOT NULL AND NOT EXISTS (
       SELECT 1 FROM labels o WHERE o.id = NEW.supersedes AND o.item_id = NEW.item_id
         AND o.annotator_id = NEW.annotator_id) THEN
    RAISE EXCEPTION 'a label supersedes one of the same annotator and item that is there' USING ERRCODE = '23503';
  END IF;
  IF llama2lab_me() IS NOT NULL THEN
    NEW.created_at := clock_timestamp();
    NEW."left" := side;
    NEW.guidelines := (SELECT g.version FROM guidelines g WHERE g.kind = of_kind AND g.created_at > 'epoch'
                       ORDER BY g.created_at DESC, g.version LIMIT 1);
    IF NEW.id !~ '^[A-Za-z0-9_-]{{1,64}}$' OR NEW.skip_reason !~ '[^[:space:]]'
       OR (SELECT count(*) FROM labels o WHERE o.item_id = NEW.item_id AND o.annotator_id = NEW.annotator_id)
          >= {MAX_EDITS}
       OR NEW.choice IS NOT NULL AND of_kind = 'safety' AND (CASE NEW.choice
            WHEN 1 THEN NEW.safe_1 IS NOT TRUE AND NEW.safe_2 IS NOT FALSE
            ELSE NEW.safe_2 IS NOT TRUE AND NEW.safe_1 IS NOT FALSE END) THEN
      RAISE EXCEPTION 'this is no label' USING ERRCODE = '23514';
    END IF;
  END IF;
  RETURN NEW;
END """),
    # The database itself marks a slot as answered, and refuses to change or to remove a label.
    ("llama2lab_answered()", "trigger", "LANGUAGE plpgsql SECURITY DEFINER", """
BEGIN
  UPDATE slots SET state = CASE WHEN NEW.skip_reason IS NULL THEN 'done' ELSE 'skipped' END
    WHERE item_id = NEW.item_id AND annotator_id = NEW.annotator_id;
  RETURN NULL;
END """),
    ("llama2lab_append_only()", "trigger", "LANGUAGE plpgsql", """
BEGIN
  RAISE EXCEPTION 'labels are append-only: an edit is a new row' USING ERRCODE = '42501';
END """),
)
