"""Crash points, torn writes and ids."""

from __future__ import annotations

from crashtest.cells.plan import Cell, cell_id, example_id, place, plan, tears
from crashtest.trace import Ack, Event, Op, Step


def write(offset: int, size: int, call: str = "write") -> Op:
    return Op("write", 1, offset=offset, data=b"x" * size, call=call, path="a")


def test_a_point_stands_before_steps_and_changes_and_around_acks_and_at_the_end() -> None:
    events: list[Event] = [Op("fsync", 1), Step("s"), Op("fsync", 1), Op("unlink", 1), Op("fsync", 1), Ack(1)]
    made = plan(events, [], True)
    assert [cell.cut for cell in made.cells] == [1, 3, 5, 6]
    assert made.crash_points == 4


def test_a_write_within_one_page_is_whole() -> None:
    assert tears(write(0, 4096)) == []
    assert tears(write(100, 3996)) == []
    assert tears(write(4095, 2)) == [1]
    assert tears(write(0, 9000)) == [4096, 8192]


def test_tears_left_out_are_counted() -> None:
    made = plan([write(0, 4096 * 11)], [], True)
    assert [cell.torn for cell in made.cells] == [0, 4096, 4096 * 6, 4096 * 10, 0]
    assert made.skipped == 10 - 3


def test_calls_whose_bytes_the_kernel_moves_are_not_torn_and_counted_as_skipped() -> None:
    for call in ("splice", "sendfile", "copy_file_range", "fallocate", "ioctl"):
        made = plan([write(0, 12000, call)], [], True)
        assert [cell.torn for cell in made.cells] == [0, 0]
        assert made.skipped == 2


def test_variants_only_where_the_worker_has_children() -> None:
    made = plan([Op("unlink", 1, call="unlink"), Op("unlink", 2, call="unlink")], [1], True)
    assert [(cell.cut, cell.variant) for cell in made.cells] == [
        (0, "group"),
        (1, "group"),
        (1, "worker"),
        (1, "late"),
        (2, "group"),
    ]


def test_a_signal_is_sent_at_each_place_where_the_program_is_still_there() -> None:
    events: list[Event] = [Op("unlink", 1, call="unlink"), Ack(1), Op("unlink", 2, call="mmap")]
    made = plan(events, [0], True, ("TERM", "HUP"))
    assert [(cell.cut, cell.variant) for cell in made.cells if cell.variant in ("TERM", "HUP")] == [
        (0, "TERM"),
        (0, "HUP"),
        (1, "TERM"),
        (1, "HUP"),
    ]
    by_starter = plan(events, [], True, ("TERM",), acks_itself=False)
    assert [cell.cut for cell in by_starter.cells if cell.variant == "TERM"] == [0]
    blind = plan(events, [], False, ("TERM",))
    assert (blind.skipped, {cell.variant for cell in blind.cells}) == (
        plan(events, [], False).skipped + 2,
        {"group", "rebuilt"},
    )
    told = place(events, Cell(0, "unlink", 0, "TERM"), "unlink(a)")
    assert (told, cell_id("p::f", "e", made.cells[3], "kill")) == ("SIGTERM before unlink(a)", "p::f/e/0t/kill/none")


def test_ids_are_made_of_content_and_place() -> None:
    name = example_id(['"a"'])
    assert name == example_id(['"a"']) != example_id(['"b"'])
    assert cell_id("p::f", name, Cell(3, "", 0, "late"), "kill") == f"p::f/{name}/3l/kill/none"
    assert cell_id("p::f", name, Cell(3, "", 4096, "group"), "kill").startswith(f"p::f/{name}/3/kill/")
    assert not cell_id("p::f", name, Cell(3, "", 4096, "group"), "kill").endswith("none")
