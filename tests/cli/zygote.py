"""Becomes the processes of tests: it has imported everything, and forks for each command.

Given a SOCK_SEQPACKET socket's descriptor. A JSON list with three descriptors (stdin, stdout,
stderr) is a command line, answered by a process id; a JSON number is the id of a process that has
ended, answered by its status as ``subprocess`` tells it.
"""

import json
import os
import signal
import socket
import sys

from precopy.cli.main import main


def serve(wire: socket.socket) -> list[str] | None:
    """In a new process: its command line. None at the end."""
    while True:
        request, descriptors, *_ = socket.recv_fds(wire, 1 << 16, 3)
        if not request:
            return None
        asked = json.loads(request)
        if isinstance(asked, int):
            _, status = os.waitpid(asked, 0)
            wire.send(b"%d" % os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if not pid:
            wire.close()
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return [str(each) for each in asked]
        for descriptor in descriptors:
            os.close(descriptor)
        wire.send(b"%d" % pid)


if __name__ == "__main__":
    # Whatever the tests were started under: these are not ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    if command is not None:
        main(args=command, prog_name="precopy")
