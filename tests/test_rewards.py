"""What pictures are rewarded for: exact where it can be, monotone in what it says where it cannot."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from app.errors import InvalidConfiguration
from app.training.aesthetic import (
    AestheticScore,
    colourfulness,
    contrast,
    framing,
    sharpness,
)
from app.training.jpeg import HEADERS, PER_DIGIT, soft_kilobytes
from app.training.rewards import (
    NAMES,
    SoftReward,
    checked,
    compressibility,
    incompressibility,
    load_reward,
)
from app.training.similarity import Recognition, load_judge
from tests.judges import write_tiny_judge
from tests.tiny import make_tokenizer

CPU = torch.device("cpu")


def scene(
    *, subject: tuple[int, int, int] = (220, 40, 40), ground: tuple[int, int, int] = (240, 240, 240),
    box: tuple[int, int, int, int] = (40, 40, 88, 88), grain: float = 0.0, blur: float = 0.0,
) -> NDArray[np.uint8]:  # fmt: skip
    """One thing on a plain ground, 128 px, (1, 128, 128, 3)."""
    picture = np.empty((128, 128, 3), np.uint8)
    picture[:] = ground
    left, top, right, bottom = box
    picture[top:bottom, left:right] = subject
    image = Image.fromarray(picture)
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    noise = np.random.default_rng(0).normal(0, grain, (128, 128, 3)) if grain else 0.0
    return (np.asarray(image, np.float64) + noise).clip(0, 255).round().astype(np.uint8)[None]


def taken(measure: Callable[[Tensor], Tensor], picture: NDArray[np.uint8]) -> float:
    """A measure of the one picture of (1, height, width, 3)."""
    return float(measure(torch.from_numpy(picture).permute(0, 3, 1, 2).double() / 255))


def random_pictures(count: int) -> Tensor:
    """Things of all colours, sizes and places, some blurred."""
    rng = np.random.default_rng(1)
    made = []
    for _ in range(count):
        left, top = rng.integers(0, 70, 2)
        colours = rng.integers(0, 256, (2, 3))
        box = (left, top, left + rng.integers(20, 58), top + rng.integers(20, 58))
        made.append(
            scene(subject=tuple(colours[0]), ground=tuple(colours[1]), box=box, blur=float(rng.uniform(0, 3)))
        )
    return torch.from_numpy(np.concatenate(made))


def test_jpeg_rewards_are_the_size_of_the_file_that_pillow_writes(tmp_path: Path) -> None:
    """To the byte, with either sign: the reward of the paper, in thousands of bytes at quality 95."""
    pictures = random_pictures(3)
    for picture, kilobytes in zip(pictures, incompressibility(pictures).tolist(), strict=True):
        Image.fromarray(picture.numpy()).save(tmp_path / "picture.jpg", quality=95)
        assert kilobytes == (tmp_path / "picture.jpg").stat().st_size / 1000
    assert torch.equal(compressibility(pictures), -incompressibility(pictures))


def unit(pictures: Tensor) -> Tensor:
    """(n, height, width, 3) bytes as (n, 3, height, width) in 0 to 1, to be differentiated by."""
    return (pictures.permute(0, 3, 1, 2).float() / 255).requires_grad_()


def test_the_estimated_size_follows_the_file_s(tmp_path: Path) -> None:
    """Over things of all sizes, blurs and grains; a failure would mean that another size is learnt."""
    grain = torch.randn(60, 128, 128, 3, generator=torch.Generator()) * torch.arange(60).view(60, 1, 1, 1) / 6
    pictures = (random_pictures(60) + grain).round().clamp(0, 255).to(torch.uint8)
    real, estimate = incompressibility(pictures), soft_kilobytes(unit(pictures)).detach().double()
    assert float(torch.corrcoef(torch.stack([real, estimate]))[0, 1]) > 0.98
    assert torch.equal(compressibility.soft(unit(pictures)), -incompressibility.soft(unit(pictures)))


def test_the_estimate_counts_digits_of_the_very_coefficients() -> None:
    """Against scipy-free arithmetic, cosine by cosine, on one block of luma."""
    grey = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    picture = grey.repeat(2, 2).expand(1, 3, 16, 16)
    steps = Image.open(_saved(torch.zeros(16, 16, 3))).quantization[0]  # type: ignore[attr-defined]
    digits = 0.0
    for v in range(8):
        for u in range(8):
            scale = (math.sqrt(0.5) if u == 0 else 1) * (math.sqrt(0.5) if v == 0 else 1) / 4
            total = sum(
                (float(grey[y, x]) * 255 - 128)
                * math.cos((2 * x + 1) * u * math.pi / 16)
                * math.cos((2 * y + 1) * v * math.pi / 16)
                for y in range(8)
                for x in range(8)
            )
            digits += math.log2(1 + (2 * scale * total / steps[8 * v + u]) ** 2)
    assert float(soft_kilobytes(picture)) == pytest.approx(HEADERS + PER_DIGIT * 4 * digits, rel=1e-4)


def _saved(picture: Tensor) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(picture.to(torch.uint8).numpy()).save(buffer, "JPEG", quality=95)
    return buffer


@pytest.mark.parametrize("name", ["compressibility", "incompressibility", "aesthetic"])
def test_a_step_along_the_gradient_raises_the_reward_itself(name: str) -> None:
    """The true reward of the bytes, not its estimate; a failure would mean that learning goes astray."""
    reward = load_reward(name, CPU)
    assert isinstance(reward, SoftReward)
    noisy = random_pictures(20).float() + 4 * torch.randn(20, 128, 128, 3, generator=torch.Generator())
    pictures = noisy.round().clamp(0, 255).to(torch.uint8)
    prompts = ["a cat"] * 20
    given = unit(pictures)
    (gradient,) = torch.autograd.grad(reward.soft(given, prompts).sum(), given)
    assert bool(gradient.isfinite().all())
    length = gradient.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    moved = (given + 0.02 * gradient / length).detach().clamp(0, 1).permute(0, 2, 3, 1)
    after = reward((moved * 255).round().to(torch.uint8), prompts)
    assert float((after > reward(pictures, prompts)).float().mean()) >= 0.8


@pytest.mark.parametrize("name", ["compressibility", "aesthetic"])
def test_a_picture_of_nothing_has_a_gradient(name: str) -> None:
    """Flat grey has no edges and no spread: square roots and quotients must not give infinities there."""
    reward = load_reward(name, CPU)
    assert isinstance(reward, SoftReward)
    flat = torch.full((2, 3, 32, 32), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward.soft(flat, ["a cat"] * 2).sum(), flat)
    assert bool(gradient.isfinite().all())


def test_a_picture_of_nothing_compresses_best() -> None:
    """Why the penalty is needed: the reward's optimum shows nothing."""
    blank = torch.full((1, 128, 128, 3), 128, dtype=torch.uint8)
    assert float(compressibility(blank)) > float(compressibility(random_pictures(20)).max())


def test_colourfulness_is_hasler_and_suesstrunk_s_formula() -> None:
    """Against the formula pixel by pixel; a failure would mean another quantity than is cited."""
    picture = random_pictures(1).numpy()
    red_green, yellow_blue = [], []
    for red, green, blue in picture[0].reshape(-1, 3).astype(float).tolist():
        red_green.append(red - green)
        yellow_blue.append(0.5 * (red + green) - blue)
    spread = (np.var(red_green) + np.var(yellow_blue)) ** 0.5
    expected = spread + 0.3 * (np.mean(red_green) ** 2 + np.mean(yellow_blue) ** 2) ** 0.5
    assert taken(colourfulness, picture) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("measure", "worse", "better"),
    [
        (colourfulness, scene(subject=(120, 120, 120)), scene(subject=(150, 110, 110))),
        (colourfulness, scene(subject=(150, 110, 110)), scene(subject=(255, 0, 0))),
        (contrast, scene(subject=(200, 200, 200)), scene(subject=(100, 100, 100))),
        (contrast, scene(subject=(100, 100, 100)), scene(subject=(0, 0, 0))),
        (sharpness, scene(blur=4), scene(blur=2)),
        (sharpness, scene(blur=2), scene()),
        (framing, scene(grain=40), scene()),
        (framing, scene(box=(8, 8, 120, 120)), scene(box=(30, 30, 90, 90))),
    ],
)
def test_each_measure_rises_with_what_it_is_called(
    measure: Callable[[Tensor], Tensor], worse: NDArray[np.uint8], better: NDArray[np.uint8]
) -> None:
    assert taken(measure, better) > taken(measure, worse) + 1e-6


def test_grain_is_not_sharpness() -> None:
    """A noisy picture must not pass for a crisp one: that would be the cheapest way to the reward."""
    blurred, noisy, crisp = scene(blur=3), scene(blur=3, grain=6), scene()
    gain = taken(sharpness, noisy) - taken(sharpness, blurred)
    assert gain < 0.35 * (taken(sharpness, crisp) - taken(sharpness, blurred))


def test_the_score_counts_in_standard_deviations_of_what_it_was_fitted_to(tmp_path: Path) -> None:
    pictures = random_pictures(60)
    score = AestheticScore.fitted(pictures)
    values = score(pictures)
    assert float(values.mean()) == pytest.approx(0, abs=1e-9)
    assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-6)
    score.save(tmp_path / "scale.json")
    assert torch.equal(AestheticScore.load(tmp_path / "scale.json")(pictures), values)


def test_no_measure_runs_away_with_the_score() -> None:
    """Each is cut at three deviations, so the best possible picture is that of all four, not of one."""
    score = AestheticScore.fitted(random_pictures(60))
    extreme = AestheticScore({**score.measures, "contrast": (0.0, 1e-9)}, score.mean, score.deviation)
    assert float(extreme(torch.from_numpy(scene()))) <= (3.0 - score.mean) / score.deviation + 1e-9


def test_the_shipped_scale_is_of_all_four_measures() -> None:
    assert set(AestheticScore.load().measures) == {"colourfulness", "contrast", "sharpness", "framing"}


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_judge(tmp_path_factory.mktemp("judge"))


def test_alignment_is_the_cosine_of_picture_and_prompt(judge_folder: Path) -> None:
    pictures, prompts = random_pictures(3), ["a cat", "a red apple", "a cat"]
    judge = load_judge(judge_folder, CPU)
    values = load_reward(f"alignment={judge_folder}", CPU)(pictures, prompts)
    for number, prompt in enumerate(prompts):
        product = (judge.pictures(pictures[number : number + 1]) * judge.texts([prompt])).sum()
        assert float(values[number]) == pytest.approx(float(product), abs=1e-5)


def test_judges_give_a_gradient_of_the_same_numbers(judge_folder: Path) -> None:
    """What is differentiated is what is rewarded: alignment and recognition, on the same pictures."""
    pictures, names = random_pictures(3), ["a cat", "a dog", "a cat"]
    judge = load_judge(judge_folder, CPU)
    recognition = Recognition(judge, ["a cat", "a dog", "a pizza"])
    given = unit(pictures)
    soft = [judge.soft(given, names), recognition.soft(given, names, seed=1)]
    assert torch.allclose(soft[0], judge(pictures, names), atol=1e-5)
    assert torch.allclose(soft[1].double(), recognition(pictures, names, seed=1)[0], atol=1e-3)
    for values in soft:
        (gradient,) = torch.autograd.grad(values.sum(), given, retain_graph=True)
        assert float(gradient.abs().max()) > 0


def test_recognition_agrees_with_naming_one_by_one(judge_folder: Path) -> None:
    """Against a slow reference where all names compete; with fewer than 50 names, all always do."""
    judge, names = load_judge(judge_folder, CPU), ["a cat", "a dog", "a pizza", "a rocket"]
    pictures, shown = random_pictures(4), ["a dog", "a cat", "a dog", "a rocket"]
    log_probs, found = Recognition(judge, names)(pictures, shown, seed=3)
    scale = float(judge.model.logit_scale.exp())
    for number, name in enumerate(shown):
        logits = scale * (judge.texts(names).double() @ judge.pictures(pictures)[number].double())
        assert float(log_probs[number]) == pytest.approx(
            float(logits.log_softmax(0)[names.index(name)]), abs=1e-4
        )
        assert bool(found[number]) == (names[int(logits.argmax())] == name)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model as others save it, tiny and untrained."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = make_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 16,
        },
        projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_any_clip_model_can_be_the_judge(clip_folder: Path) -> None:
    """Pictures of any size, texts of any length; the cosine is that of the model's own forward."""
    judge = load_judge(clip_folder, CPU)
    value = judge(random_pictures(2), ["a cat", "a red dog on the left of a blue sunset " * 3])
    assert value.shape == (2,) and bool((value.abs() <= 1 + 1e-6).all())
    read = judge.tokenizer(["a cat"], padding="max_length", max_length=16, return_tensors="pt")
    pixels = torch.randn(1, 3, 32, 32)
    outputs = judge.model(**read, pixel_values=pixels)
    assert torch.allclose(judge.texts(["a cat"]), outputs.text_embeds, atol=1e-5)


def test_laion_s_predictor_takes_the_place_of_the_score(clip_folder: Path, tmp_path: Path) -> None:
    """A file in the layout of the published one gives the published network's number."""
    torch.manual_seed(1)
    layers = nn.Sequential(
        nn.Linear(8, 1024), nn.Dropout(), nn.Linear(1024, 128), nn.Dropout(), nn.Linear(128, 64),
        nn.Dropout(), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip
    file = tmp_path / "predictor.pth"
    torch.save({f"layers.{name}": value for name, value in layers.state_dict().items()}, file)
    pictures = random_pictures(2)
    scores = load_reward(f"laion={file},{clip_folder}", CPU)(pictures, ["", ""])
    with torch.no_grad():
        expected = layers.eval()(load_judge(clip_folder, CPU).pictures(pictures)).squeeze(1)
    assert torch.allclose(scores.float(), expected, atol=1e-5)
    torch.save({"other": torch.zeros(1)}, file)
    with pytest.raises(InvalidConfiguration, match=r"predictor\.pth holds no aesthetic predictor"):
        load_reward(f"laion={file},{clip_folder}", CPU)
    with pytest.raises(InvalidConfiguration, match="there is no file"):
        load_reward("laion=/nowhere.pth", CPU)


def test_a_reward_of_one_s_own_is_one_function(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def red(pictures, prompts):\n    return pictures[..., 0].double().mean((1, 2))\n"
        "def broken(pictures, prompts):\n    return [float('nan')] * len(pictures)\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pictures = random_pictures(2)
    values = checked(load_reward("my_rewards:red", CPU), pictures, ["a", "b"])
    assert values.tolist() == pytest.approx(pictures[..., 0].double().mean((1, 2)).tolist())
    with pytest.raises(InvalidConfiguration, match="not finite"):
        checked(load_reward("my_rewards:broken", CPU), pictures, ["a", "b"])
    with pytest.raises(InvalidConfiguration, match="is no function"):
        load_reward("my_rewards:number", CPU)
    with pytest.raises(InvalidConfiguration, match="cannot be imported"):
        load_reward("my_rewards:missing", CPU)
    with pytest.raises(InvalidConfiguration, match="compressibility, incompressibility, aesthetic"):
        load_reward("prettiness", CPU)


def test_every_named_reward_that_needs_no_file_gives_a_number_a_picture() -> None:
    pictures = random_pictures(2)
    for name in set(NAMES) - {"laion", "alignment"}:
        assert checked(load_reward(name, CPU), pictures, ["a cat", "a dog"]).shape == (2,)


def test_the_score_s_numbers_are_json(tmp_path: Path) -> None:
    AestheticScore.fitted(random_pictures(8)).save(tmp_path / "scale.json")
    assert set(json.loads((tmp_path / "scale.json").read_text())) == {"measures", "mean", "deviation"}


def test_jpeg_size_does_not_depend_on_metadata() -> None:
    """Pixels alone count: the same picture opened from a PNG gives the same number."""
    picture = random_pictures(1)
    buffer = io.BytesIO()
    Image.fromarray(picture[0].numpy()).save(buffer, "PNG")
    again = torch.from_numpy(np.array(Image.open(buffer)))[None]
    assert torch.equal(incompressibility(again), incompressibility(picture))
