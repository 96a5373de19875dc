"""When a node gets its request once more."""

from typing import Final

FIRST_RETRY_S: Final = 1.0
"""Pause after a first failure: a courier or agent that is being restarted is back in seconds."""


class Asked:
    """One node in one exchange: the messages it was sent and when the next one is due.

    Attributes:
        messages: Ids of messages that may still be answered.
    """

    def __init__(self, *, resend_after_s: float) -> None:
        """Expect a message that is sent next.

        Args:
            resend_after_s: Silence after which the request is due again, doubled with every silence; 0 is never.
        """
        self._silence_s = resend_after_s
        self._longest_retry_s = resend_after_s
        self._retry_s = FIRST_RETRY_S
        self._failed = False
        self._due_s: float | None = None
        self.messages: set[str] = set()

    def sent(self, message_id: str, now_s: float) -> None:
        """A message left."""
        self.messages.add(message_id)
        self._due_s = now_s + self._silence_s if self._silence_s else None
        if not self._failed:
            self._silence_s *= 2
        self._failed = False

    def goes_on(self, now_s: float, *, final: bool) -> bool:
        """Whether a failure is not the end of it: something may still come, or the request is due again soon."""
        if final or not self._longest_retry_s:
            return False
        retry_at_s = now_s + min(self._retry_s, self._longest_retry_s)
        self._retry_s *= 2
        self._failed = True
        self._due_s = retry_at_s if self._due_s is None else min(self._due_s, retry_at_s)
        return True

    def is_due(self, now_s: float) -> bool:
        """Whether the request is to be sent again now."""
        return self._due_s is not None and now_s >= self._due_s
