"""`steadfeast model`: the model edge. Top of `inference`."""

from __future__ import annotations

from typing import Annotated

import typer

from steadfeast.featurestore.command_line import DEFAULT, Config

app = typer.Typer(help="Serve predictions with their features.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Serve predictions with their features."""


@app.command()
def serve(
    grpc: Annotated[str, typer.Option(help="host:port of the gRPC edge.")] = "127.0.0.1:9469",
    http: Annotated[str, typer.Option(help="host:port of the HTTP edge.")] = "127.0.0.1:9470",
    config: Config = DEFAULT,
) -> None:
    """Serve the champions of all configured models until SIGTERM or Ctrl-C.

    Entity keys in, predictions out: features are read under the contract that the model was
    trained with, and both are logged. The registry's champion is followed without a restart.
    Stock clients of the Open Inference Protocol v2 are answered, over HTTP and gRPC.

    Example: steadfeast model serve --http 127.0.0.1:9470
    """
    from steadfeast.pipeline.inference import serve as run

    run(config, grpc, http)
