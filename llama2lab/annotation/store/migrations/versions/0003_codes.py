"""The annotators' personal codes, salted and hashed, and how often a wrong one was given.

No annotator's login may see this table. Teachers of a class that is there already may use it: those who may put items'
secrets in.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TEACHERS = """
DO $$
DECLARE who name;
BEGIN
  FOR who IN SELECT DISTINCT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee
    WHERE c.oid = '{schema}.secrets'::regclass AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner
  LOOP
    EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.codes TO ' || quote_ident(who);
  END LOOP;
END $$"""


def upgrade() -> None:
    op.create_table(
        "codes",
        sa.Column("annotator_id", sa.String(32), sa.ForeignKey("annotators.id"), primary_key=True),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("tried_at", sa.DateTime(timezone=True)),
    )
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        schema = bind.dialect.identifier_preparer.quote(bind.exec_driver_sql("SELECT current_schema()").scalar_one())
        bind.exec_driver_sql(TEACHERS.format(schema=schema))
