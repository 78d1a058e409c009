"""Faults and releases of the engine, with a real tiny model whose forward is made to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from app.engine.diffusion_engine import DiffusionEngine, LoadedModel
from app.engine.previews import PreviewMap
from app.engine.request import Aborted, Failed, Finished, GenerationEvent, Waiting
from app.errors import EngineDied, GenerationError, OutOfMemory
from app.families.stable_diffusion import StableDiffusion
from tests.test_parity import MODEL, make_request
from tests.tiny import make_pipeline


class FaultyFamily(StableDiffusion):
    """The real model; `fault` may raise before a forward or a decode of so many rows."""

    fault: Callable[[str, int], None] = staticmethod(lambda what, rows: None)

    def predict_noise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        """Maybe fail, else forward."""
        self.fault("forward", latents.shape[0])
        return super().predict_noise(latents, timesteps, prompt_embeds)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Maybe fail, else decode."""
        self.fault("decode", latents.shape[0])
        return super().decode(latents)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny checkpoint."""
    loaded = StableDiffusionPipeline.from_pretrained(make_pipeline(tmp_path_factory.mktemp("tiny")))
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def family(pipeline: Any) -> FaultyFamily:
    """A fresh family without a fault."""
    return FaultyFamily(pipeline)


@pytest.fixture
def engine(family: FaultyFamily) -> DiffusionEngine:
    """An engine with that family and batches of 8 rows."""
    engine = DiffusionEngine()
    preview_map = PreviewMap(torch.zeros(12, 4, 3, 3), torch.zeros(12), 2)
    engine.add_model(LoadedModel(MODEL, family, preview_map, "r1", 8, 0.01))
    return engine


def final_events(engine: DiffusionEngine, turns: int = 300) -> dict[str, GenerationEvent]:
    """Step until nothing is left; exactly one final event per request."""
    finals: dict[str, GenerationEvent] = {}
    for _ in range(turns):
        for emission in engine.step():
            if isinstance(emission.event, Finished | Failed | Aborted):
                assert emission.request_id not in finals, "a second final event"
                finals[emission.request_id] = emission.event
        if not engine.has_work:
            return finals
    raise AssertionError("the engine does not come to an end")


def test_out_of_memory_shrinks_the_batch_and_everyone_finishes(
    engine: DiffusionEngine, family: FaultyFamily
) -> None:
    """A batch that does not fit is retried in halves; nobody is lost and the next batches are smaller."""
    sizes: list[int] = []

    def fault(what: str, rows: int) -> None:
        sizes.append(rows)
        if what == "forward" and rows > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    family.fault = fault  # type: ignore[method-assign]
    for i in range(4):
        engine.add_request(make_request(f"{i}", seed=i))
    finals = final_events(engine)
    assert all(isinstance(event, Finished) for event in finals.values()) and len(finals) == 4
    assert sizes.count(8) == 1, "the size that did not fit was tried again"


def test_one_that_never_fits_ends_alone(engine: DiffusionEngine, family: FaultyFamily) -> None:
    """Out of memory at a batch of one ends that request; its neighbours and the next one succeed."""

    def fault(what: str, rows: int) -> None:
        if what == "forward" and rows == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    family.fault = fault  # type: ignore[method-assign]
    engine.add_request(make_request("unguided", guidance_scale=1.0))
    lone = final_events(engine)
    engine.add_request(make_request("guided"))
    after = final_events(engine)
    assert isinstance(lone["unguided"], Failed) and isinstance(lone["unguided"].error, OutOfMemory)
    assert isinstance(after["guided"], Finished)


def test_out_of_memory_in_the_decode_is_retried_smaller(
    engine: DiffusionEngine, family: FaultyFamily
) -> None:
    """A decode that does not fit takes fewer pictures at a time; all of them arrive."""

    def fault(what: str, rows: int) -> None:
        if what == "decode" and rows > 1:
            raise torch.OutOfMemoryError("out of memory")

    family.fault = fault  # type: ignore[method-assign]
    for i in range(4):
        engine.add_request(make_request(f"{i}", seed=i))
    assert all(isinstance(event, Finished) for event in final_events(engine).values())


def test_one_bad_request_does_not_take_its_neighbours_down(
    engine: DiffusionEngine, family: FaultyFamily
) -> None:
    """A forward that fails because of one request fails that request alone."""
    marker = torch.full((16,), 1e6)

    def predict(latents: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        if (prompt_embeds > 1e5).any():
            raise ValueError("this prompt breaks the model")
        return StableDiffusion.predict_noise(family, latents, timesteps, prompt_embeds)

    family.predict_noise = predict  # type: ignore[method-assign]
    engine.add_request(make_request("good"))
    engine.add_request(make_request("bad", prompt_delta=tuple(marker.tolist())))
    engine.add_request(make_request("fine", seed=9))
    finals = final_events(engine)
    assert isinstance(finals["good"], Finished) and isinstance(finals["fine"], Finished)
    assert isinstance(finals["bad"], Failed) and isinstance(finals["bad"].error, GenerationError)


def test_a_lost_device_is_not_retried(engine: DiffusionEngine, family: FaultyFamily) -> None:
    """After a device-side assert nothing works any more: the engine says so and everyone is told."""

    def fault(what: str, rows: int) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    family.fault = fault  # type: ignore[method-assign]
    engine.add_request(make_request("a"))
    with pytest.raises(EngineDied) as caught:
        engine.step()
    told = engine.abort_all(caught.value)
    failed = [emission.event for emission in told if isinstance(emission.event, Failed)]
    assert [event.error for event in failed] == [caught.value]
    assert not engine.has_work


def test_abort_frees_the_place_within_one_step(engine: DiffusionEngine) -> None:
    """An aborted request gets `Aborted`, is in no further batch, and its place goes to one that waits."""
    for i in range(20):
        engine.add_request(make_request(f"{i}", seed=i, steps=3))
    engine.step()
    waiting, running = engine.waiting, engine.running
    engine.abort_request("0")
    told = engine.step()
    assert [e.event for e in told if e.request_id == "0"] == [Aborted()]
    assert engine.waiting == waiting - 1 and engine.running == running
    finals = final_events(engine)
    assert len(finals) == 19 and "0" not in finals


def test_those_who_wait_are_told_their_place(engine: DiffusionEngine) -> None:
    """Places are told when they change, and only then: a waiting person sees the queue move."""
    for i in range(12):
        engine.add_request(make_request(f"{i}", seed=i, steps=2))
    places: dict[str, list[int]] = {}
    while engine.has_work:
        for emission in engine.step():
            if isinstance(emission.event, Waiting):
                places.setdefault(emission.request_id, []).append(emission.event.place)
    assert places, "nobody had to wait: the test has lost its meaning"
    for seen in places.values():
        assert seen == sorted(set(seen), reverse=True)


def test_everything_is_told_at_the_end(engine: DiffusionEngine) -> None:
    """When the server stops, every request gets its final event, running or waiting."""
    for i in range(20):
        engine.add_request(make_request(f"{i}", seed=i))
    engine.step()
    error = GenerationError("stopping")
    ended = {e.request_id for e in engine.abort_all(error) if isinstance(e.event, Failed)}
    assert ended == {f"{i}" for i in range(20)}
    assert engine.running == engine.waiting == 0
