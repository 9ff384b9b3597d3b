"""Classes: which database role is which annotator, and what PostgreSQL does on behalf of roles that may not look.

An annotator's role sees its own slots and labels only. To be given an item, to count what waits, and to hear how it
fared on gold items, it calls these functions, which run with their owner's rights and answer for the caller alone.
SQLite has no roles: there queue.py does the same.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

FUNCTIONS = [
    # The annotator of the login that is asking; NULL for teachers and owners. A login's role cannot be changed by SET
    # ROLE here: session_user is who connected.
    """
CREATE FUNCTION llama2lab_me() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER SET search_path = {schema}, pg_temp AS
$$ SELECT annotator_id FROM members WHERE role = session_user $$""",
    # Refuses whoever asks for somebody else, unless they may read everything anyway.
    """
CREATE FUNCTION llama2lab_allow(who text) RETURNS void LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = {schema}, pg_temp AS $$
BEGIN
  IF who IS DISTINCT FROM llama2lab_me()
     AND NOT has_table_privilege(session_user, 'secrets', 'SELECT') THEN
    RAISE EXCEPTION 'this login is another annotator''s' USING ERRCODE = '42501';
  END IF;
END $$""",
    """
CREATE FUNCTION llama2lab_claim(who text, seed text, lease double precision, wanted text, gold_first boolean)
RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
DECLARE
  person text;
  until timestamptz := clock_timestamp() + make_interval(secs => lease);
  held text;
  held_gold boolean;
  gold text;
  gold_at integer;
  free text;
  free_at integer;
  free_number integer;
BEGIN
  PERFORM llama2lab_allow(who);
  -- One claim at a time for each person, so that two windows are not given two items.
  SELECT name INTO person FROM annotators WHERE id = who FOR NO KEY UPDATE;
  IF person IS NULL THEN RETURN NULL; END IF;
  SELECT s.item_id, g.gold_choice IS NOT NULL INTO held, held_gold
    FROM slots s JOIN items i ON i.id = s.item_id LEFT JOIN secrets g ON g.item_id = s.item_id
    WHERE s.annotator_id = who AND s.state = 'leased' AND (wanted IS NULL OR i.kind = wanted)
    ORDER BY CASE WHEN gold_first AND g.gold_choice IS NOT NULL THEN 0 ELSE 1 END, s.position LIMIT 1;
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
  IF gold IS NULL OR NOT gold_first THEN
    FOR attempt IN 1..1000 LOOP
      -- Slots that others are taking at this moment are passed over, not waited for.
      SELECT s.item_id, s.number, s.position INTO free, free_number, free_at FROM slots s
        WHERE s.state IN ('free', 'leased') AND (s.state = 'free' OR s.leased_until < clock_timestamp())
          AND NOT EXISTS (SELECT 1 FROM slots m WHERE m.item_id = s.item_id AND m.annotator_id = who)
          AND (wanted IS NULL OR EXISTS (SELECT 1 FROM items i WHERE i.id = s.item_id AND i.kind = wanted))
        ORDER BY s.position, s.number LIMIT 1 FOR UPDATE SKIP LOCKED;
      -- None: is there really nothing left, or is the last of it in somebody's hands who may yet let go?
      EXIT WHEN free IS NOT NULL OR llama2lab_free(who, wanted) = 0;
      PERFORM pg_sleep(0.01);
    END LOOP;
  END IF;
  IF gold IS NOT NULL AND (free IS NULL OR gold_at < free_at) THEN
    PERFORM 1 FROM items WHERE id = gold FOR NO KEY UPDATE;  -- the next number is drawn by one at a time
    INSERT INTO slots (item_id, number, position, annotator_id, "left", leased_until, state)
      SELECT gold, coalesce(max(number), 0) + 1, gold_at, who, llama2lab_left(seed, gold, person), until, 'leased'
        FROM slots WHERE item_id = gold;
    RETURN gold;
  END IF;
  IF free IS NOT NULL THEN
    UPDATE slots SET annotator_id = who, state = 'leased', leased_until = until,
                     "left" = llama2lab_left(seed, free, person)
      WHERE item_id = free AND number = free_number;
  END IF;
  RETURN free;
END $$""",
    """
CREATE FUNCTION llama2lab_left(seed text, item text, person text) RETURNS integer LANGUAGE sql IMMUTABLE AS
$$ SELECT 1 + (get_byte(decode(md5(seed || ':' || item || ':' || person), 'hex'), 0) & 1) $$""",
    """
CREATE FUNCTION llama2lab_free(who text, wanted text) RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = {schema}, pg_temp AS $$
  SELECT count(DISTINCT s.item_id) FROM slots s
    WHERE s.state IN ('free', 'leased') AND (s.state = 'free' OR s.leased_until < clock_timestamp())
      AND NOT EXISTS (SELECT 1 FROM slots m WHERE m.item_id = s.item_id AND m.annotator_id = who)
      AND (wanted IS NULL OR EXISTS (SELECT 1 FROM items i WHERE i.id = s.item_id AND i.kind = wanted))
$$""",
    """
CREATE FUNCTION llama2lab_waiting(who text, wanted text) RETURNS bigint LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = {schema}, pg_temp AS $$
BEGIN
  PERFORM llama2lab_allow(who);
  RETURN llama2lab_free(who, wanted) + (
    SELECT count(*) FROM secrets g JOIN items i ON i.id = g.item_id
      WHERE g.gold_choice IS NOT NULL AND (wanted IS NULL OR i.kind = wanted)
        AND NOT EXISTS (SELECT 1 FROM slots m WHERE m.item_id = i.id AND m.annotator_id = who));
END $$""",
    # [how many gold items there are, then 1 or 0 for each that is answered, in the order of the first answers]
    """
CREATE FUNCTION llama2lab_gold(who text, wanted text) RETURNS integer[] LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = {schema}, pg_temp AS $$
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
           || coalesce((SELECT array_agg(agreed::integer ORDER BY first, tie) FROM in_force), '{{}}'));
END $$""",
    """
CREATE FUNCTION llama2lab_renew(who text, item text, lease double precision) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
BEGIN
  PERFORM llama2lab_allow(who);
  UPDATE slots SET leased_until = clock_timestamp() + make_interval(secs => lease)
    WHERE item_id = item AND annotator_id = who AND state = 'leased';
  RETURN FOUND;
END $$""",
    # What a login that is an annotator's cannot make up about its own labels: the side and the time, an id that files
    # cannot carry, and a choice that the report's rule forbids. The lock keeps the slot from being handed on meanwhile.
    """
CREATE FUNCTION llama2lab_stamp() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = {schema}, pg_temp AS $$
DECLARE
  side integer;
BEGIN
  SELECT s."left" INTO side FROM slots s
    WHERE s.item_id = NEW.item_id AND s.annotator_id = NEW.annotator_id FOR UPDATE;
  IF llama2lab_me() IS NOT NULL THEN
    NEW.created_at := clock_timestamp();
    NEW."left" := side;
    IF NEW.id !~ '^[A-Za-z0-9_-]{{1,64}}$' OR NEW.choice IS NOT NULL AND EXISTS (
         SELECT 1 FROM items i WHERE i.id = NEW.item_id AND i.kind = 'safety' AND CASE NEW.choice
           WHEN 1 THEN NEW.safe_1 IS NOT TRUE AND NEW.safe_2 IS NOT FALSE
           ELSE NEW.safe_2 IS NOT TRUE AND NEW.safe_1 IS NOT FALSE END) THEN
      RAISE EXCEPTION 'this is no label' USING ERRCODE = '23514';
    END IF;
  END IF;
  RETURN NEW;
END $$""",
    "CREATE TRIGGER labels_stamp BEFORE INSERT ON labels FOR EACH ROW EXECUTE FUNCTION llama2lab_stamp()",
    # Functions are everybody's to call unless that is taken away. classroom.py hands them out.
    """
REVOKE ALL ON FUNCTION llama2lab_me(), llama2lab_allow(text), llama2lab_free(text, text),
  llama2lab_claim(text, text, double precision, text, boolean), llama2lab_waiting(text, text),
  llama2lab_gold(text, text), llama2lab_left(text, text, text), llama2lab_stamp(),
  llama2lab_renew(text, text, double precision), llama2lab_answered() FROM PUBLIC""",
]


def upgrade() -> None:
    op.create_table(
        "members",
        sa.Column("role", sa.Text, primary_key=True),
        sa.Column("annotator_id", sa.String(32), sa.ForeignKey("annotators.id"), nullable=False, unique=True),
    )
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        schema = bind.dialect.identifier_preparer.quote(bind.exec_driver_sql("SELECT current_schema()").scalar_one())
        for statement in FUNCTIONS:
            bind.exec_driver_sql(statement.format(schema=schema))
