"""One client's course: negotiation, then its commands one after another, until it goes."""

import errno
import logging
import os
import socket
import time
from dataclasses import replace

from precopy.frontends.vfio_user.client_memory import ClientMemory
from precopy.frontends.vfio_user.commands import Commands
from precopy.frontends.vfio_user.offered import Offered
from precopy.frontends.vfio_user.quirks import Quirks
from precopy.vfio_user import version
from precopy.vfio_user.conversation import Conversation, Gone, Message
from precopy.vfio_user.messages import (
    COMMANDS,
    Command,
    wrong,
)
from precopy.vfio_user.version import Capabilities

log = logging.getLogger("precopy.vfio_user")

#: Seconds that a client has to agree on a version.
NEGOTIATION = 5.0


class Session:
    """Serves the client at ``connected``; :meth:`run` returns when it has gone.

    Errors of a client are answered and logged under ``name``.
    """

    def __init__(
        self,
        connected: socket.socket,
        offered: Offered,
        *,
        name: str = "client",
        ours: Capabilities = version.OURS,
        quirks: Quirks | None = None,
        negotiation: float = NEGOTIATION,
    ) -> None:
        self._offered, self._name, self._ours = offered, name, ours
        self._quirks = quirks or Quirks()
        self._conversation = Conversation(connected, ours.max_data_xfer_size)
        self._agreed = Capabilities()
        self._twin: Conversation | None = None
        self._commands: Commands | None = None
        self._negotiation = negotiation

    # --- Its course ---------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the client goes, or :meth:`end` is called."""
        try:
            if self._negotiate():
                log.info("%s: has the device", self._name)
                client = ClientMemory(
                    self._twin or self._conversation,
                    self._agreed.max_data_xfer_size,
                    self._quirks,
                    self._conversation.cut,
                )
                self._commands = Commands(self._offered, self._ours, self._agreed, client)
                try:
                    self._serve(self._commands)
                finally:
                    self._offered.release()
        except Gone as gone:
            if gone.errno == errno.EPROTO:
                log.warning("%s: %s", self._name, gone.strerror)
        except TimeoutError:
            log.warning("%s: agreed on no version within %g s", self._name, self._negotiation)
        finally:
            self._conversation.close()
            if self._twin is not None:
                self._twin.close()
            # The client's memory goes with it, not when this is collected.
            if self._commands is not None:
                self._commands.close()
            log.info("%s: gone", self._name)

    def end(self) -> None:
        """End the session from any thread."""
        self._conversation.cut()

    def _negotiate(self) -> bool:
        """Agree on a version and take the device; False where the client was refused for good."""
        deadline = time.monotonic() + self._negotiation
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                # Whatever it has sent: it must not go on like that.
                raise TimeoutError
            message = self._conversation.next_request(left)
            try:
                if message.problem is not None:
                    raise message.problem
                if message.header.command != Command.VERSION:
                    raise wrong(errno.EINVAL, "the first command is not VERSION")
                theirs = version.parse(COMMANDS[Command.VERSION].request.parse(message.payload))
                self._agreed = version.agree(theirs, self._ours)
                self._offered.claim()
            except OSError as error:
                self._refuse(message, error)
                continue
            finally:
                self._conversation.recycle(message)
            try:
                self._answer_version(message, theirs)
            except BaseException:
                self._offered.release()
                raise
            return True

    def _answer_version(self, message: Message, theirs: Capabilities) -> None:
        agreed, fds = self._agreed, list[int]()
        if agreed.twin_socket:
            ours, peers = socket.socketpair()
            self._twin = Conversation(ours, agreed.max_data_xfer_size)
            fds.append(peers.detach())
        # What was not asked for is not named: QEMU takes no long reply.
        said = replace(agreed, max_msg_fds=self._ours.max_msg_fds, fd_index=0 if fds else None)
        said = replace(said, max_data_xfer_size=self._ours.max_data_xfer_size)
        reply = version.pack(said)
        try:
            self._conversation.reply(
                message.header, [COMMANDS[Command.VERSION].reply.pack(reply)], fds
            )
        finally:
            for fd in fds:
                os.close(fd)

    def _serve(self, commands: Commands) -> None:
        conversation = self._conversation
        while True:
            message = conversation.next_request()
            try:
                answer = commands.carry_out(message)
            except Gone:
                raise
            except OSError as error:
                self._refuse(message, error)
            else:
                conversation.reply(message.header, answer.payload, answer.fds)
                if answer.sent is not None:
                    answer.sent()
            finally:
                conversation.recycle(message)

    def _refuse(self, message: Message, error: OSError) -> None:
        header = message.header
        code = error.errno or errno.EIO
        # An end of data is no mistake of the client's.
        if code not in (errno.ENOMSG, errno.EAGAIN):
            try:
                what = Command(header.command).name
            except ValueError:
                what = f"command {header.command}"
            text = error.strerror or str(error)
            log.warning("%s: %s (message %d): %s", self._name, what, header.message_id, text)
        # An error is no answer to an error: two peers could go on like that for ever.
        if not (header.is_reply and header.error):
            self._conversation.fail(header, code)
