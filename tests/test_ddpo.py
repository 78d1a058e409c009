"""DDPO: its arithmetic against slow references, and a tiny model that learns what it is rewarded for."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor
from torch.distributions import Normal

from app.catalog.entry import ADAPTER_FILE
from app.errors import InvalidConfiguration
from app.training.curves import reward_svg, sparkline
from app.training.ddpo import DDPO, Options, completed, find_entry, train_ddpo
from app.training.lora import adapter_state, scaled, set_adapter_state, without_adapter, write_adapter
from app.training.policy import DDIMSteps, Policy, advantages_by_prompt, log_prob, ppo_loss
from app.training.prompts import ANIMALS, Prompt, read_prompts
from app.training.reward_gradient import SEEN_FROM
from app.training.rewards import Reward
from tests.judges import write_tiny_judge
from tests.tiny import VARIANTS, make_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("tiny") / "model")


def brightness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward that anybody could write."""
    return pictures.double().mean((1, 2, 3))


class SoftBrightness:
    """The same reward, with its gradient."""

    def __call__(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return brightness(pictures, prompts)

    def soft(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return 255 * pictures.mean((1, 2, 3))


def options_for(checkpoint: Path, work: Path, **values: object) -> Options:
    small = Options(
        model=str(checkpoint), prompts="a cat;a dog;a red sunset;the rocket", minutes=1e6, work=str(work),
        steps=4, prompts_per_epoch=2, samples_per_prompt=6, batch=6, update_steps=0, rank=4, baseline=1,
        dtype="float32", device="cpu", guidance=2.0,
    )  # fmt: skip
    return dataclasses.replace(small, **values)


def trainer(checkpoint: Path, work: Path, reward: Reward = brightness, **values: object) -> DDPO:
    options = options_for(checkpoint, work, **values)
    return DDPO(options, find_entry(options.model), reward)


# The arithmetic.


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_a_step_is_that_of_diffusers(variant: str, eta: float) -> None:
    """The mean plus the noise times the deviation is what stock DDIM returns, for every kind of checkpoint.

    A failure would mean that the policy that is trained is not the sampler that serves.
    """
    options = {key: value for key, value in VARIANTS[variant].items() if key != "use_linear_projection"}
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=variant == "sd1", **options)
    steps = DDIMSteps.of(dict(scheduler.config), 7, eta, CPU)
    scheduler.set_timesteps(7)
    generator = torch.Generator().manual_seed(0)
    for index, timestep in enumerate(scheduler.timesteps):
        latents, prediction, noise = torch.randn(3, 2, 4, 6, 6, generator=generator)
        expected = scheduler.step(prediction, timestep, latents, eta=eta, variance_noise=noise).prev_sample
        rows = torch.full((2,), index)
        mean = steps.mean(prediction, latents, rows)
        assert torch.allclose(
            mean + steps.deviation(latents, rows) * noise, expected, rtol=1e-4, atol=1e-5
        ), index
        clean = scheduler.step(prediction, timestep, latents, eta=eta).pred_original_sample
        assert torch.allclose(steps.x0(prediction, latents, rows), clean, rtol=1e-4, atol=1e-5), index


def test_rows_may_be_at_different_steps() -> None:
    steps = DDIMSteps.of(dict(DDIMScheduler().config), 5, 1.0, CPU)
    latents, prediction = torch.randn(2, 3, 4, 4, 4)
    together = steps.mean(prediction, latents, torch.tensor([0, 2, 4]))
    for row, step in enumerate((0, 2, 4)):
        alone = steps.mean(prediction[row : row + 1], latents[row : row + 1], torch.tensor([step]))
        assert torch.equal(together[row : row + 1], alone)


def test_steps_that_draw_nothing_have_no_probability() -> None:
    """With alphas that end at exactly 1 the last step is certain: it must not be divided by its deviation."""
    ended = DDIMSteps.of(dict(DDIMScheduler(set_alpha_to_one=True).config), 5, 1.0, CPU)
    assert ended.random == [0, 1, 2, 3]
    assert DDIMSteps.of(dict(DDIMScheduler().config), 5, 0.0, CPU).random == []


def test_log_probabilities_are_those_of_a_gaussian() -> None:
    """Against torch's own distribution, number by number, averaged as the paper's code does."""
    value, mean = torch.randn(2, 3, 4, 5, 5)
    std = torch.tensor([0.1, 0.5, 2.0]).view(3, 1, 1, 1)
    expected = torch.stack(
        [
            Normal(mean[row], std[row, 0, 0, 0].item()).log_prob(value[row]).sum() / value[row].numel()
            for row in range(3)
        ]
    )
    assert torch.allclose(log_prob(value, mean, std), expected, rtol=1e-5)


def test_the_clip_stops_what_has_gone_far_enough() -> None:
    """A good picture's ratio above the range and a bad one's below it pull no more; the others do."""
    log_ratio = torch.tensor([0.3, -0.3, 0.3, -0.3, 0.0], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0])
    loss = ppo_loss(advantages, log_ratio, 0.1)
    loss.backward()
    assert log_ratio.grad is not None
    assert (log_ratio.grad != 0).tolist() == [False, False, True, True, True]
    by_hand = [-1.1, 0.9, math.exp(0.3), -math.exp(-0.3), -1.0]
    assert loss.item() == pytest.approx(sum(by_hand) / 5)


def test_advantages_compare_pictures_of_one_prompt() -> None:
    """A prompt whose pictures are all good gains nothing from that: only its own others count."""
    rewards = torch.tensor([1.0, 2.0, 3.0, 101.0, 102.0, 103.0], dtype=torch.float64)
    prompts = ["a cat"] * 3 + ["a dog"] * 3
    advantages = advantages_by_prompt(rewards, prompts, least=3)
    assert torch.allclose(advantages[:3], advantages[3:])
    assert float(advantages[:3].mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantages[:3].std(correction=0)) == pytest.approx(1, abs=1e-4)
    together = advantages_by_prompt(rewards, prompts, least=4)
    assert bool((together[:3] < 0).all() and (together[3:] > 0).all())
    outlier = torch.tensor([0.0] * 99 + [1.0], dtype=torch.float64)
    assert float(advantages_by_prompt(outlier, ["a"] * 100, least=2).max()) == 5.0
    assert torch.equal(advantages_by_prompt(torch.ones(4).double(), ["a"] * 4, least=2), torch.zeros(4))


# The run.


@pytest.mark.parametrize("noise", ["own", "branched"])
def test_the_first_update_is_on_policy(checkpoint: Path, tmp_path: Path, noise: str) -> None:
    """Every ratio is exactly 1: the update sees the very steps that were drawn, guided alike.

    A failure would mean that sampling and update disagree, and the clip throws the gradient away.
    """
    training = trainer(checkpoint, tmp_path, noise=noise)
    training.run_epoch()  # The baseline: from then on branches are drawn.
    seen = set()
    for _ in range(8):
        epoch = training.sample_epoch()
        for taken in epoch.taken:
            log_ratio, _ = training._loss(taken, torch.ones(12), epoch.prompts)
            assert torch.equal(log_ratio, torch.zeros_like(log_ratio)), taken.step
            seen.add(taken.step)
    assert len(seen) > 1


def test_branches_differ_in_one_step_s_noise_alone(checkpoint: Path, tmp_path: Path) -> None:
    """The pictures of a prompt come from one state, by draws of opposite signs around one mean.

    All later noise is shared: one of them is made again, step by step, from the shared noise.
    """
    training = trainer(checkpoint, tmp_path)
    embeds, negative = training._embeds(["a cat", "a dog"]), training._embeds([""])
    latents, taken = training.policy.sample_branched(
        embeds, negative, training.shape, torch.Generator().manual_seed(0), branch=1, draws=4, batch=3
    )
    assert taken.latents.shape[0] == 2 and taken.following.shape[:2] == (2, 4)
    assert torch.allclose(taken.following[:, :2] + taken.following[:, 2:], 2 * taken.following.mean(1, True))
    assert len({tuple(row.flatten().tolist()) for row in latents}) == 8
    index = torch.tensor([1, 1])
    mean = training.policy.steps.mean(
        training.policy.predict(taken.latents, index, embeds, negative), taken.latents, index
    )
    assert torch.allclose(taken.following.mean(1), mean, atol=1e-5)
    rest = [step for step in training.policy.steps.random if step > 1]
    noise = torch.Generator().manual_seed(0)
    for used in ((2,), (2,), (2, 2)):  # The start, the step before the branch, and half of the draws.
        torch.randn((*used, *training.shape), generator=noise)
    shared = {step: torch.randn((2, *training.shape), generator=noise) for step in rest}
    again = taken.following[1, 2][None]
    for step in range(2, 4):
        index = torch.tensor([step])
        prediction = training.policy.predict(again, index, embeds[1:], negative)
        again = training.policy.steps.mean(prediction, again, index)
        if step in shared:
            again = again + training.policy.steps.deviation(again, index) * shared[step][1]
    assert torch.allclose(again[0], latents[6], rtol=1e-3, atol=1e-4)


class Shift(torch.nn.Module):
    """The smallest denoiser: predicts a constant; its one weight has a gradient that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, latents: Tensor, timesteps: Tensor, embeds: Tensor) -> UNet2DConditionOutput:
        return UNet2DConditionOutput(sample=torch.zeros_like(latents) + self.weight)


@pytest.mark.parametrize("noise", ["own", "branched"])
def test_both_ways_of_drawing_estimate_the_true_gradient(noise: str) -> None:
    """On a reward that is linear in the final latents the gradient is known in closed form, step by step.

    A failure would mean that sharing noise made the estimator answer another question.
    """
    config = DDIMScheduler(clip_sample=False, prediction_type="v_prediction").config  # tame at high noise
    steps = DDIMSteps.of(dict(config), 4, 1.0, CPU)
    unet, shape, embeds = Shift(), (1, 2, 2), torch.zeros(500, 1, 1)
    policy = Policy(unet, steps, 1.0, torch.float32)
    generator = torch.Generator().manual_seed(0)
    for step in steps.random:
        if noise == "own":
            latents, every = policy.sample(embeds.repeat(400, 1, 1), embeds[:1], shape, generator)
            taken = every[steps.random.index(step)]
        else:
            latents, taken = policy.sample_branched(embeds, embeds[:1], shape, generator, step, 8, 4000)
        rewards = latents.sum((1, 2, 3))
        groups = rewards.view(taken.following.shape[:2]) if noise == "branched" else rewards.view(1, -1)
        advantages = (groups - groups.mean(1, keepdim=True)).flatten()
        log_probs = policy.replay(taken, embeds[:1]).log_probs
        pixels = 4  # log_prob is a mean over them
        (estimate,) = torch.autograd.grad(
            (advantages[taken.pictures.flatten()] * log_probs.flatten()).mean() * pixels, unet.weight
        )
        # By hand: what this step adds to the mean, carried to the end by the later steps' factors of x.
        index = torch.tensor([step])
        zero, one = torch.zeros(1, *shape), torch.ones(1, *shape)
        moved = float(steps.mean(one, zero, index).mean())
        for later in range(step + 1, 4):
            moved *= float(steps.mean(zero, one, torch.tensor([later])).mean())
        assert float(estimate) == pytest.approx(moved * pixels, rel=0.3), step


def test_a_new_adapter_changes_nothing_and_can_be_left_out(checkpoint: Path, tmp_path: Path) -> None:
    training = trainer(checkpoint, tmp_path)
    latents, index = torch.randn(2, *training.shape), torch.tensor([0, 1])
    embeds, negative = training._embeds(["a cat", "a dog"]), training._embeds([""])

    @torch.no_grad()
    def predict() -> Tensor:
        return training.policy.predict(latents, index, embeds, negative)

    with without_adapter(training.unet):
        before = predict()
    assert torch.equal(predict(), before)
    set_adapter_state(training.unet, {k: v + 0.1 for k, v in adapter_state(training.unet).items()})
    assert not torch.allclose(predict(), before, atol=1e-3)
    with without_adapter(training.unet):
        assert torch.equal(predict(), before)
    set_adapter_state(training.unet, scaled(adapter_state(training.unet), 0.0))
    assert torch.equal(predict(), before)


def test_samples_are_what_the_stock_pipeline_draws(checkpoint: Path, tmp_path: Path) -> None:
    """Same noise, same picture: what is rewarded is what a user would get."""
    training = trainer(checkpoint, tmp_path)
    sampled, _ = training.policy.sample(
        training._embeds(["a cat"]), training._embeds([""]), training.shape, torch.Generator().manual_seed(5)
    )
    pipeline = StableDiffusionPipeline.from_pretrained(
        checkpoint, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        "a cat", num_inference_steps=4, guidance_scale=2.0, eta=1.0, height=16, width=16,
        output_type="latent", generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    assert torch.allclose(sampled, stock, rtol=1e-3, atol=1e-4)


def test_a_model_learns_what_it_is_rewarded_for(checkpoint: Path, tmp_path: Path) -> None:
    """Brightness rises by more than one of its own standard deviations, for all prompts, within seconds."""
    training = trainer(checkpoint, tmp_path, samples_per_prompt=8, batch=16, rate=5e-2, clip=0.1)
    for _ in range(20):
        training.run_epoch()
    first, last = training.history[0], training.history[-3:]
    gain = sum(row["reward"] for row in last) / 3 - first["reward"]
    assert gain > first["deviation"], training.line()


def test_a_reward_s_own_gradient_teaches_faster_than_trying(checkpoint: Path, tmp_path: Path) -> None:
    """From the same few pictures the model gains several times as much.

    A failure would mean that the gradient goes the wrong way, or nowhere.
    """
    gains = {}
    for soft in (0.0, 1.0):
        training = trainer(
            checkpoint, tmp_path / str(soft), SoftBrightness(),
            noise="own", soft=soft, samples_per_prompt=3, rate=1e-2, updates=2, targets="all",
        )  # fmt: skip
        for _ in range(8):
            training.run_epoch()
        gains[soft] = training.history[-1]["reward"] - training.history[0]["reward"]
    assert gains[1.0] > 3 * max(gains[0.0], 0.0) and gains[1.0] > training.history[0]["deviation"], gains


def test_the_gradient_is_that_of_the_picture_a_step_expects(checkpoint: Path, tmp_path: Path) -> None:
    """Against stock parts: x0 by diffusers' scheduler, decoded by its autoencoder, in base's deviations."""
    training = trainer(checkpoint, tmp_path, SoftBrightness())
    training.run_epoch()
    assert training.calibration is not None and training.soft is not None
    seen = training.soft.steps(training.policy.steps)
    assert seen and all(float(training.policy.steps.alpha[step]) >= SEEN_FROM for step in seen)
    epoch = training.sample_epoch()
    assert {taken.step for taken in epoch.taken} <= set(seen)
    taken = epoch.taken[0]
    replay = training.policy.replay(taken, training._embeds([""]))
    own = [epoch.prompts[index] for index in taken.pictures[:, 0].tolist()]
    value = training._soft_objective(replay.x0, own)
    vae = StableDiffusionPipeline.from_pretrained(
        checkpoint, safety_checker=None, requires_safety_checker=False
    ).vae
    decoded = vae.decode(replay.x0 / vae.config.scaling_factor).sample
    expected = 255 * (decoded * 0.5 + 0.5).clamp(0, 1).mean((1, 2, 3)) / training.calibration.reward[1]
    assert torch.allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_what_nobody_set_suits_the_reward() -> None:
    """A gradient wants many updates of few pictures, trying the reverse; what was set stays."""
    assert (
        completed(Options(), soft=True).noise == "own"
        and completed(Options(), soft=False).noise == "branched"
    )
    tried = completed(Options(noise="own"), soft=False)  # the paper's way
    assert (tried.noise, tried.samples_per_prompt, tried.targets) == ("own", 8, "attention")
    chosen = completed(Options(rate=1e-4, updates=5), soft=True)
    assert (chosen.rate, chosen.updates, chosen.targets) == (1e-4, 5, "all")


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(checkpoint: Path, tmp_path: Path) -> None:
    """The same adapter, bit for bit, from four epochs and from two and two."""
    straight = trainer(checkpoint, tmp_path / "straight", samples=60)
    first = trainer(checkpoint, tmp_path / "parts", samples=60)
    for number in range(4):
        straight.run_epoch()
        if number < 2:
            first.run_epoch()
    first.save()
    second = trainer(checkpoint, tmp_path / "parts", samples=60)
    for _ in range(2):
        second.run_epoch()
    expected, found = adapter_state(straight.unet), adapter_state(second.unet)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    timing = {"draw_seconds", "update_seconds"}
    assert [{k: v for k, v in row.items() if k not in timing} for row in second.history] == [
        {k: v for k, v in row.items() if k not in timing} for row in straight.history
    ]


def test_the_distance_from_the_untrained_model_holds_the_adapter_back(
    checkpoint: Path, tmp_path: Path
) -> None:
    """With a heavy penalty the model moves less: it does what it says."""
    moved = []
    for weight in (0.0, 100.0):
        training = trainer(checkpoint, tmp_path / str(weight), kl=weight, rate=2e-2)
        for _ in range(5):
            training.run_epoch()
        state = adapter_state(training.unet)
        moved.append(sum(float(v.square().sum()) for name, v in state.items() if ".lora_B." in name))
    assert moved[1] < moved[0]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_judge(tmp_path_factory.mktemp("judge"))


def test_the_penalty_grows_while_pictures_are_not_recognised(
    checkpoint: Path, tmp_path: Path, judge: Path
) -> None:
    """Its weight follows recognition up and down within bounds; unrecognisable pictures are worth less."""
    training = trainer(checkpoint, tmp_path, contrastive=str(judge), anchor=0.5)
    for _ in range(4):
        training.run_epoch()
    assert training.calibration is not None
    training.calibration.found = 0.5
    for row in training.history:
        row["found"] = 0.1
    before = training.anchor
    training._adapt_anchor()
    assert training.anchor > before
    for row in training.history:
        row["found"] = 0.5
    training._adapt_anchor()
    assert training.anchor == pytest.approx(before * 1.25 * 0.9)
    epoch = training.sample_epoch()
    epoch.rewards[:], epoch.log_probs[:] = 1.0, -1.0
    epoch.log_probs[0] = -3.0
    assert float(training.advantages(epoch)[0]) < 0


def test_the_strength_is_the_best_that_keeps_names_recognisable(
    checkpoint: Path, tmp_path: Path, judge: Path
) -> None:
    training = trainer(checkpoint, tmp_path, contrastive=str(judge))
    for _ in range(3):
        training.run_epoch()
    state = adapter_state(training.unet)
    strength, tried = training.choose_strength()
    assert [row["strength"] for row in tried[:2]] == [0.0, 1.0]
    good = [row for row in tried[1:] if row["found"] >= 0.9 * tried[0]["found"]]
    assert strength == (max(good, key=lambda row: row["reward"])["strength"] if good else 0.35)
    kept = adapter_state(training.unet)
    assert all(torch.allclose(kept[name], value) for name, value in scaled(state, strength).items())
    set_adapter_state(training.unet, state)
    training.options = dataclasses.replace(training.options, strength=0.6)
    assert training.choose_strength()[0] == 0.6
    kept = adapter_state(training.unet)
    assert all(torch.allclose(kept[name], value) for name, value in scaled(state, 0.6).items())


def test_the_command_writes_adapter_record_and_curve(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """End to end on any checkpoint folder: what is written is read by stock diffusers, small and complete."""
    out, curve = tmp_path / "mine", tmp_path / "docs" / "curve.svg"
    train_ddpo(
        options_for(
            checkpoint,
            tmp_path,
            reward="incompressibility",
            samples=40,
            out=str(out),
            curve=str(curve),
            threads=1,
        )
    )
    printed = capsys.readouterr().out
    assert "epoch 4 · 48 pictures" in printed and "reward" in printed
    record = json.loads((out / "training.json").read_text())
    assert record["reward"] == "incompressibility" and record["pictures"] == 48 and record["updates"] > 0
    assert len(record["base_revision"]) == 12
    pipeline = StableDiffusionPipeline.from_pretrained(
        checkpoint, safety_checker=None, requires_safety_checker=False
    )
    pipeline.load_lora_weights(out, weight_name=ADAPTER_FILE)
    assert ElementTree.parse(curve).getroot().tag.endswith("svg")


def test_writing_replaces_in_one_rename(tmp_path: Path, checkpoint: Path) -> None:
    state = adapter_state(trainer(checkpoint, tmp_path).unet)
    for number in range(2):
        write_adapter(state, tmp_path / "adapter", {"number": number})
    assert json.loads((tmp_path / "adapter" / "training.json").read_text()) == {"number": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# Prompts, models, curves.


def test_the_vocabulary_s_prompts_are_not_the_benchmark_s(tmp_path: Path) -> None:
    """No combination that the benchmark asks for is trained on; every noun comes up."""
    from app.training.held_out import held_out_singles

    entry = find_entry("builtin/base")
    prompts = read_prompts("", entry.folder, 600, seed=0)
    assert len({prompt.text for prompt in prompts}) == 600
    assert not {prompt.text for prompt in prompts} & {held.text for held in held_out_singles(200)}
    assert len({prompt.name for prompt in prompts}) >= 200
    assert read_prompts("", entry.folder, 600, seed=0) == prompts
    with pytest.raises(InvalidConfiguration, match="brings no vocabulary"):
        read_prompts("vocabulary", tmp_path, 10, seed=0)


def test_prompts_come_from_a_list_a_file_or_the_animals(tmp_path: Path) -> None:
    assert read_prompts("a cat; a dog", None, 1, 0) == [Prompt("a cat", "a cat"), Prompt("a dog", "a dog")]
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    assert len(read_prompts(str(tmp_path / "prompts.txt"), None, 1, 0)) == 2
    assert len(read_prompts("", None, 1, 0)) == len(ANIMALS.split(",")) == 45
    for wrong in ("a cat;a cat", ";"):
        with pytest.raises(InvalidConfiguration):
            read_prompts(wrong, None, 1, 0)


def test_any_checkpoint_can_be_named(checkpoint: Path) -> None:
    """A catalogue's model with its own guidance, a folder, or a hub id with the paper's."""
    assert find_entry("builtin/base").defaults.guidance_scale == 3.0
    assert find_entry("ddpo/aesthetic").from_hub
    assert find_entry(str(checkpoint)).folder == checkpoint
    hub = find_entry("someone/their-model")
    assert hub.from_hub and hub.defaults.guidance_scale == 5.0


def test_curves_are_drawn_without_a_library() -> None:
    assert sparkline([0, 1, 2, 3]) == "▁▃▆█" and sparkline([]) == "" and sparkline([2, 2]) == "▁▁"
    assert len(sparkline(list(range(500)))) == 32
    svg = ElementTree.fromstring(reward_svg("a < b", "pictures", [(0, 1.0, 0.5), (10, 2.0, 0.1)]))
    line = next(element for element in svg.iter() if element.tag.endswith("polyline"))
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert x1 > x0 and y1 < y0
