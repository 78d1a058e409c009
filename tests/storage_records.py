"""Records with every field filled, for the tests of storage."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from app.storage.records import GenerationRecord, NewVote


def a_generation(**changes: Any) -> GenerationRecord:
    """A generation that waits, with values at the ends of their ranges."""
    generation_id = secrets.token_urlsafe(16)
    record = GenerationRecord(
        id=generation_id,
        batch_id=generation_id,
        position=0,
        client="client-1",
        owner="process-1",
        state="waiting",
        model="builtin/base",
        revision="",
        prompt="a red ball 🎈 at the left, \u202e<b>café</b> {{7*7}} %s ' \" \\",
        negative_prompt="",
        seed=2**63 - 1,
        steps=150,
        guidance_scale=7.5,
        eta=0.1,
        width=128,
        height=128,
        noise_scheduler="ddim",
        created_at=datetime(2026, 11, 22, 1, 2, 3, 456789, tzinfo=UTC),
        recipe={"initial_noise": {"seeds": [1, 2**63 - 1], "weights": [0.25, -1.0]}, "step_seed": 7},
        versions={"darkroom": "0.1.0"},
        notices=("Two words are unknown: “quux”, “blorb”.",),
    )
    return replace(record, **changes)


def a_vote(**changes: Any) -> NewVote:
    """A thumb up on one picture."""
    vote = NewVote(
        kind="thumb",
        voter="voter-1",
        shown=("picture-a",),
        value=1,
        chosen=None,
        pictures=[{"id": "picture-a", "model": "builtin/base", "seed": 2**63 - 1, "prompt": "a red ball 🎈"}],
        context={"page": "studio", "blind": False},
    )
    return replace(vote, **changes)
