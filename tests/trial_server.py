"""A PostgreSQL server of one's own for as long as a test or a trial lasts; needs Debian's package `postgresql`."""

from __future__ import annotations

import getpass
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from patience import free_port

from llama2lab.engine.errors import LabError

ADMIN = "teacher_admin"


@dataclass
class Server:
    """A running server; `url("name")` is a database's URL with the administrator's rights."""

    folder: Path
    port: int
    password: str
    bin: Path
    account: str | None
    options: str

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{ADMIN}:{self.password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """A new, empty database; its URL."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.url(), autocommit=True) as conn:
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(sql.Identifier(database))
            )
        return self.url(database)

    def ctl(self, *arguments: str) -> None:
        """pg_ctl on this server: "stop", "start", "-m", "immediate", ..."""
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-t", "60", *arguments)

    def start(self) -> None:
        self.ctl("-l", str(self.folder / "server.log"), "-o", self.options, "start")

    def run(self, program: str, *arguments: str) -> None:
        # Into a file: the server inherits pg_ctl's outputs, and a pipe would not close before it ends.
        log = self.folder / "output.log"
        with log.open("w") as out:
            done = subprocess.run(
                [self.bin / program, *arguments],
                user=self.account,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        if done.returncode:
            raise LabError(f"{program} failed: {' '.join(log.read_text().split())[-300:]}")


def find_programs() -> Path | None:
    """The folder of initdb and pg_ctl, None where PostgreSQL's server is not installed."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in places if (p / "initdb").exists() and (p / "pg_ctl").exists()), None)


@contextmanager
def trial_server(durable: bool = False) -> Iterator[Server]:
    """A server on a free port of this machine, gone afterwards. `durable` keeps fsync on, as a real one does."""
    programs = find_programs()
    if programs is None:
        raise LabError("PostgreSQL's server is not installed; on Debian: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="llama2lab-pg-"))
    port = free_port()
    options = (
        f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} "
        f"-c fsync={'on' if durable else 'off'} -c max_connections=200"
    )
    server = Server(folder, port, secrets.token_hex(16), programs, _account(), options)
    try:
        password = folder / "password"
        password.write_text(server.password)
        if server.account:
            for path in (folder, password):
                shutil.chown(path, server.account)
        server.run(
            "initdb",
            "-D",
            str(folder / "data"),
            "-U",
            ADMIN,
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--auth=scram-sha-256",
            f"--pwfile={password}",
            "--no-sync",
        )
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.ctl("-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> str | None:
    """Whom to run the server as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    account = next((name for name in ("postgres", "nobody") if name in names), None)
    if account is None:
        raise LabError(f"PostgreSQL's server refuses to run as {getpass.getuser()}; run this as an ordinary user")
    return account
