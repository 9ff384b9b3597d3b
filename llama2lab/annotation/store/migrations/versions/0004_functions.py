"""PostgreSQL's functions as server.py has them: they search the store's schema only, wait for nobody, have bounds."""

from alembic import op

from llama2lab.annotation.store import server

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        server.install(op.get_bind())
