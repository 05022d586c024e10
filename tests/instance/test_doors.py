"""An instance whose doors are closed: its manager gets in, clients are told to come again."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from meridian.bench import servers
from meridian.embedded import places
from meridian.instance.users import pg_user


@pytest.mark.parametrize("is_open", ["off", "on"])
def test_clients_wait_until_the_doors_open(is_open: str) -> None:
    with servers.scratch() as directory:
        pg_user().own(directory)
        port = places.choose_port("127.0.0.1", 0)
        command = [
            sys.executable,
            "-m",
            "meridian.instance",
            "--data",
            str(directory / "data"),
            "--port",
            str(port),
            "--set",
            f"meridian.open={is_open}",
        ]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert process.stdout is not None and process.stdout.readline().startswith("ready")
            with psycopg.connect(
                host=str(directory / "data"), port=port, user="meridian_root", dbname="postgres"
            ) as session:
                assert session.execute("SHOW meridian.open").fetchone() == (is_open,)
            dsn = f"postgresql://admin@127.0.0.1:{port}/postgres"
            if is_open == "on":
                psycopg.connect(dsn).close()
                return
            for name in ("admin", "nobody_yet"):
                with pytest.raises(psycopg.OperationalError, match="starting up"):
                    psycopg.connect(dsn.replace("admin", name), connect_timeout=5)
        finally:
            process.terminate()
            process.wait(30)
