"""The rules of judging one crash state, each with the case that breaks it."""

from __future__ import annotations

import pytest

from crashtest.cells import judge
from crashtest.cells.judge import state_fault

STATES = [f'"s{number}"' for number in range(6)]


def guarantee(states: list[str], acked: int, observed: str) -> str:
    fault = state_fault(states, acked, observed)
    return "" if fault is None else fault.guarantee


@pytest.mark.parametrize(
    ("acked", "observed", "broken"),
    [
        (0, "s0", ""),
        (0, "s1", ""),
        (0, "s2", "ordered"),
        (2, "s2", ""),
        (2, "s3", ""),
        (2, "s1", "durable"),
        (2, "s4", "ordered"),
        (5, "s5", ""),
        (5, "s4", "durable"),
        (2, "neither", "atomic"),
    ],
)
def test_the_state_is_the_last_acked_one_or_the_next(acked: int, observed: str, broken: str) -> None:
    assert guarantee(STATES, acked, f'"{observed}"') == broken


def test_a_state_that_recurs_is_judged_by_its_nearest_place() -> None:
    assert guarantee(['"a"', '"b"', '"a"'], 1, '"a"') == ""
    assert guarantee(['"a"', '"b"', '"a"'], 2, '"a"') == ""


def test_a_state_both_too_old_and_too_new_is_not_durable() -> None:
    """States 0 1 2 3 4 0: after two acks the state 0 is neither S2 nor S3, though it is not older than S5."""
    states = ['"0"', '"1"', '"2"', '"3"', '"4"', '"0"']
    assert guarantee(states, 2, '"0"') == "durable"
    assert guarantee(states, 4, '"0"') == ""


def test_going_on_starts_from_the_earliest_allowed_place() -> None:
    assert judge.next_operation(['"a"', '"b"', '"b"', '"c"'], 1, '"b"') == 1
    assert judge.next_operation(['"a"', '"b"', '"c"'], 0, '"c"') is None


def test_names_that_no_normal_run_leaves_are_not_clean() -> None:
    assert judge.clean_fault(["a", "a.tmp"], ["a"], []) is not None
    assert judge.clean_fault(["a", "a.tmp"], ["a"], ["*.tmp"]) is None
    assert judge.clean_fault(["a"], ["a", "b"], []) is None


def test_recovering_again_must_show_the_same() -> None:
    assert judge.idempotent_fault('"a"', "", '"a"') is None
    assert judge.idempotent_fault('"a"', "", '"b"') is not None
    assert judge.idempotent_fault('"a"', "recovery raised X", "null") is not None


def test_a_glance_sees_no_mixture() -> None:
    assert judge.visible_fault(['"a"', '"b"'], "", '"b"') is None
    assert judge.visible_fault(['"a"', '"b"'], "", '"ab"') is not None


def test_going_on_gives_the_next_state() -> None:
    assert judge.live_fault(['"a"', '"b"'], 0, "", '"b"', 1) is None
    assert judge.live_fault(['"a"', '"b"'], 0, "", '"a"', 1) is not None
    assert judge.live_fault(['"a"', '"b"'], 0, "the workload raised X", "null", 1) is not None
