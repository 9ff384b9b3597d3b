"""Teachers' verdicts on pairs about which people disagree, append-only; no annotator's login may see them.

Teachers of a class that is there already (those who may put items' secrets in) may read and add them, and queue a pair
that was set aside.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

MOMENT = sa.DateTime(timezone=True)
TEACHERS = """
DO $$
DECLARE who name;
BEGIN
  FOR who IN SELECT DISTINCT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee
    WHERE c.oid = '{schema}.secrets'::regclass AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner
  LOOP
    EXECUTE 'GRANT SELECT, INSERT ON {schema}.verdicts TO ' || quote_ident(who);
    EXECUTE 'GRANT UPDATE (overlap) ON {schema}.items TO ' || quote_ident(who);
  END LOOP;
END $$"""


def upgrade() -> None:
    op.create_table(
        "verdicts",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("item_id", sa.String(32), sa.ForeignKey("items.id"), nullable=False),
        sa.Column("teacher", sa.Text, nullable=False),
        sa.Column("login", sa.Text, nullable=False),
        sa.Column("choice", sa.Integer),
        sa.Column("grade", sa.String(16)),
        sa.Column("safe_1", sa.Boolean),
        sa.Column("safe_2", sa.Boolean),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("guidelines", sa.String(64), sa.ForeignKey("guidelines.version")),
        sa.Column("supersedes", sa.String(64)),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.UniqueConstraint("id", "item_id", name="verdicts_key"),
        sa.ForeignKeyConstraint(["supersedes", "item_id"], ["verdicts.id", "verdicts.item_id"], name="verdicts_own"),
        sa.CheckConstraint("(choice IS NULL) = (grade IS NULL)", name="verdicts_choice_and_grade"),
        sa.CheckConstraint("choice IN (1, 2)", name="verdicts_choice"),
        sa.CheckConstraint("grade IN ('significantly', 'better', 'slightly', 'negligibly')", name="verdicts_grade"),
    )
    op.create_index("verdicts_item", "verdicts", ["item_id"])
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER verdicts_no_{verb.lower()} BEFORE {verb} ON verdicts "
                "BEGIN SELECT RAISE(ABORT, 'verdicts are append-only: an edit is a new row'); END"
            )
        return
    schema = bind.dialect.identifier_preparer.quote(bind.exec_driver_sql("SELECT current_schema()").scalar_one())
    bind.exec_driver_sql(
        "CREATE TRIGGER verdicts_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON verdicts "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {schema}.llama2lab_append_only()"
    )
    bind.exec_driver_sql(TEACHERS.format(schema=schema))
