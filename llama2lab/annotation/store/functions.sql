-- The store's functions on a PostgreSQL server; server.py puts in the schema and the bounds (@...), and says why there
-- are any. Locks of one's own rows are waited for briefly; others' rows are passed over, so that a transaction that
-- somebody leaves open stops nobody else.

-- The annotator of the login that is asking; NULL for teachers and owners. A login's role cannot be changed by SET
-- ROLE here: session_user is who connected.
CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_me() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = @SCHEMA, pg_temp AS $function$
SELECT annotator_id FROM members WHERE role = session_user
$function$;

-- Refuses whoever asks for somebody else, unless they may read everything anyway.
CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_allow(who text) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = @SCHEMA, pg_temp AS $function$
BEGIN
  IF who IS DISTINCT FROM llama2lab_me()
     AND NOT has_table_privilege(session_user, 'secrets', 'SELECT') THEN
    RAISE EXCEPTION 'this login is another annotator''s' USING ERRCODE = '42501';
  END IF;
END
$function$;

CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_until(lease double precision) RETURNS timestamptz
LANGUAGE plpgsql SET search_path = @SCHEMA, pg_temp AS $function$
BEGIN
  IF lease IS NULL OR NOT lease BETWEEN -@MAX_LEASE AND @MAX_LEASE THEN  -- NaN is greater than every number
    RAISE EXCEPTION 'a lease is at most @MAX_LEASE seconds' USING ERRCODE = '22023';
  END IF;
  RETURN clock_timestamp() + make_interval(secs => lease);
END
$function$;

CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_left(seed text, item text, person text) RETURNS integer
LANGUAGE sql IMMUTABLE SET search_path = @SCHEMA, pg_temp AS $function$
SELECT 1 + (get_byte(decode(md5(seed || ':' || item || ':' || person), 'hex'), 0) & 1)
$function$;

CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_free(who text, wanted text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = @SCHEMA, pg_temp AS $function$
SELECT count(DISTINCT s.item_id) FROM slots s
  WHERE s.state IN ('free', 'leased') AND (s.state = 'free' OR s.leased_until < clock_timestamp())
    AND NOT EXISTS (SELECT 1 FROM slots m WHERE m.item_id = s.item_id AND m.annotator_id = who)
    AND (wanted IS NULL OR EXISTS (SELECT 1 FROM items i WHERE i.id = s.item_id AND i.kind = wanted))
$function$;

CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_claim(who text, seed text, lease double precision, wanted text,
                                                   gold_first boolean) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '5s' SET search_path = @SCHEMA, pg_temp AS $function$
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
END
$function$;

CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_waiting(who text, wanted text) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = @SCHEMA, pg_temp AS $function$
BEGIN
  PERFORM llama2lab_allow(who);
  RETURN llama2lab_free(who, wanted) + (
    SELECT count(*) FROM secrets g JOIN items i ON i.id = g.item_id
      WHERE g.gold_choice IS NOT NULL AND (wanted IS NULL OR i.kind = wanted)
        AND NOT EXISTS (SELECT 1 FROM slots m WHERE m.item_id = i.id AND m.annotator_id = who));
END
$function$;

-- [how many gold items there are, then 1 or 0 for each that is answered, in the order of the first answers]
CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_gold(who text, wanted text) RETURNS integer[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = @SCHEMA, pg_temp AS $function$
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
END
$function$;

CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_renew(who text, item text, lease double precision) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '2s' SET search_path = @SCHEMA, pg_temp AS $function$
BEGIN
  PERFORM llama2lab_allow(who);
  UPDATE slots SET leased_until = llama2lab_until(lease)
    WHERE item_id = item AND annotator_id = who AND state = 'leased';
  RETURN FOUND;
END
$function$;

-- Two windows that edit the same label go one after the other: the slot is the caller's until the transaction ends.
CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_hold(who text, item text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '2s' SET search_path = @SCHEMA, pg_temp AS $function$
BEGIN
  PERFORM llama2lab_allow(who);
  PERFORM 1 FROM slots s WHERE s.item_id = item AND s.annotator_id = who FOR UPDATE;
  RETURN FOUND;
END
$function$;

-- What a login that is an annotator's cannot make up about its own labels: the side, the time and the guidelines, an
-- id that files cannot carry, labels that supersede each other in a circle, one item edited without end, and a
-- choice that the report's rule forbids. What nobody can: texts and times without measure.
CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_stamp() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '2s' SET search_path = @SCHEMA, pg_temp AS $function$
DECLARE
  side integer;
  of_kind text;
BEGIN
  IF length(NEW.comment) > @MAX_COMMENT OR length(NEW.skip_reason) > @MAX_COMMENT OR NEW.seconds > @MAX_SECONDS THEN
    RAISE EXCEPTION 'a comment has at most @MAX_COMMENT characters, and nobody takes @MAX_SECONDS seconds'
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
    IF NEW.id !~ '^[A-Za-z0-9_-]{1,64}$' OR NEW.skip_reason !~ '[^[:space:]]'
       OR (SELECT count(*) FROM labels o WHERE o.item_id = NEW.item_id AND o.annotator_id = NEW.annotator_id)
          >= @MAX_EDITS
       OR NEW.choice IS NOT NULL AND of_kind = 'safety' AND (CASE NEW.choice
            WHEN 1 THEN NEW.safe_1 IS NOT TRUE AND NEW.safe_2 IS NOT FALSE
            ELSE NEW.safe_2 IS NOT TRUE AND NEW.safe_1 IS NOT FALSE END) THEN
      RAISE EXCEPTION 'this is no label' USING ERRCODE = '23514';
    END IF;
  END IF;
  RETURN NEW;
END
$function$;

-- The database itself marks a slot as answered, and refuses to change or to remove a label.
CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_answered() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = @SCHEMA, pg_temp AS $function$
BEGIN
  UPDATE slots SET state = CASE WHEN NEW.skip_reason IS NULL THEN 'done' ELSE 'skipped' END
    WHERE item_id = NEW.item_id AND annotator_id = NEW.annotator_id;
  RETURN NULL;
END
$function$;

CREATE OR REPLACE FUNCTION @SCHEMA.llama2lab_append_only() RETURNS trigger
LANGUAGE plpgsql SET search_path = @SCHEMA, pg_temp AS $function$
BEGIN
  RAISE EXCEPTION 'labels are append-only: an edit is a new row' USING ERRCODE = '42501';
END
$function$;
