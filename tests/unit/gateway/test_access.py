"""Who may see which tape."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from livetape.auth import EXECUTE_GRAPH, GUEST, READ_BLOCK, READ_GRAPH, SCOPES, Principal
from livetape.events.channel import job_channel
from livetape.events.jobs import UnownedJobs
from livetape.events.log import Tape
from livetape.gateway.access import Access, OwnerAccess
from livetape.gateway.subjects import Kind, Subject

EXECUTION = Subject(Kind.EXECUTION, "E")
GRAPH = Subject(Kind.GRAPH, "G")
JOB = Subject(Kind.JOB, "J")
USER = Principal("U")
ADMIN = Principal("U", "admin")
GUEST_OF_E = Principal(f"{GUEST}x", shares=frozenset({EXECUTION.tape}))

USERS = st.sampled_from(["U", "V", "", "share:x"])
SUBJECTS = st.builds(Subject, st.sampled_from(Kind), st.sampled_from(["a", "b", "a/b"]))
PRINCIPALS = st.builds(
    Principal,
    USERS,
    role=st.sampled_from(["", "user", "admin"]),
    scopes=st.none() | st.frozensets(st.sampled_from(sorted(SCOPES))),
    shares=st.frozensets(SUBJECTS.map(lambda subject: subject.tape), max_size=3),
)


def tape(subject: Subject, owner: str | None) -> Tape:
    return Tape(subject.tape, owner, "G", "execution_event/U/G/E", "e", 3, 1, final=False)


@pytest.mark.parametrize(
    ("subject", "owner", "principal", "jobs_unowned", "access"),
    [
        (EXECUTION, "U", USER, "admin", Access.GRANTED),
        (EXECUTION, "V", USER, "any_user", Access.DENIED),
        (EXECUTION, "V", ADMIN, "any_user", Access.DENIED),
        (EXECUTION, None, ADMIN, "any_user", Access.UNKNOWN),
        (GRAPH, "U", USER, "admin", Access.GRANTED),
        (GRAPH, "V", USER, "admin", Access.DENIED),
        (JOB, "U", USER, "admin", Access.GRANTED),
        (JOB, "V", USER, "any_user", Access.DENIED),
        (JOB, None, USER, "admin", Access.UNKNOWN),
        (JOB, None, ADMIN, "admin", Access.GRANTED),
        (JOB, None, USER, "any_user", Access.GRANTED),
        # keys with scopes
        (EXECUTION, "U", replace(USER, scopes=frozenset({READ_GRAPH})), "admin", Access.GRANTED),
        (EXECUTION, "V", replace(USER, scopes=SCOPES), "admin", Access.DENIED),
        (EXECUTION, "U", replace(USER, scopes=frozenset({EXECUTE_GRAPH, READ_BLOCK})), "admin", Access.DENIED),
        (EXECUTION, None, replace(USER, scopes=frozenset()), "any_user", Access.DENIED),
        (GRAPH, "U", replace(USER, scopes=frozenset({EXECUTE_GRAPH})), "admin", Access.DENIED),
        (JOB, "U", replace(USER, scopes=frozenset({EXECUTE_GRAPH})), "any_user", Access.DENIED),
        (JOB, None, replace(ADMIN, scopes=frozenset()), "any_user", Access.DENIED),
        # guests
        (EXECUTION, "V", GUEST_OF_E, "admin", Access.GRANTED),
        (EXECUTION, None, GUEST_OF_E, "any_user", Access.DENIED),
        (GRAPH, "V", GUEST_OF_E, "any_user", Access.DENIED),
        (JOB, None, GUEST_OF_E, "any_user", Access.DENIED),
        (JOB, None, replace(GUEST_OF_E, shares=frozenset({JOB.tape})), "admin", Access.GRANTED),
        (EXECUTION, f"{GUEST}x", replace(GUEST_OF_E, shares=frozenset()), "any_user", Access.DENIED),
    ],
)
def test_access(
    subject: Subject, owner: str | None, principal: Principal, jobs_unowned: UnownedJobs, access: Access
) -> None:
    assert OwnerAccess(jobs_unowned)(principal, subject, tape(subject, owner)) is access


@pytest.mark.parametrize("subject", [EXECUTION, GRAPH, JOB])
def test_what_is_not_there_is_unknown_and_never_a_guests(subject: Subject) -> None:
    assert OwnerAccess("any_user")(ADMIN, subject, None) is Access.UNKNOWN
    assert OwnerAccess("any_user")(replace(ADMIN, scopes=frozenset()), subject, None) is Access.DENIED
    everything = frozenset({EXECUTION.tape, GRAPH.tape, JOB.tape})
    assert OwnerAccess("any_user")(replace(GUEST_OF_E, shares=everything), subject, None) is Access.DENIED


@given(PRINCIPALS, SUBJECTS, st.none() | USERS, st.booleans(), st.sampled_from(["admin", "any_user"]))
@example(Principal("share:x", shares=frozenset({"job_events:a"})), Subject(Kind.JOB, "a"), "share:x", True, "any_user")
def test_nobody_sees_anything_without_a_right_to_it(
    principal: Principal, subject: Subject, owner: str | None, exists: bool, jobs_unowned: UnownedJobs
) -> None:
    found = OwnerAccess(jobs_unowned)(principal, subject, tape(subject, owner) if exists else None)
    may_read = principal.scopes is None or READ_GRAPH in principal.scopes
    if found is Access.GRANTED:
        assert exists
        if principal.is_guest:
            assert subject.tape in principal.shares
        else:
            is_open_job = (
                subject.kind is Kind.JOB and owner is None and (principal.is_admin or jobs_unowned == "any_user")
            )
            assert may_read
            assert owner == principal.user_id or is_open_job
    elif found is Access.UNKNOWN:
        # what may be shown then is on channels of its own: that must be a user's, and of nobody else's tape
        assert not principal.is_guest
        assert may_read
        assert not exists or owner is None


@given(PRINCIPALS, SUBJECTS)
def test_the_token_behind_a_principal_decides_nothing(principal: Principal, subject: Subject) -> None:
    check = OwnerAccess()
    for owner in (None, "U", "V"):
        there = tape(subject, owner)
        assert check(principal, subject, there) is check(principal.without_token(), subject, there)


def test_a_limited_principal_is_told_apart() -> None:
    assert not USER.is_limited
    assert GUEST_OF_E.is_limited
    assert replace(USER, scopes=frozenset(SCOPES)).is_limited
    assert USER.may(EXECUTE_GRAPH)
    assert not GUEST_OF_E.may(READ_GRAPH)
    assert not replace(USER, scopes=frozenset({READ_GRAPH})).may(EXECUTE_GRAPH)
    assert job_channel("J") == JOB.bus_pattern(None, "U"), "a job's channel names no user, so access must be certain"
