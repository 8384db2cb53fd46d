"""A TCP proxy on loopback in front of a server: it holds answers, loses them, or holds requests.

Real sockets, so that a client meets what a slow or broken network does to it.
"""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class SlowProxy:
    """Forwards to a port of 127.0.0.1; the test changes what goes wrong while it runs.

    `lose_answer_to`: of requests with these bytes, the answer is dropped and the connection closed,
    after the server has done what was asked. `hold_request`: requests with these bytes do not reach
    the server until `let_requests_go`.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.lose_answer_to: bytes | None = None
        self.lost = 0
        self.hold_request: bytes | None = None
        self.let_requests_go = threading.Event()
        self.request_held, self.answer_held = threading.Event(), threading.Event()
        self.answered = 0
        self._answers_flow = threading.Event()
        self._answers_flow.set()

    def stall(self) -> None:
        """Forward no answer from now on."""
        self._answers_flow.clear()

    def flow(self) -> None:
        """Forward what was held."""
        self._answers_flow.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._answers_flow.set()
        self.let_requests_go.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            _Connection(self, client, socket.create_connection(("127.0.0.1", self._target)))

    def _on_request(self, content: bytes) -> bool:
        """Waits where it is to be held; returns whether its answer is to be lost."""
        if self.hold_request is not None and self.hold_request in content:
            self.hold_request = None  # the next one passes
            self.request_held.set()
            self.let_requests_go.wait()
        if self.lose_answer_to is not None and self.lose_answer_to in content:
            self.lose_answer_to = None
            return True
        return False

    def _on_answer(self) -> None:
        if not self._answers_flow.is_set():
            self.answer_held.set()
            self._answers_flow.wait()
        self.answered += 1


class _Connection:
    def __init__(self, proxy: SlowProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._doomed = False
        for end in (client, server):  # else each answer waits 40 ms for the acknowledgement
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for work in (self._requests, self._answers):
            threading.Thread(target=work, daemon=True).start()

    def _requests(self) -> None:
        try:
            while content := self._client.recv(65_536):
                self._doomed |= self._proxy._on_request(content)
                self._server.sendall(content)
        except OSError:
            pass
        # The server's side stays open: it may still be at work on what was asked.

    def _answers(self) -> None:
        try:
            while content := self._server.recv(65_536):
                if self._doomed:
                    self._proxy.lost += 1
                    break
                self._proxy._on_answer()
                self._client.sendall(content)
        except OSError:
            pass
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # it wakes the thread that reads from it
            end.close()
