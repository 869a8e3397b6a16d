"""Who may see which tape. Pure: whoever asks has looked the tape up."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Protocol

from livetape.auth import READ_GRAPH, Principal
from livetape.events.jobs import UnownedJobs
from livetape.events.log import Tape
from livetape.gateway.subjects import Kind, Subject

READ_SCOPES: Final = {Kind.EXECUTION: READ_GRAPH, Kind.GRAPH: READ_GRAPH, Kind.JOB: READ_GRAPH}
"""The scope that a caller with limited scopes needs. Jobs have none of their own: they are what graphs are, things
that run and are watched."""


class Access(StrEnum):
    """What a principal may see of a subject."""

    GRANTED = "granted"
    UNKNOWN = "unknown"
    """There is no owner yet: events that are proven to be the principal's own may be shown."""

    DENIED = "denied"


class AccessCheck(Protocol):
    """Decides for every way to watch a tape: when a subscription begins, and again when permissions changed."""

    def __call__(self, principal: Principal, subject: Subject, tape: Tape | None, /) -> Access:
        """What this principal may see of the subject. Without I/O, and always the same for the same arguments.

        `tape` is None when there is none (yet). Whatever is not surely allowed is DENIED.
        """
        ...


class OwnerAccess:
    """A tape is its owner's, whatever the owner's role.

    - A job without an owner is for admins, with `jobs_unowned="any_user"` for everybody signed in.
    - Anything else without an owner, and what is not there, is UNKNOWN.
    - A principal with scopes needs the one of `READ_SCOPES` in any case.
    - A guest (a principal with `shares`) sees the tapes that were shared with it and nothing else, under no id.
    """

    def __init__(self, jobs_unowned: UnownedJobs = "admin") -> None:
        self._jobs_unowned: UnownedJobs = jobs_unowned

    def __call__(self, principal: Principal, subject: Subject, tape: Tape | None, /) -> Access:
        is_job = subject.kind is Kind.JOB
        if principal.is_guest:
            # Never UNKNOWN: nothing is a guest's own. What nobody owns nobody can have shared, but jobs need no owner.
            there = tape is not None and (tape.owner is not None or is_job)
            return Access.GRANTED if there and subject.tape in principal.shares else Access.DENIED
        if not principal.may(READ_SCOPES[subject.kind]):
            return Access.DENIED
        if tape is None:
            return Access.UNKNOWN
        if tape.owner is not None:
            return Access.GRANTED if tape.owner == principal.user_id else Access.DENIED
        if is_job and (principal.is_admin or self._jobs_unowned == "any_user"):
            return Access.GRANTED
        return Access.UNKNOWN
