"""The store: annotators, guidelines, items with their secrets, slots, append-only labels."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

KIND = "kind IN ('helpfulness', 'safety')"
STATES = "state IN ('free', 'leased', 'done', 'skipped')"
OPEN = sa.text("state IN ('free', 'leased')")
GOLD = sa.text("gold_choice IS NOT NULL")
MOMENT = sa.DateTime(timezone=True)

APPEND_ONLY = "labels are append-only: an edit is a new row"


def upgrade() -> None:
    op.create_table(
        "annotators",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("vendor", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("kind IN ('person', 'simulated')", name="annotators_kind"),
    )
    op.create_table(
        "guidelines",
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
    )
    op.create_table(
        "items",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("answer_1", sa.Text, nullable=False),
        sa.Column("answer_2", sa.Text, nullable=False),
        sa.Column("prompt_id", sa.Text, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint(KIND, name="items_kind"),
    )
    op.create_index("items_position", "items", ["position"])
    op.create_table(
        "secrets",
        sa.Column("item_id", sa.String(32), sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("model_1", sa.Text),
        sa.Column("model_2", sa.Text),
        sa.Column("meta", sa.Text),
        sa.Column("gold", sa.Text),
        sa.Column("gold_choice", sa.Integer),
        sa.Column("gold_grades", sa.Text, nullable=False),
        sa.Column("gold_safe_1", sa.Boolean),
        sa.Column("gold_safe_2", sa.Boolean),
    )
    op.create_index("secrets_gold", "secrets", ["item_id"], sqlite_where=GOLD, postgresql_where=GOLD)
    op.create_table(
        "slots",
        sa.Column("item_id", sa.String(32), sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("annotator_id", sa.String(32), sa.ForeignKey("annotators.id")),
        sa.Column("left", sa.Integer),
        sa.Column("leased_until", MOMENT),
        sa.Column("state", sa.String(8), nullable=False),
        sa.UniqueConstraint("item_id", "annotator_id", name="slots_once"),
        sa.CheckConstraint(STATES, name="slots_state"),
        sa.CheckConstraint("(state = 'free') = (annotator_id IS NULL)", name="slots_holder"),
        sa.CheckConstraint('"left" IN (1, 2)', name="slots_left"),
    )
    op.create_index("slots_open", "slots", ["position", "number"], sqlite_where=OPEN, postgresql_where=OPEN)
    op.create_index("slots_mine", "slots", ["annotator_id", "state"])
    op.create_table(
        "labels",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("item_id", sa.String(32), nullable=False),
        sa.Column("annotator_id", sa.String(32), nullable=False),
        sa.Column("choice", sa.Integer),
        sa.Column("grade", sa.String(16)),
        sa.Column("safe_1", sa.Boolean),
        sa.Column("safe_2", sa.Boolean),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("flag", sa.Boolean, nullable=False),
        sa.Column("skip_reason", sa.Text),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("left", sa.Integer),
        sa.Column("guidelines", sa.String(64), sa.ForeignKey("guidelines.version")),
        sa.Column("supersedes", sa.String(64)),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.UniqueConstraint("id", "item_id", "annotator_id", name="labels_key"),
        sa.ForeignKeyConstraint(
            ["item_id", "annotator_id"], ["slots.item_id", "slots.annotator_id"], name="labels_slot"
        ),
        sa.ForeignKeyConstraint(
            ["supersedes", "item_id", "annotator_id"],
            ["labels.id", "labels.item_id", "labels.annotator_id"],
            name="labels_own",
        ),
        sa.CheckConstraint("(skip_reason IS NULL) = (choice IS NOT NULL)", name="labels_choice_or_skip"),
        sa.CheckConstraint("(choice IS NULL) = (grade IS NULL)", name="labels_choice_and_grade"),
        sa.CheckConstraint("choice IN (1, 2)", name="labels_choice"),
        sa.CheckConstraint("grade IN ('significantly', 'better', 'slightly', 'negligibly')", name="labels_grade"),
        sa.CheckConstraint('"left" IN (1, 2)', name="labels_left"),
        sa.CheckConstraint("seconds >= 0 AND seconds < 1e300", name="labels_seconds"),
    )
    op.create_index("labels_item", "labels", ["item_id", "annotator_id"])
    op.create_index("labels_annotator", "labels", ["annotator_id"])
    op.create_index("labels_supersedes", "labels", ["supersedes"])
    _triggers()


def _triggers() -> None:
    """The database itself marks a slot as answered, and refuses to change or to remove a label."""
    answered = (
        "UPDATE slots SET state = CASE WHEN NEW.skip_reason IS NULL THEN 'done' ELSE 'skipped' END "
        "WHERE item_id = NEW.item_id AND annotator_id = NEW.annotator_id"
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"CREATE TRIGGER labels_answered AFTER INSERT ON labels BEGIN {answered}; END")
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER labels_no_{verb.lower()} BEFORE {verb} ON labels "
                f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
            )
        return
    schema = op.get_bind().dialect.identifier_preparer.quote(
        op.get_bind().exec_driver_sql("SELECT current_schema()").scalar_one()
    )
    op.execute(
        "CREATE FUNCTION llama2lab_answered() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
        f"SET search_path = {schema}, pg_temp AS $$ BEGIN {answered}; RETURN NULL; END $$"
    )
    op.execute(
        "CREATE TRIGGER labels_answered AFTER INSERT ON labels FOR EACH ROW EXECUTE FUNCTION llama2lab_answered()"
    )
    op.execute(
        "CREATE FUNCTION llama2lab_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{APPEND_ONLY}' USING ERRCODE = '42501'; END $$"
    )
    op.execute(
        "CREATE TRIGGER labels_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON labels "
        "FOR EACH STATEMENT EXECUTE FUNCTION llama2lab_append_only()"
    )
