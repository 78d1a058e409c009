"""The command line: darkroom serve | models | bench | train.

Imports nothing heavy at the top: the port is bound before the web layer is imported, long before torch.
"""

from __future__ import annotations

import argparse
import logging
import math
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from app.catalog.entry import CatalogEntry
from app.catalog.loader import load_catalog
from app.errors import DarkroomError, InvalidConfiguration
from app.settings import Settings, load_settings, unknown_names

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

logger = logging.getLogger(__name__)
_BACKLOG = 2048
_BENCHES = {
    "serve": "images per second: diffusers alone, the bare loop, and Darkroom",
    "batch": "what batching gains for one model",
    "models": "every model of a catalogue: seconds, images per second, memory",
    "memory": "what holding equal tensors once saves, at the size of Stable Diffusion 1.x",
    "quality": "whether pictures follow held-out prompts; compares models",
}
_Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process if left out.

    Returns:
        The exit status: 0 if all went well, 1 if something cannot be done; wrong arguments exit with 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        from app.training.__main__ import main as train

        train(arguments[1:])
        return 0
    parsed = _parser(arguments).parse_args(arguments)
    command: _Command = parsed.command
    try:
        return command(parsed)
    except DarkroomError as error:
        print(f"darkroom: {error.message}", file=sys.stderr)
        return 1


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darkroom",
        description="Pictures that develop before your eyes, and learn which ones people prefer.",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    serve = commands.add_parser("serve", help="serve the pages and the API")
    serve.add_argument("--host", help="address to listen on (DARKROOM_HOST, 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (DARKROOM_PORT, 8000); 0 takes a free one")
    serve.set_defaults(command=_serve)
    models = commands.add_parser("models", help="list the models with their sizes and licences")
    models.set_defaults(command=_models)
    _add_bench(commands.add_parser("bench", help="measure this machine"), arguments)
    commands.add_parser("train", help="make weights: the built-in models (needs the extra 'train')")
    return parser


def _add_bench(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    benches = parser.add_subparsers(metavar="bench", required=True)
    for name, words in _BENCHES.items():
        bench = benches.add_parser(name, help=words)
        if arguments[:2] == ["bench", name]:
            module = import_module(f"app.bench.{name}")
            module.add_arguments(bench)
            bench.set_defaults(command=module.run)


def _models(_: argparse.Namespace) -> int:
    catalog = load_catalog(load_settings().catalog)
    rows = [("MODEL", "LABEL", "PICTURES", "WEIGHTS", "LICENCE")]
    rows += [_row(entry, entry is catalog.default) for entry in catalog.entries]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(entry: CatalogEntry, default: bool) -> tuple[str, str, str, str, str]:
    sizes = ", ".join(f"{width}x{height}" for width, height in entry.limits.sizes)
    return (entry.id + (" (default)" if default else ""), entry.label, sizes, _weights(entry), entry.licence)


def _weights(entry: CatalogEntry) -> str:
    if entry.folder is None:
        return entry.source
    files = [*entry.folder.rglob("*.safetensors"), *([entry.adapter_file] if entry.adapter_file else [])]
    if not files or not all(file.is_file() for file in files):
        return "missing"
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def _serve(parsed: argparse.Namespace) -> int:
    settings = load_settings(host=parsed.host, port=parsed.port)
    _start_logging(settings.log_level)
    for name in unknown_names():
        logger.warning("%s is no setting of Darkroom; is it misspelt?", name)
    with _bound(settings.host, settings.port) as listener, suppress(KeyboardInterrupt):
        _server(_create_app(settings), settings, listener).run(sockets=[listener])
    return 0


def _create_app(settings: Settings) -> FastAPI:
    from app.main import create_app

    try:
        return create_app(settings)
    except ValueError as exc:
        raise InvalidConfiguration(str(exc)) from exc


def _server(app: FastAPI, settings: Settings, listener: socket.socket) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"Darkroom is at {_url(listener)}", flush=True)

    config = uvicorn.Config(
        app,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=settings.log_level == "debug",  # addresses hold prompts
        server_header=False,
        # Streams end by themselves when told to stop; this is for what does not.
        timeout_graceful_shutdown=math.ceil(settings.graceful_shutdown_seconds),
    )
    return Server(config)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the port, so that nobody else gets it and no torch is imported for nothing.

    Raises:
        InvalidConfiguration: The port is in use, or the address is not of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as exc:
        raise InvalidConfiguration(f"The host {host!r} cannot be resolved: {exc}.") from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # from here on early clients wait, and a second server is told
    except OSError as exc:
        listener.close()
        raise InvalidConfiguration(
            f"Port {port} on {host} cannot be used: {(exc.strerror or str(exc)).lower()}. "
            f"Choose another one with --port or DARKROOM_PORT."
        ) from exc
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _start_logging(level: str) -> None:
    """Our own lines and the server's at `level`; those of libraries from warnings on."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for name in ("app", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
