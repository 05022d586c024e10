"""For developers of the extension: one instance by hand, against a gateway that already runs.

python -m meridian.instance --data DIR --gateway SOCKET [--port N] [--set name=value]
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from meridian.instance import config
from meridian.instance.errors import SetupError
from meridian.instance.instance import Instance


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--gateway", type=click.Path(path_type=Path), default="/nonexistent", help="Socket.")
@click.option("--port", default=54321, show_default=True)
@click.option("--set", "extra", multiple=True, help="More settings, name=value.")
@click.option("--fresh", is_flag=True, help="Remove the directory first.")
def main(data: Path, gateway: Path, port: int, extra: tuple[str, ...], fresh: bool) -> None:
    """Start one instance in the foreground, without passwords; log on standard error."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        instance = Instance(data, lambda line: click.echo(line, err=True))
        if fresh:
            instance.recreate()
        elif instance.prepare("developer"):
            instance.finish("developer")
        settings = config.Settings(
            port=port,
            socket_directory=instance.data,
            gateway_socket=gateway.resolve(),
            trust=True,
            ephemeral=True,
            extra=dict(item.split("=", 1) for item in extra),
        )
        instance.write_config(settings)
        postmaster = instance.start(sys.stderr)
    except SetupError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"ready: postgresql://admin@127.0.0.1:{port}/postgres (pid {postmaster.pid})")
    click.echo(f"superuser: psql -h '{instance.data}' -p {port} -U meridian_root postgres")
    try:
        postmaster.wait()
    finally:
        instance.stop(postmaster)


if __name__ == "__main__":
    main()
