"""The two promises that carry the engine.

Alone, a request in float32 equals diffusers' own pipeline called with the same arguments, bit for bit. In a
mixed crowd, with requests joining and leaving, it equals itself alone within 1e-3 of the latents' largest
value. If the first fails, pictures can no longer be made again with stock diffusers; if the second does, a
picture depends on the company it was made in.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from app.engine.diffusion_engine import DiffusionEngine, LoadedModel
from app.engine.noise_schedulers import NAMES, make_noise_scheduler
from app.engine.previews import PreviewMap
from app.engine.request import Finished, GenerationRequest, Progress, SeedMix
from app.engine.running import mixed_noise
from app.families.stable_diffusion import StableDiffusion
from tests.tiny import VARIANTS, make_pipeline

MODEL = "test/tiny"
SIZE = 16


@pytest.fixture(scope="module", params=list(VARIANTS))
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny checkpoint, written to disk and loaded as stock diffusers loads it."""
    folder = make_pipeline(tmp_path_factory.mktemp("tiny"), **VARIANTS[request.param])
    loaded = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def make_engine(pipeline: Any, batch_rows: int = 8) -> DiffusionEngine:
    """An engine with the tiny model; its preview map is plain zeros."""
    engine = DiffusionEngine()
    preview_map = PreviewMap(torch.zeros(12, 4, 3, 3), torch.zeros(12), 2)
    engine.add_model(LoadedModel(MODEL, StableDiffusion(pipeline), preview_map, "r1", batch_rows, 0.01))
    return engine


def make_request(request_id: str = "a", **changes: Any) -> GenerationRequest:
    """A guided DDIM request; change what matters."""
    values: dict[str, Any] = {
        "id": request_id,
        "model": MODEL,
        "prompt": "a red cat on the left",
        "negative_prompt": "",
        "seed": 7,
        "steps": 6,
        "guidance_scale": 5.0,
        "eta": 0.0,
        "width": SIZE,
        "height": SIZE,
        "noise_scheduler": "ddim",
        **changes,
    }
    return GenerationRequest(**values)


def run_to_end(engine: DiffusionEngine) -> dict[str, Finished]:
    """Step until nothing is left; the pictures by id."""
    finished = {}
    for _ in range(500):
        for emission in engine.step():
            if isinstance(emission.event, Finished):
                finished[emission.request_id] = emission.event
        if not engine.has_work:
            return finished
    raise AssertionError("the engine does not come to an end")


def diffusers_picture(pipeline: Any, request: GenerationRequest) -> bytes:
    """What stock diffusers makes of the same arguments."""
    pipeline.scheduler = make_noise_scheduler(request.noise_scheduler, dict(pipeline.scheduler.config))
    image = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        eta=request.eta,
        width=request.width,
        height=request.height,
        generator=torch.Generator("cpu").manual_seed(request.seed),
    ).images[0]
    return image.tobytes()  # type: ignore[no-any-return]


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize(
    ("name", "eta"), [("ddim", 0.0), ("ddim", 1.0), *((n, 0.0) for n in NAMES if n != "ddim")]
)
def test_alone_equals_diffusers_bit_for_bit(
    pipeline: Any, name: str, eta: float, guidance_scale: float
) -> None:
    """Latents and pixels of a request alone are those of `StableDiffusionPipeline.__call__`."""
    request = make_request(
        noise_scheduler=name, eta=eta, guidance_scale=guidance_scale, negative_prompt="blue dog"
    )
    latents = final_latents(pipeline, [request], batch_rows=8)["a"]
    pipeline.scheduler = make_noise_scheduler(name, dict(pipeline.scheduler.config))
    expected = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=guidance_scale,
        eta=eta,
        width=SIZE,
        height=SIZE,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="latent",
    ).images
    assert torch.equal(latents, expected)
    engine = make_engine(pipeline)
    engine.add_request(request)
    finished = run_to_end(engine)["a"]
    assert finished.pixels == diffusers_picture(pipeline, request)
    assert finished.alone


def final_latents(
    pipeline: Any, requests: list[GenerationRequest], batch_rows: int, rng: random.Random | None = None
) -> dict[str, torch.Tensor]:
    """Run the requests; with `rng` they join at random steps and strangers come and are aborted."""
    engine = make_engine(pipeline, batch_rows)
    latents: dict[str, torch.Tensor] = {}
    to_come = list(requests)
    strangers = 0
    for _ in range(2000):
        while to_come and (rng is None or rng.random() < 0.5):
            engine.add_request(to_come.pop(0))
        if rng is not None and rng.random() < 0.3:
            strangers += 1
            engine.add_request(make_request(f"stranger {strangers}", seed=strangers, steps=9))
        if rng is not None and strangers and rng.random() < 0.3:
            engine.abort_request(f"stranger {rng.randint(1, strangers)}")
        running = {id_: engine._running[id_] for id_ in engine._running}
        engine.step()
        for id_, state in {**running, **engine._running}.items():
            if state.done:
                latents[id_] = state.latents
        if not to_come and all(request.id in latents for request in requests):
            return latents
    raise AssertionError("the crowd does not come to an end")


def test_in_a_crowd_equals_itself_alone(pipeline: Any) -> None:
    """Every request of a random crowd: all noise schedulers, guided and not, several sizes and steps."""
    rng = random.Random(3)
    requests = [
        make_request(
            f"r{i}",
            prompt=rng.choice(["a red cat", "the blue dog on the left", "sunset", "a rocket of red"]),
            negative_prompt=rng.choice(["", "green"]),
            seed=i,
            noise_scheduler=list(NAMES)[i % len(NAMES)],
            eta=float(i % 2),
            steps=rng.randint(2, 12),
            guidance_scale=rng.choice([1.0, 0.0, 3.0, 7.5]),
            width=rng.choice([SIZE, SIZE, 2 * SIZE]),
        )
        for i in range(25)
    ]
    crowd = final_latents(pipeline, requests, batch_rows=8, rng=rng)
    for request in requests:
        alone = final_latents(pipeline, [request], batch_rows=8)[request.id]
        difference = (crowd[request.id] - alone).abs().max() / alone.abs().max()
        assert difference <= 1e-3, (request, difference)


def test_company_is_reported(pipeline: Any) -> None:
    """`alone` is what the PNG says about exactness: true by itself, false once a forward was shared."""
    engine = make_engine(pipeline)
    engine.add_request(make_request("a"))
    engine.add_request(make_request("b", seed=8))
    assert {finished.alone for finished in run_to_end(engine).values()} == {False}


def test_in_half_precision_the_picture_stays_close(pipeline: Any) -> None:
    """A crowd in bfloat16 stays within a PSNR of float32 that a person does not see."""
    request = make_request(steps=10)
    single = make_engine(pipeline)
    single.add_request(request)
    expected = np.frombuffer(run_to_end(single)["a"].pixels, np.uint8).astype(float)
    half = DiffusionEngine()
    family = StableDiffusion(pipeline).in_dtype(torch.bfloat16)
    preview_map = PreviewMap(torch.zeros(12, 4, 3, 3), torch.zeros(12), 2)
    half.add_model(LoadedModel(MODEL, family, preview_map, "r1", 8, 0.01))
    for i in range(3):
        half.add_request(dataclasses.replace(request, id=f"{i}", seed=request.seed + i))
    finished = run_to_end(half)["0"]
    error = np.square(np.frombuffer(finished.pixels, np.uint8).astype(float) - expected).mean()
    assert finished.dtype == "bfloat16"
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 30


def test_seed_mix_of_one_seed_is_that_seed(pipeline: Any) -> None:
    """A combination of one seed is that seed, so recipes with and without a mix mean the same."""
    plain = make_request("plain", step_seed=3, eta=1.0)
    mixed = dataclasses.replace(plain, id="mixed", seed=99, initial_noise=SeedMix((7,), (2.0,)))
    a = final_latents(pipeline, [plain], 8)["plain"]
    b = final_latents(pipeline, [mixed], 8)["mixed"]
    assert torch.allclose(a, b, atol=1e-5)


def test_seed_mix_stays_on_the_gaussian_shell(pipeline: Any) -> None:
    """Any combination of seeds has unit spread; else optimised noise would leave what the model knows."""
    noise = mixed_noise((1, 4, 64, 64), SeedMix((1, 2, 3), (0.2, -3.0, 1.5)))
    assert abs(noise.std().item() - 1) < 0.02
    assert abs(noise.mean().item()) < 0.02


def test_prompt_delta_changes_the_picture_and_zero_does_not(pipeline: Any) -> None:
    """The delta on the prompt embedding reaches the forward."""
    width = pipeline.text_encoder.config.hidden_size
    plain = final_latents(pipeline, [make_request()], 8)["a"]
    zero = final_latents(pipeline, [make_request(prompt_delta=(0.0,) * width)], 8)["a"]
    moved = final_latents(pipeline, [make_request(prompt_delta=(1.0,) * width)], 8)["a"]
    assert torch.equal(plain, zero)
    assert not torch.allclose(plain, moved, atol=1e-3)


def test_the_step_noise_has_a_seed_of_its_own(pipeline: Any) -> None:
    """With a step seed the initial noise may change while the step noise stays, as optimising needs it."""
    one = final_latents(pipeline, [make_request(eta=1.0, step_seed=1)], 8)["a"]
    same = final_latents(pipeline, [make_request(eta=1.0, step_seed=1)], 8)["a"]
    other = final_latents(pipeline, [make_request(eta=1.0, step_seed=2)], 8)["a"]
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_previews_come_at_every_step(pipeline: Any) -> None:
    """One `Progress` per step, in order, each with pixels; none without when they are switched off."""
    engine = make_engine(pipeline)
    engine.add_request(make_request("shown"))
    engine.add_request(make_request("hidden", preview=False))
    steps: dict[str, list[tuple[int, bool]]] = {"shown": [], "hidden": []}
    while engine.has_work:
        for emission in engine.step():
            if isinstance(emission.event, Progress):
                steps[emission.request_id].append((emission.event.step, emission.pixels is not None))
    assert steps["shown"] == [(i, True) for i in range(1, 7)]
    assert steps["hidden"] == [(i, False) for i in range(1, 7)]


def test_a_cut_prompt_is_told(pipeline: Any) -> None:
    """Words beyond the text encoder's limit are named, because the picture cannot show them."""
    encoded = StableDiffusion(pipeline).encode_prompt("cat " * 20 + "rocket")
    assert encoded.cut.endswith("rocket")
    assert StableDiffusion(pipeline).encode_prompt("a cat").cut == ""
