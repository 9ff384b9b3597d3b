"""Alembic migrations of the annotation store: never changed once released; a new schema is a new file in versions/."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory


def config(conn: sa.Connection | None = None) -> Config:
    """Alembic's configuration, without an .ini file; `conn` is the transaction that migrations run in."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = conn
    return made


def upgrade(conn: sa.Connection, revision: str = "head") -> None:
    """Bring the store to a revision, inside the caller's transaction: all of it or nothing."""
    command.upgrade(config(conn), revision)


def revisions() -> list[str]:
    """All revisions that this version of the library knows, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()]
