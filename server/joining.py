"""Who takes part: sites are invited until they are there, and told each other's run keys.

A run waits for its sites up to a limit, goes on with those that came, and lets in whoever comes later between two
rounds.
"""

import time
from collections.abc import Callable, Collection
from typing import Final

from common import wire_pb2 as pb
from common.canonical import canonical_json
from server.belonging import REVOKED
from server.cohort import NO_REPLY, NOT_CONNECTED, Cohort
from server.introductions import Introductions
from server.mailbox import ASKED_AGAIN, Mailbox
from server.rundir import PreparedRun

INVITATION_TIMEOUT_S: Final = 20.0
"""Longest wait for the answers to one invitation; a site that needs longer is quick when it is invited again."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
LOOK_AGAIN_S: Final = 0.3
NO_ANSWER_YET: Final = "NoAnswerYet"

LATE_TIMEOUT_S: Final = 10.0
FIRST_LATE_PAUSE_S: Final = 30.0
LONGEST_LATE_PAUSE_S: Final = 600.0

MAY_COME_LATE: Final = ASKED_AGAIN | {NOT_CONNECTED, NO_REPLY}
"""Reasons for being away with which a site is let in between two rounds."""
MAY_RETURN: Final = MAY_COME_LATE | {"Unavailable", "PolicyRefused"}
"""Reasons with which it is let in when a run is resumed: a disk may have been mended, the night may be over."""


class Joining:
    """The sites of one run, on their way in."""

    def __init__(
        self,
        run: PreparedRun,
        mailbox: Mailbox,
        introductions: Introductions,
        cohort: Cohort,
        *,
        dismiss_revoked: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run = run
        self._mailbox = mailbox
        self._introductions = introductions
        self._cohort = cohort
        self._dismiss_revoked = dismiss_revoked
        self._clock = clock
        self._sleep = sleep
        self._seen: set[int] = set()
        self._late_pause_s = FIRST_LATE_PAUSE_S
        self._late_at_s = 0.0

    def gather(
        self, wanted: Collection[str], *, on_wait: Callable[[dict[str, str]], None], closing: bool = False
    ) -> None:
        """Invite every connected node until all of `wanted` joined, left for good, or the set-up time is over.

        Every node is asked once, whatever the time. Whoever else comes meanwhile is welcome.

        Args:
            wanted: The sites that are worth waiting for.
            on_wait: Told before each pause who is waited for and why; may raise to end the waiting.
            closing: The run is over, and sites are gathered to be told so.
        """
        deadline_s = self._clock() + self._run.settings.setup_timeout_s
        pause_s, timeout_s = FIRST_PAUSE_S, min(self._run.settings.setup_timeout_s, INVITATION_TIMEOUT_S)
        while True:
            self._seen = set(self._mailbox.connected())
            self._mailbox.invite(self._offer(), timeout_s=timeout_s, closing=closing)
            self._dismiss_revoked()
            waiting = self._waiting(wanted)
            left_s = deadline_s - self._clock()
            if not waiting or left_s <= 0:
                break
            on_wait(waiting)
            self._pause(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            timeout_s = max(FIRST_PAUSE_S, min(INVITATION_TIMEOUT_S, deadline_s - self._clock()))
        self._late_at_s = self._clock() + self._late_pause_s

    def introduce(self, *, timeout_s: float, patient: bool) -> None:
        """Tell every present site that does not know them yet the run keys of all that joined.

        Args:
            timeout_s: Longest wait for their answers.
            patient: Who does not answer is silent, as in a round; else he has left.
        """
        mailbox, joined = self._mailbox, sorted(self._mailbox.joined)
        asked = [
            site
            for site in self._introductions.not_told(self._cohort.present, joined)
            if site in mailbox.joined and site in mailbox.reachable
        ]
        if not asked:
            return
        request = pb.Keys(joined=[mailbox.joined[site] for site in joined], heads=mailbox.heads())
        mailbox.refused.clear()
        mailbox.ask(
            asked,
            lambda _: request,
            pb.Encapsulated,
            timeout_s=timeout_s,
            accept=lambda site, answer: self._introductions.accept(site, joined, answer),
        )
        for site in self._introductions.not_told(asked, joined):
            if patient and site not in mailbox.refused:
                self._cohort.silent(site)
            else:
                self._cohort.refused(site, mailbox.refused.get(site, NO_REPLY))

    def invite_late(self) -> bool:
        """Invite whoever is not there yet, if a node is new or it has been a while; whether somebody came.

        A node that does not answer is asked ever more rarely, so that it does not delay every round.
        """
        self._dismiss_revoked()
        away = {site for site, reason in self._cohort.left.items() if reason in MAY_COME_LATE}
        if not away:
            return False
        connected = set(self._mailbox.connected())
        if connected <= self._seen and self._clock() < self._late_at_s:
            return False
        self._seen = connected
        for site in away:
            self._mailbox.addresses.lose(site)
        self._mailbox.refused.clear()
        timeout_s = min(LATE_TIMEOUT_S, self._run.settings.round_timeout_s)
        came = [site for site in self._mailbox.invite(self._offer(), timeout_s=timeout_s) if site in away]
        for site in came:
            self._cohort.returned(site)
        for site in away - set(came):
            self._cohort.refused(site, self._mailbox.refused.get(site, self._cohort.left[site]))
        self._late_pause_s = FIRST_LATE_PAUSE_S if came else min(2 * self._late_pause_s, LONGEST_LATE_PAUSE_S)
        self._late_at_s = self._clock() + self._late_pause_s
        return bool(came)

    def note_absent(self) -> None:
        """Sites that are not there have left, those that had left and are there have returned."""
        here = set(self._mailbox.reachable)
        for site in here & self._cohort.left.keys():
            if self._cohort.left[site] in MAY_RETURN:
                self._cohort.returned(site)
        for site in set(self._cohort.present) - here:
            self._cohort.refused(site, self._mailbox.refused.get(site, NOT_CONNECTED))

    def _waiting(self, wanted: Collection[str]) -> dict[str, str]:
        """The wanted sites that may still come, with what is known of them."""
        revoked = {site for site, reason in self._cohort.left.items() if reason == REVOKED}
        reasons = {
            site: self._mailbox.refused.get(site, NO_ANSWER_YET)
            for site in sorted(set(wanted) - set(self._mailbox.reachable) - revoked)
        }
        return {site: why for site, why in reasons.items() if why == NO_ANSWER_YET or why in ASKED_AGAIN}

    def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until a new node is there."""
        until_s = self._clock() + seconds
        while (left_s := until_s - self._clock()) > 0:
            self._sleep(min(LOOK_AGAIN_S, left_s))
            if not set(self._mailbox.connected()) <= self._seen:
                return

    def _offer(self) -> pb.Offer:
        plan, manifest = self._run.plan, self._run.manifest
        return pb.Offer(plan=canonical_json(plan.to_json()), manifest=canonical_json(manifest.to_json()))
