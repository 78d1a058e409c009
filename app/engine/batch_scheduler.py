"""Who is in the next forward pass: waiting, running, and fair draws between models and requests.

Pure queue logic: knows ids, models, shapes and rows, imports no torch. Two levels of fairness:

- Between models by cost: deficit round robin (Shreedhar and Varghese, 1995). A model may run a batch when
  its deficit covers what a batch of it costs in seconds; each visit adds the same quantum, so that models get
  equal time, whatever one of their steps costs.
- Between the requests of a model by age: whoever was served longest ago goes first and picks the latent
  shape; a newcomer was never served, so its first step comes with the next batch of its model.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import count

Shape = tuple[int, ...]


@dataclass(slots=True)
class Ticket:
    """A request as the queue sees it.

    Attributes:
        id: Id of the request.
        model: Id of its model.
        shape: Latent shape; only equal shapes share a forward.
        rows: Forward rows of one step: 2 with classifier-free guidance, else 1.
        served: Number of the batch that served it last; −1 if none did.
    """

    id: str
    model: str
    shape: Shape
    rows: int
    served: int = -1


@dataclass(slots=True)
class _ModelQueue:
    """Waiting and running tickets of one model, and its account in the round robin."""

    batch_rows: int
    step_cost: float
    waiting: OrderedDict[str, Ticket]
    running: OrderedDict[str, Ticket]
    deficit: float = 0.0


class BatchScheduler:
    """Draws batches from the running set and refills it from the waiting queue.

    Args:
        running_batches: The running set of a model holds at most this many full batches, so that those who
            started finish soon and the rest wait with a place they can be told.
    """

    def __init__(self, running_batches: int = 2) -> None:
        self._running_batches = running_batches
        self._queues: dict[str, _ModelQueue] = {}
        self._ring: deque[str] = deque()
        self._serial = count()

    def add_model(self, model: str, batch_rows: int, step_cost: float) -> None:
        """Make a model eligible.

        Args:
            model: Id.
            batch_rows: Most forward rows of one batch, at least 2.
            step_cost: Seconds that one full batch takes, as far as known.
        """
        queue = self._queues.get(model)
        if queue is None:
            self._queues[model] = _ModelQueue(batch_rows, step_cost, OrderedDict(), OrderedDict())
        else:
            queue.batch_rows, queue.step_cost = batch_rows, step_cost

    def remove_model(self, model: str) -> None:
        """Forget a model that has no requests left."""
        self._queues.pop(model, None)

    def shrink(self, model: str) -> int:
        """Halve the model's batch, to at least 2 rows; returns the new number of rows."""
        queue = self._queues[model]
        queue.batch_rows = max(2, queue.batch_rows // 2)
        return queue.batch_rows

    def add_request(self, ticket: Ticket) -> None:
        """Append to the waiting queue of its model, which must have been added."""
        self._queues[ticket.model].waiting[ticket.id] = ticket

    def remove(self, request_id: str) -> None:
        """Forget a request that is done or aborted; its place is free at once. Unknown ids are ignored."""
        for queue in self._queues.values():
            queue.waiting.pop(request_id, None)
            queue.running.pop(request_id, None)

    def admit(self) -> list[Ticket]:
        """Move waiting requests into the running sets as far as there is room; returns those that joined."""
        joined = []
        for queue in self._queues.values():
            rows = sum(ticket.rows for ticket in queue.running.values())
            while queue.waiting:
                ticket = next(iter(queue.waiting.values()))
                if queue.running and rows + ticket.rows > self._running_batches * queue.batch_rows:
                    break
                del queue.waiting[ticket.id]
                queue.running[ticket.id] = ticket
                rows += ticket.rows
                joined.append(ticket)
        return joined

    def next_batch(self) -> list[Ticket]:
        """The next batch: one model, one latent shape, at most the model's rows; empty if nothing runs."""
        model = self._next_model()
        if model is None:
            return []
        queue = self._queues[model]
        ordered = sorted(queue.running.values(), key=lambda ticket: ticket.served)
        batch: list[Ticket] = []
        rows = 0
        for ticket in ordered:
            if ticket.shape != ordered[0].shape or (batch and rows + ticket.rows > queue.batch_rows):
                continue
            batch.append(ticket)
            rows += ticket.rows
        serial = next(self._serial)
        for ticket in batch:
            ticket.served = serial
        return batch

    def charge(self, model: str, seconds: float) -> None:
        """Book what a batch of the model has cost; keeps a running mean as the next estimate."""
        queue = self._queues[model]
        queue.deficit -= seconds
        queue.step_cost += 0.2 * (seconds - queue.step_cost)

    def places(self) -> dict[str, int]:
        """Place of every waiting request within its model's queue, from 1."""
        return {
            request_id: place
            for queue in self._queues.values()
            for place, request_id in enumerate(queue.waiting, start=1)
        }

    @property
    def waiting(self) -> int:
        """Number of waiting requests."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    @property
    def running(self) -> int:
        """Number of requests in the running sets."""
        return sum(len(queue.running) for queue in self._queues.values())

    def _next_model(self) -> str | None:
        active = [model for model, queue in self._queues.items() if queue.running]
        if not active:
            return None
        if len(active) == 1:
            # Nobody to be fair to; an account run up now must not be held against it later.
            self._queues[active[0]].deficit = 0.0
            return active[0]
        self._ring = deque([model for model in self._ring if model in active])
        self._ring.extend(model for model in active if model not in self._ring)
        # The dearest batch as quantum: whoever is visited can afford one, unless it still pays off a debt.
        quantum = max(self._queues[model].step_cost for model in active) or 1.0
        while self._queues[self._ring[0]].deficit < self._queues[self._ring[0]].step_cost:
            self._ring.rotate(-1)
            self._queues[self._ring[0]].deficit += quantum
        return self._ring[0]
