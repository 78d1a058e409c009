"""Queue logic alone: who runs next, and who waits."""

from __future__ import annotations

from app.engine.batch_scheduler import BatchScheduler, Ticket

SMALL, LARGE = (4, 8, 8), (4, 16, 16)


def make_scheduler(rows: int = 4, running_batches: int = 2) -> BatchScheduler:
    """One model 'm' with batches of `rows`."""
    scheduler = BatchScheduler(running_batches)
    scheduler.add_model("m", rows, 1.0)
    return scheduler


def ids(batch: list[Ticket]) -> list[str]:
    """Ids of a batch."""
    return [ticket.id for ticket in batch]


def test_a_batch_never_exceeds_its_rows_and_never_mixes_shapes() -> None:
    """One forward has one latent shape and fits the measured batch; else it would fail."""
    scheduler = make_scheduler(rows=4, running_batches=10)
    for i in range(9):
        scheduler.add_request(Ticket(f"{i}", "m", SMALL if i % 2 else LARGE, 1 + i % 2))
    scheduler.admit()
    for _ in range(20):
        batch = scheduler.next_batch()
        assert sum(ticket.rows for ticket in batch) <= 4
        assert len({ticket.shape for ticket in batch}) == 1


def test_a_newcomer_gets_its_first_step_in_the_next_batch() -> None:
    """Whoever was never served goes first, so first previews come soon however many run."""
    scheduler = make_scheduler(rows=2, running_batches=5)
    for i in range(4):
        scheduler.add_request(Ticket(f"old {i}", "m", SMALL, 2))
    scheduler.admit()
    for _ in range(6):
        scheduler.next_batch()
    scheduler.add_request(Ticket("new", "m", SMALL, 2))
    scheduler.admit()
    assert ids(scheduler.next_batch()) == ["new"]


def test_every_running_request_is_served_in_turn() -> None:
    """With a running set of three batches each request advances every third batch: no one starves."""
    scheduler = make_scheduler(rows=2, running_batches=3)
    for i in range(3):
        scheduler.add_request(Ticket(f"{i}", "m", SMALL, 2))
    scheduler.admit()
    served = [ids(scheduler.next_batch())[0] for _ in range(9)]
    assert served == ["0", "1", "2"] * 3


def test_a_rare_shape_is_not_starved_by_a_common_one() -> None:
    """The oldest request picks the shape of the batch, so a lone large picture gets its turns."""
    scheduler = make_scheduler(rows=4, running_batches=9)
    scheduler.add_request(Ticket("lone", "m", LARGE, 2))
    for i in range(6):
        scheduler.add_request(Ticket(f"{i}", "m", SMALL, 2))
    scheduler.admit()
    turns = sum("lone" in ids(scheduler.next_batch()) for _ in range(12))
    assert turns >= 3


def test_models_share_time_not_turns() -> None:
    """A model with steps ten times as dear gets about as many seconds as a cheap one, not as many turns."""
    scheduler = BatchScheduler()
    cost = {"cheap": 0.1, "dear": 1.0}
    for model, seconds in cost.items():
        scheduler.add_model(model, 2, seconds)
        scheduler.add_request(Ticket(model, model, SMALL, 2))
    scheduler.admit()
    spent = dict.fromkeys(cost, 0.0)
    for _ in range(500):
        (ticket,) = scheduler.next_batch()
        spent[ticket.model] += cost[ticket.model]
        scheduler.charge(ticket.model, cost[ticket.model])
    assert 0.8 < spent["cheap"] / spent["dear"] < 1.25


def test_time_alone_is_not_held_against_a_model() -> None:
    """A model that ran by itself for long must share fairly, not wait, when another one wakes up."""
    scheduler = BatchScheduler()
    for model in ("a", "b"):
        scheduler.add_model(model, 2, 1.0)
    scheduler.add_request(Ticket("a", "a", SMALL, 2))
    scheduler.admit()
    for _ in range(100):
        scheduler.next_batch()
        scheduler.charge("a", 1.0)
    scheduler.add_request(Ticket("b", "b", SMALL, 2))
    scheduler.admit()
    turns = []
    for _ in range(10):
        (ticket,) = scheduler.next_batch()
        turns.append(ticket.id)
        scheduler.charge(ticket.model, 1.0)
    assert 4 <= turns.count("a") <= 6


def test_places_count_from_one_and_move_up() -> None:
    """The place that people are told is true, and moves up when someone ahead leaves."""
    scheduler = make_scheduler(rows=2, running_batches=1)
    for i in range(4):
        scheduler.add_request(Ticket(f"{i}", "m", SMALL, 2))
    scheduler.admit()
    assert scheduler.places() == {"1": 1, "2": 2, "3": 3}
    scheduler.remove("1")
    assert scheduler.places() == {"2": 1, "3": 2}
    assert scheduler.waiting == 2


def test_removing_frees_the_place_at_once() -> None:
    """An aborted request's place goes to the next one at the next step boundary."""
    scheduler = make_scheduler(rows=2, running_batches=1)
    for i in range(2):
        scheduler.add_request(Ticket(f"{i}", "m", SMALL, 2))
    scheduler.admit()
    scheduler.remove("0")
    assert ids(scheduler.admit()) == ["1"]
    assert ids(scheduler.next_batch()) == ["1"]


def test_shrinking_halves_down_to_one_guided_request() -> None:
    """After running out of memory batches get smaller, but one guided request always fits the count."""
    scheduler = make_scheduler(rows=8)
    assert [scheduler.shrink("m") for _ in range(4)] == [4, 2, 2, 2]
