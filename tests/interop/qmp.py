"""QEMU's machine protocol (QMP) over a connected socket: one command at a time, events kept.

Raises PeerError where QEMU refuses a command, ends, or does not answer.
"""

import json
import socket
from collections.abc import Callable
from typing import Any

from tests.interop.errors import PeerError

#: Seconds that QEMU may take for an answer, or for an event that is waited for.
PATIENCE = 60.0


class Qmp:
    """Owns ``connection``. Takes the greeting and leaves the negotiation behind."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        self._socket = connection
        self._lines = connection.makefile("r", encoding="utf-8")
        self._events: list[dict[str, Any]] = []
        greeting = self._read("its greeting")
        #: ``11.1.3``
        self.version = ".".join(
            str(greeting["QMP"]["version"]["qemu"][part]) for part in ("major", "minor", "micro")
        )
        self.execute("qmp_capabilities")

    def _read(self, awaited: str) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except TimeoutError as error:
            raise PeerError(f"QEMU did not send {awaited} within {PATIENCE:g} s") from error
        except OSError:
            line = ""
        if not line:
            raise PeerError(f"QEMU ended before {awaited}")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def execute(self, command: str, **arguments: Any) -> Any:
        """What ``command`` returns. PeerError where QEMU refuses it."""
        said = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(said).encode() + b"\n")
        except OSError as error:
            raise PeerError(f"QEMU ended before it took {command}") from error
        while True:
            answer = self._read(f"its answer to {command}")
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise PeerError(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def human(self, line: str) -> str:
        """What the command ``line`` of the human monitor prints."""
        found = self.execute("human-monitor-command", **{"command-line": line})
        return str(found).strip()

    def wait(self, name: str, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The data of the next event ``name`` that ``fits``; others before it are let go."""
        while True:
            event = self._events.pop(0) if self._events else self._read(f"the event {name}")
            data = event.get("data", {})
            if event.get("event") == name and fits(data):
                assert isinstance(data, dict)
                return data

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
