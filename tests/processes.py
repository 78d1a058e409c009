"""A real `darkroom serve`, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 60.0


@dataclass
class Served:
    """A running server.

    Attributes:
        url: Its address, as it printed it.
        process: The process.
        lines: What it has printed so far.
    """

    url: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 30.0) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


def environment(folder: Path, **values: str) -> dict[str, str]:
    """The environment without anybody's settings, and with a data folder below `folder`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "PYTHONPATH"))
    }
    return {**kept, "DARKROOM_DATA_DIR": str(folder / "data"), "HF_HUB_OFFLINE": "1", **values}


@contextmanager
def served(command: Sequence[str], folder: Path, **values: str) -> Iterator[Served]:
    """Run `command` from `folder` on a free port until the block ends; `values` are for its environment."""
    process = subprocess.Popen(
        [*command, "--port", "0"],
        cwd=folder,
        env=environment(folder, **values),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    try:
        yield Served(_address(process, lines), process, lines)
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    lines.extend(iter(process.stdout.readline, ""))


def _address(process: subprocess.Popen[str], lines: list[str]) -> str:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        found = re.search(r"Darkroom is at (http://\S+)", "".join(lines))
        if found:
            return found.group(1)
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"the server did not start:\n{''.join(lines)}")
