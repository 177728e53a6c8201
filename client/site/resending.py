"""Replies that the server fails to take are sent again: Flower would drop them.

With a reply a site would lose its round's work, and what that cost of its privacy budget. A busy server fails in two
ways: it answers 5xx, or the session in which a reply's objects are pushed is over before they are. The same reply twice
counts once there, and a second session asks only for the objects that are missing.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supernode import start_client_internal as flower

logger = logging.getLogger("flwr")  # the SuperNode's own, which it shows

T = TypeVar("T")
Sleep = Callable[[float], None]
Send = Callable[..., tuple[set[str], str]]
PushObject = Callable[[int, str, str, bytes], None]

WAITS = (1.0, 5.0, 20.0, 60.0)
"""Seconds before a reply is sent again that the server failed to take."""


def repeat_sends(sleep: Sleep = time.sleep) -> None:
    """Make this process send replies again that the server fails to take.

    Args:
        sleep: Waits for seconds.
    """
    push = flower._push_messages

    def push_patiently(*, send: Send, push_object: PushObject, **others: Any) -> None:
        reply = _Reply(send, push_object, sleep)
        push(send=reply.send, push_object=reply.push_object, **others)

    flower._push_messages = push_patiently  # type: ignore[assignment]


class _Reply:
    """One reply after the other on its way: what was sent last, and the session in which its objects are pushed.

    Args:
        send: Flower's, announces a reply; returns the ids of the objects that are missing, and a session for them.
        push_object: Flower's, pushes one object; several threads may.
        sleep: Waits for seconds.
    """

    def __init__(self, send: Send, push_object: PushObject, sleep: Sleep) -> None:
        self._send, self._push, self._sleep = send, push_object, sleep
        self._announced: tuple[Any, ...] = ()
        self._session = ""
        self._renewing = threading.Lock()

    def send(self, *announced: Any) -> tuple[set[str], str]:
        """Announce a reply."""
        self._announced = announced
        missing, self._session = self._tried(lambda: self._send(*announced))
        return missing, self._session

    def push_object(self, run_id: int, session: str, object_id: str, content: bytes) -> None:
        """Push an object, in the latest session there is."""
        for wait in (*WAITS, None):
            session = self._session
            try:
                self._tried(lambda now=session: self._push(run_id, now, object_id, content))  # type: ignore[misc]
            except ObjectPushError:
                if wait is None:
                    raise
                self._renew(session, wait)
            else:
                return

    def _renew(self, session: str, wait: float) -> None:
        """Ask for another session, unless another thread has done so."""
        with self._renewing:
            if self._session == session:
                logger.warning("the server gave a reply no time to be pushed, once more in %g s", wait)
                self._sleep(wait)
                self.send(*self._announced)

    def _tried(self, call: Callable[[], T]) -> T:
        """Call until the server does not answer 5xx."""
        for wait in WAITS:
            try:
                return call()
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status < httpx.codes.INTERNAL_SERVER_ERROR:
                    raise
                logger.warning("the server failed to take a reply (%d), once more in %g s", status, wait)
                self._sleep(wait)
        return call()
