"""A real PostgreSQL on a free loopback port, with a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import servers


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database, as Prefect takes it; the test is skipped where PostgreSQL is not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        servers.need("postgres")
    # Not below pytest's folder, which is for its own user alone.
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-")), servers.free_port()
    data = folder / "data"
    data.mkdir()
    as_user: Sequence[str] = []
    if os.geteuid() == 0:
        # It refuses to run as root.
        user = pwd.getpwnam("postgres")
        for path in (folder, data):
            os.chown(path, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    words = [*as_user, str(programs[-1] / "initdb"), "-D", str(data), "-U", "prefect", "-A", "trust", "-N"]
    subprocess.run(words, check=True, capture_output=True, cwd=data)
    command = [*as_user, str(programs[-1] / "postgres"), "-D", str(data), "-p", str(port), "-F"]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=data)
    try:
        ready = [str(programs[-1] / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "prefect"]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not come up:\n{(folder / 'log').read_text()[-3000:]}")
            time.sleep(0.1)
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        # At once, without waiting for those that are connected still.
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(folder)
