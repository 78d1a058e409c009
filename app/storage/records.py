"""The rows as plain data, so that services never see SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

GenerationState = Literal["waiting", "running", "done", "failed", "cancelled"]
VoteKind = Literal["thumb", "rating", "choice"]


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """One picture, asked for or made: all it takes to make it again, and what became of it.

    Attributes:
        id: Unguessable id.
        batch_id: Groups the pictures of one request; equals the id of the first.
        position: 0 … n−1 within the batch.
        client: Who made it: the voter id of the signed cookie.
        owner: Id of the process that runs it.
        state: waiting, running, done, failed or cancelled.
        model: Full model id.
        revision: Revision of the weights, '' until finished.
        prompt: Text as given.
        negative_prompt: Text as given.
        seed: 0 … 2^63−1.
        steps: Inference steps.
        guidance_scale: As asked.
        eta: As asked.
        width: Pixels.
        height: Pixels.
        noise_scheduler: Name.
        recipe: Optional parts of the recipe: `initial_noise`, `prompt_delta`, `step_seed`.
        versions: Software that made it: darkroom, torch, diffusers, dtype, device, alone.
        notices: Sentences for people (a cut prompt, unknown words).
        error_code: Code of the error, if failed.
        error_message: Sentence for people, if failed.
        seconds: From start to decoded picture.
        image_bytes: Size of the image file.
        created_at: UTC.
        finished_at: UTC.
    """

    id: str
    batch_id: str
    position: int
    client: str
    owner: str
    state: GenerationState
    model: str
    revision: str
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    eta: float
    width: int
    height: int
    noise_scheduler: str
    created_at: datetime
    recipe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    seconds: float | None = None
    image_bytes: int | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewVote:
    """A vote as it comes in. The unique key is (voter, kind, the shown ids as a set).

    Attributes:
        kind: thumb, rating or choice.
        voter: Voter id of the signed cookie.
        shown: Ids of the finished generations that the voter saw, in the order shown.
        value: thumb: −1 or 1; rating: 1 … 5; choice: None.
        chosen: choice: one of `shown`, 'tie' or 'all_bad'; else None.
        pictures: For each shown id all it takes to make the picture again, so that the vote outlives it.
        context: How it was asked (page, blind).
        idempotency_key: Given by the client, or None.
        body_hash: Hash of the body, to compare under the same idempotency key.
    """

    kind: VoteKind
    voter: str
    shown: tuple[str, ...]
    value: int | None
    chosen: str | None
    pictures: list[dict[str, Any]]
    context: dict[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    body_hash: str = ""


@dataclass(frozen=True, slots=True)
class VoteRecord:
    """A stored vote."""

    id: int
    kind: VoteKind
    voter: str
    shown: tuple[str, ...]
    value: int | None
    chosen: str | None
    created_at: datetime
    updated_at: datetime
