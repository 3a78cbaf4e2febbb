"""``precopy serve`` as a process: what it says, and what it holds."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.interop.errors import PeerError

#: Seconds to start, and to end.
PATIENCE = 30.0

#: Seconds between two looks at what it has said.
_LOOK = 0.05

#: Of a log: what is shown where something went wrong.
_LINES = 30


class Served:
    """A server of ``device`` in ``directory``, with ``options`` of ``precopy serve``."""

    def __init__(self, directory: Path, device: str = "sim:mlx5", *options: str) -> None:
        self.socket = directory / "vf.sock"
        self._log = directory / "serve.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "precopy", "serve", device),
                    *("--socket", str(self.socket), *options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        if not readable or not self._process.stdout.readline().startswith(b"serving "):
            self.close()
            raise PeerError(f"the server did not start:\n{self.last_words()}")

    def said(self) -> str:
        """All that it has logged."""
        return self._log.read_text(errors="replace")

    def last_words(self) -> str:
        return "\n".join(self.said().splitlines()[-_LINES:]) or "it said nothing"

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def held(self) -> tuple[int, int]:
        """Descriptors and threads that it has."""
        directory = f"/proc/{self._process.pid}"
        return len(os.listdir(f"{directory}/fd")), len(os.listdir(f"{directory}/task"))

    def wait_gone(self, clients: int) -> None:
        """Wait until so many clients have come and gone. PeerError after :data:`PATIENCE`."""
        ends = time.monotonic() + PATIENCE
        while len(re.findall(r"client \d+: gone", self.said())) < clients:
            if time.monotonic() > ends or not self.lives:
                raise PeerError(f"the server keeps a client that has gone:\n{self.last_words()}")
            time.sleep(_LOOK)

    def close(self) -> int:
        """End it as a user would. Its exit status."""
        if self.lives:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
