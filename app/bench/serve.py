"""`darkroom bench serve`: Darkroom over real HTTP against stock diffusers and against the bare batched loop.

In one run, with the same weights, prompts and steps:

a. stock diffusers, one request after another, no previews, at its best thread count and dtype;
b. the bare batched loop of 16 with no serving around it;
c. Darkroom over HTTP with 1, 4 and 16 concurrent streams and a preview at every step, the client on the same
   cores;
d. on a GPU, stock diffusers in batches of 16.

(b) and (c) in float32 and, where the CPU computes it natively, bfloat16. Every part is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.bench.checkpoints import write_true_size_catalog
from app.bench.client import StreamResult, closed_loop
from app.bench.prompts import prompts
from app.catalog.loader import load_catalog

STREAMS = (1, 4, 16)
_BATCH = 16
_PROBE_PICTURES = 4
_ROUNDS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `darkroom bench serve` takes."""
    parser.add_argument("--catalog", default="builtin", help="set or TOML file (default: %(default)s)")
    parser.add_argument("--model", help="full id or bare name (default: the catalogue's default)")
    parser.add_argument(
        "--true-size", action="store_true", help="random weights of Stable Diffusion 1.x size, 512 px"
    )
    parser.add_argument("--device", default="auto", help="'auto', 'cpu', 'cuda:0' … (default: %(default)s)")
    parser.add_argument(
        "--requests", type=int, default=64, help="pictures of each part (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=20, help="inference steps (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        if arguments.true_size:
            arguments.catalog = str(write_true_size_catalog(Path(folder)))
        result = _measure(arguments)
    print()
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    entry = load_catalog([arguments.catalog]).resolve(arguments.model)
    device, dtypes = _device_and_dtypes(arguments.device)
    threads = os.cpu_count() or 1
    print(f"{entry.id} on {device}, {threads} cores, {arguments.steps} steps", flush=True)
    folder = _local_folder(arguments.catalog, entry.id)
    scale = entry.defaults.guidance_scale
    result: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": _processor(), "cores": threads, "device": device},
        "model": entry.id,
        "steps": arguments.steps,
        "requests": arguments.requests,
        "a": _measure_plain(folder, dtypes, threads, arguments, scale, device),
        "b": {},
        "c": {},
    }
    if device != "cpu":
        rest = (arguments.steps, scale, device, _BATCH)
        result["d"] = _module("app.bench.plain", folder, dtypes[0], threads, arguments.requests, *rest)
        print(f"(d) diffusers in batches: {result['d']['images_per_second']:.2f} images/s", flush=True)
    for dtype in dtypes:
        counts = (threads, _BATCH, arguments.requests, arguments.steps)
        loop = _module("app.bench.loop", arguments.catalog, entry.id, dtype, *counts, device)
        result["b"][dtype] = loop
        print(f"(b) bare loop, {dtype}: {loop['images_per_second']:.2f} images/s", flush=True)
        result["c"][dtype] = _measure_served(dtype, arguments, entry.id, device)
    return result


def _device_and_dtypes(device: str) -> tuple[str, list[str]]:
    """The device by its full name, and the precisions worth measuring on it."""
    code = (
        "import app.engine.worker as w, app.engine.warm_up as u;"
        f"print(w.resolve_device({device!r}), int(u.computes_bfloat16_natively()))"
    )
    name, native = _python(code).split()[-2:]
    if name != "cpu":
        return name, ["float16"]
    return name, ["float32", "bfloat16"] if native == "1" else ["float32"]


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table, ratios included."""
    plain = result["a"]["images_per_second"]
    lines = [
        "| what | images/s | ÷ (a) | ÷ (b) | first preview p50 / p95 |",
        "|---|---|---|---|---|",
        f"| (a) diffusers, one by one, {result['a']['dtype']}, {result['a']['threads']} threads "
        f"| {plain:.2f} | 1 | | |",
    ]
    if "d" in result:
        rate = result["d"]["images_per_second"]
        lines.append(f"| (d) diffusers in batches of {_BATCH} | {rate:.2f} | {rate / plain:.2f} | | |")
    for dtype, loop in result["b"].items():
        rate = loop["images_per_second"]
        lines.append(f"| (b) bare loop of {_BATCH}, {dtype} | {rate:.2f} | {rate / plain:.2f} | 1 | |")
        for streams in map(str, STREAMS):
            served = result["c"][dtype][streams]
            ours = served["images_per_second"]
            share = f"{ours / rate:.2f}" if int(streams) == _BATCH else ""
            lines.append(
                f"| (c) Darkroom, {streams} streams, {dtype} | {ours:.2f} | {ours / plain:.2f} | {share} "
                f"| {served['first_preview_p50'] * 1e3:.0f} / {served['first_preview_p95'] * 1e3:.0f} ms |"
            )
    for dtype, loop in result["b"].items():
        parts = loop["preview_seconds"]
        share = sum(parts.values()) / loop["step_seconds"]
        detail = ", ".join(f"{part} {seconds * 1e3:.1f} ms" for part, seconds in parts.items())
        lines.append(
            f"\nPreviews of {_BATCH} pictures cost {share:.1%} of a {dtype} step "
            f"({loop['step_seconds'] * 1e3:.0f} ms): {detail}."
        )
    for dtype, served in result["c"].items():
        start = served["start"]
        lines.append(
            f"\nStart in {dtype}: `/livez` answers after {start['livez']:.1f} s, "
            f"`/readyz` after {start['readyz']:.1f} s."
        )
    return "\n".join(lines)


def _measure_plain(
    folder: str, dtypes: list[str], cores: int, arguments: argparse.Namespace, scale: float, device: str
) -> dict[str, Any]:
    """Find the best thread count and dtype on a few pictures, then measure that one properly."""

    def measure(dtype: str, threads: int, count: int) -> dict[str, Any]:
        return _module("app.bench.plain", folder, dtype, threads, count, arguments.steps, scale, device, 1)

    choices = [(dtype, threads) for dtype in dtypes for threads in sorted({1, cores})]
    probed = {choice: measure(*choice, _PROBE_PICTURES)["images_per_second"] for choice in choices}
    for (dtype, threads), rate in probed.items():
        print(f"(a) diffusers one by one, {dtype}, {threads} threads: {rate:.2f} images/s", flush=True)
    dtype, threads = max(probed, key=lambda choice: probed[choice])
    measured = measure(dtype, threads, max(_PROBE_PICTURES, arguments.requests // 4))
    probes = [{"dtype": d, "threads": t, "images_per_second": rate} for (d, t), rate in probed.items()]
    best = max(measured["images_per_second"], probed[dtype, threads])
    return {**measured, "images_per_second": best, "dtype": dtype, "threads": threads, "probes": probes}


def _measure_served(dtype: str, arguments: argparse.Namespace, model: str, device: str) -> dict[str, Any]:
    """Load the real server with 1, 4 and 16 readers; the best round counts, as for (a)."""
    served: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        environment = {
            **os.environ,
            "DARKROOM_DATA_DIR": folder,
            "DARKROOM_CATALOG": arguments.catalog,
            "DARKROOM_DEVICE": device,
            "DARKROOM_DTYPE": dtype,
            "DARKROOM_MAX_PER_CLIENT": "64",
            "DARKROOM_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "app", "serve", "--port", str(port)]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server:
            try:
                served["start"] = _start_times(server, port)
                asyncio.run(closed_loop("127.0.0.1", port, _queries(arguments, model, _BATCH), _BATCH))
                for streams in STREAMS:
                    count = (
                        arguments.requests
                        if streams == _BATCH
                        else min(arguments.requests, max(8, 4 * streams))
                    )
                    rounds = [
                        _load(port, arguments, model, count, streams)
                        for _ in range(_ROUNDS if streams == _BATCH else 1)
                    ]
                    best = max(rounds, key=lambda one: one["images_per_second"])
                    served[str(streams)] = {**best, "rounds": [one["images_per_second"] for one in rounds]}
                    print(
                        f"(c) Darkroom, {streams} streams, {dtype}: {best['images_per_second']:.2f} images/s,"
                        f" first preview {best['first_preview_p50'] * 1e3:.0f} ms",
                        flush=True,
                    )
            finally:
                server.terminate()
                server.wait(30)
    return served


def _load(port: int, arguments: argparse.Namespace, model: str, count: int, streams: int) -> dict[str, Any]:
    seconds, results = asyncio.run(closed_loop("127.0.0.1", port, _queries(arguments, model, count), streams))
    firsts = sorted(result.first_preview_seconds for result in results)
    _check_previews(results, arguments.steps)
    return {
        "images_per_second": count / seconds,
        "first_preview_p50": statistics.median(firsts),
        "first_preview_p95": firsts[min(len(firsts) - 1, round(0.95 * len(firsts)))],
        "images_per_stream": statistics.mean(result.images for result in results),
    }


def _check_previews(results: list[StreamResult], steps: int) -> None:
    """A reader that was sent few previews would make the figures look better than they are."""
    seen = statistics.mean(result.images for result in results)
    if seen < 0.9 * steps:
        raise RuntimeError(f"readers saw {seen:.1f} images of {steps}: the figures would not count")


def _queries(arguments: argparse.Namespace, model: str, count: int) -> list[dict[str, str]]:
    shared = {"model": model, "steps": str(arguments.steps)}
    return [{"prompt": prompt, "seed": str(seed), **shared} for seed, prompt in enumerate(prompts(count))]


def _start_times(server: subprocess.Popen[bytes], port: int, timeout: float = 600.0) -> dict[str, float]:
    """Wait for the server; seconds from process start to the first 200 of `/livez` and of `/readyz`."""
    began = time.monotonic()
    times: dict[str, float] = {}
    for probe in ("livez", "readyz"):
        while probe not in times:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/{probe}", timeout=5):
                    times[probe] = time.monotonic() - began
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
            if server.poll() is not None or time.monotonic() - began > timeout:
                raise RuntimeError("the server did not get ready")
    return times


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _module(module: str, *arguments: object) -> dict[str, Any]:
    """Run a module in a process of its own; its last line is JSON."""
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stderr}")
    parsed: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return parsed


def _python(code: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _local_folder(catalog: str, model: str) -> str:
    """Where the weights are on this disk; fetched first if they come from the hub."""
    code = (
        "import app.catalog.loader as c, app.engine.hub as h;"
        f"e = c.load_catalog([{catalog!r}]).resolve({model!r});"
        "print(h.fetch(e, lambda fraction, words: None, h.hub_access()))"
    )
    return _python(code).strip().splitlines()[-1]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
