"""A PostgreSQL server of a test's own: a user without rights, a socket in its folder, no TCP."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

SECONDS = 120.0
ADMIN = "admin"
PORT = 5432
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def find_programs() -> Path | None:
    """The folder of PostgreSQL's programs."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return PROGRAMS[-1] if PROGRAMS else None


class Cluster:
    """A server that runs. Applications' users may log in with the password that `make_user` gave them."""

    def __init__(self, folder: Path, programs: Path, password: str, port: int = PORT) -> None:
        """`password` is ADMIN's."""
        self.folder, self.programs, self.password, self.port = folder, programs, password, port

    def sql(self, text: str, database: str = "postgres", *, user: str = ADMIN, password: str = "") -> str:
        """Rows, one a line, columns apart by `|`; an error fails the test."""
        done = self.call(
            "psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-U", user, "-c", text, database, password=password
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def call(self, program: str, *arguments: str, password: str = "") -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PGHOST": str(self.folder), "PGPORT": str(self.port)}
        environment["PGPASSWORD"] = password or self.password
        return subprocess.run(
            [self.programs / program, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def make_user(self, name: str) -> str:
        """A user that may make databases, and is nothing more; its password, with characters that need care."""
        password = f"pw%/'@: {secrets.token_hex(4)}"
        escaped = password.replace("'", "''")
        self.sql(f"""CREATE ROLE "{name}" LOGIN CREATEDB PASSWORD '{escaped}'""")
        return password

    def url(self, user: str, database: str) -> str:
        """Without a password."""
        return (
            f"postgresql://{quote(user, safe='')}@/{quote(database, safe='')}?host={quote(str(self.folder), safe='')}"
        )


def _as_nobody() -> tuple[str, ...]:
    """PostgreSQL does not run as root."""
    return ("--reuid=nobody", "--regid=nogroup", "--clear-groups") if os.geteuid() == 0 else ()


def _environment(folder: Path, programs: Path) -> dict[str, str]:
    return {"PATH": f"{programs}:{os.environ['PATH']}", "LANG": "C.UTF-8", "HOME": str(folder)}


def create_cluster(folder: Path, programs: Path, *options: str) -> None:
    """Make `folder/cluster` with `options` of initdb's; with root all in `folder` is nobody's then."""
    us = _as_nobody()
    if us:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, "nobody", "nogroup")
    subprocess.run(
        ["setpriv", *us, "--", "initdb", "-D", "cluster", "-U", ADMIN, *options],
        cwd=folder,
        env=_environment(folder, programs),
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )


def start_server(
    folder: Path, programs: Path, log: Path | None = None, *, port: int = PORT, **settings: object
) -> "subprocess.Popen[bytes]":
    """The server of `folder/cluster`, ready: a socket in `folder`, no TCP unless `settings` say so; it dies with us.

    What it says goes to `log`, or to `folder/log`.
    """
    log = log or folder / "log"
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": folder,
        "logging_collector": "off",
        "port": port,
        **settings,
    }
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    postgres = [programs / "postgres", "-D", folder / "cluster", *options]
    environment = _environment(folder, programs)
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["setpriv", *_as_nobody(), "--pdeathsig", "KILL", "--", *postgres],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    end = time.monotonic() + SECONDS
    ready = [programs / "pg_isready", "-q", "-h", folder, "-p", str(port)]
    while subprocess.run(ready, env=environment, check=False, timeout=SECONDS).returncode:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    return server


def stop_server(server: "subprocess.Popen[bytes]") -> None:
    """Cleanly, at once: who is connected is disconnected."""
    server.send_signal(signal.SIGINT)
    server.wait(SECONDS)


@contextmanager
def run_cluster(log: Path | None = None, *, port: int = PORT, **settings: object) -> Iterator[Cluster]:
    """A new server for the block, with `settings` and its `log`; with root it is nobody's.

    Its files are not below pytest's folder, which only its owner may enter, and a socket's name has to be short.
    """
    programs = find_programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="otaflow-pg-"))
    cluster = Cluster(folder, programs, secrets.token_hex(8), port)
    server: subprocess.Popen[bytes] | None = None
    try:
        (folder / "password").write_text(cluster.password)
        create_cluster(folder, programs, "-A", "scram-sha-256", "--pwfile=password", "--no-sync")
        server = start_server(folder, programs, log, port=port, fsync="off", **settings)
        yield cluster
    finally:
        if server is not None:
            stop_server(server)
        shutil.rmtree(folder, ignore_errors=True)
