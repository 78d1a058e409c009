"""A load client as light as can be: it shares the cores with the server it measures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One picture as its reader saw it.

    Attributes:
        first_preview_seconds: From sending the request to the first message with an image.
        seconds: To `[DONE]`.
        images: Messages that carried an image, the final one included.
    """

    first_preview_seconds: float
    seconds: float
    images: int


async def closed_loop(
    host: str, port: int, queries: Sequence[dict[str, str]], concurrency: int
) -> tuple[float, list[StreamResult]]:
    """So many readers, each asking for its next picture when it has got the last one.

    Args:
        host: Of the server.
        port: Of the server.
        queries: One picture each, as query parameters of `/generate`.
        concurrency: Number of readers.

    Returns:
        Seconds that all of it took, and what each reader saw.
    """
    waiting = list(reversed(queries))
    results: list[StreamResult] = []

    async def reader() -> None:
        while waiting:
            results.append(await _watch(host, port, waiting.pop()))

    began = time.perf_counter()
    await asyncio.gather(*(reader() for _ in range(concurrency)))
    return time.perf_counter() - began, results


async def _watch(host: str, port: int, query: dict[str, str]) -> StreamResult:
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port, limit=2**22)
    try:
        request = (
            f"GET /generate?{urlencode(query)} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
        )
        writer.write(request.encode())
        status = await reader.readline()
        if b" 200 " not in status:
            raise ConnectionError(f"the server answered {status.decode().strip()}")
        first, images = None, 0
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                break
            if b'"error"' in line[:20]:
                raise ConnectionError(line.decode())
            if b'"image": "' in line:
                images += 1
                first = first or time.perf_counter() - began
        return StreamResult(first or 0.0, time.perf_counter() - began, images)
    finally:
        writer.close()
