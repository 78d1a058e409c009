"""The recipes behind the built-in model, at tiny sizes with the real classes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("diffusers")

from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from app.training import bank, base, emoji, models, text, vae
from app.training.captions import Captioner, Statement, caption
from app.training.compose import CANVAS, GRID, compose, named_rgb, random_scene
from app.training.export import export, vocabulary
from app.training.fused import library, norm_silu
from app.training.latents import fold_statistics
from app.training.muon import orthogonalise
from app.training.tokenizer import MAX_LENGTH, MODEL_LENGTH, SLOTS, encode, train_tokenizer
from app.training.vocabulary import COLORS, PAIR_SIZE, SIZES, read_nouns

SIDES = sorted({*SIZES.values(), PAIR_SIZE})
tiny_unet = partial(models.new_unet, channels=(16, 16, 32), heads=(1, 4, 2))
tiny_vae = partial(models.new_vae, channels=(8, 8, 8, 8))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    texts = [word for noun in read_nouns() for word in noun.words] * 3
    return train_tokenizer(texts, tmp_path_factory.mktemp("work") / "tok", size=900)


@pytest.fixture
def pictures() -> dict[int, Tensor]:
    """Two opaque squares, white and black, that leave a transparent rim of a quarter."""
    made = {}
    for side in SIDES:
        rgba = torch.zeros(2, 4, side, side, dtype=torch.uint8)
        rgba[:, 3, side // 4 : -side // 4, side // 4 : -side // 4] = 255
        rgba[0, :3] = rgba[0, 3]
        made[side] = rgba
    return made


def test_every_noun_is_named_once_and_has_its_words_in_the_vocabulary() -> None:
    names = [word for noun in read_nouns() for word in noun.words]
    assert len(names) == len(set(names))
    assert len(read_nouns()) >= 200
    assert {part for name in names for part in name.split()} <= set(map(str, vocabulary()["words"]))  # type: ignore[call-overload]


def test_scenes_stay_on_the_grid_and_inside_the_picture() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = random_scene(rng, range(10), pair=0.2)
        for x, y, side in scene.boxes:
            assert x % GRID == y % GRID == side % GRID == 0
            assert x >= 0 and y >= 0 and max(x, y) + side <= CANVAS
        if scene.color:
            assert scene.rgb == named_rgb(scene.color)


def test_left_is_left_and_the_background_is_exactly_its_color(pictures: dict[int, Tensor]) -> None:
    rng = random.Random(0)
    seen = set()
    while seen != {"left", "right"}:
        scene = random_scene(rng, [0])
        if scene.place not in ("left", "right") or scene.color == "white":
            continue
        seen.add(scene.place)
        image = compose(scene, pictures)
        columns = (image == 1).all(0).any(0).nonzero().float()
        assert (columns.mean() < CANVAS / 2) == (scene.place == "left")
        assert torch.allclose((image[:, 0, 0] + 1) / 2, torch.tensor(scene.rgb), atol=1e-6)


def test_caption_words_are_in_the_vocabulary_and_fit_the_text_encoder(tokenizer: CLIPTokenizer) -> None:
    rng, nouns = random.Random(0), read_nouns()
    known = set(vocabulary()["words"])  # type: ignore[call-overload]
    texts = [caption(random_scene(rng, range(len(nouns)), 0.2), nouns, rng) for _ in range(3000)]
    assert {word.strip(",") for text in texts for word in text.split()} <= known
    assert 0.05 < sum(not text for text in texts) / len(texts) < 0.15
    assert max(len(text.split()) for text in texts) < MAX_LENGTH - 2


def test_the_tokenizer_survives_a_round_trip_and_any_text(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["a cat", "", "A CAT", "naïve 日本 🐱 " + "word " * 99]
    ids = encode(again, texts)
    assert ids == encode(tokenizer, texts)
    assert ids[0] == ids[2]
    assert {len(row) for row in ids} == {MAX_LENGTH}
    assert all(0 <= i < len(again) for row in ids for i in row)


@pytest.mark.skipif(library() is None, reason="no C compiler")
@pytest.mark.parametrize("silu", [True, False])
def test_the_fused_norm_is_the_ordinary_one(silu: bool) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 16, 8, 8).bfloat16().float().requires_grad_()
    scale, shift = torch.randn(2, 3, 16).unbind(0)
    scale.requires_grad_(), shift.requires_grad_()
    inputs = (x, scale, shift, norm.weight, norm.bias)

    def ordinary() -> Tensor:
        out = norm(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return nn.functional.silu(out) if silu else out

    def run(forward: Callable[[], Tensor]) -> list[Tensor]:
        out = forward()
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape).bfloat16().float()
        return [out.detach().float(), *torch.autograd.grad((out.float() * weights).sum(), inputs)]

    for want, got in zip(run(ordinary), run(lambda: norm_silu(x, norm, scale, shift, silu)), strict=True):
        assert (want - got).abs().max() < 0.02 * want.abs().max()


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 24, 60), (2, 60, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
        assert values.min() > 0.5 and values.max() < 1.5


def test_folding_statistics_standardises_latents_and_keeps_pictures() -> None:
    torch.manual_seed(0)
    model = tiny_vae().eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images).latent_dist.mode()
        before = model.decode(latents).sample
        fold_statistics(model, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
        folded = model.encode(images).latent_dist.mode()
        assert folded.mean((0, 2, 3)).abs().max() < 1e-3
        assert (folded.std((0, 2, 3)) - 1).abs().max() < 1e-3
        assert (model.decode(folded).sample - before).abs().max() < 1e-3


def test_a_resumed_run_equals_an_uninterrupted_one(
    tokenizer: CLIPTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "new_unet", tiny_unet)
    monkeypatch.setattr(base.Clock, "share", 0.5)
    scenes = bank.balanced_scenes(20, len(read_nouns()), 0.3, seed=1)
    data = bank.Bank(scenes, torch.randn(20, 12, 16, 16).bfloat16())
    for folder in ("whole", "parts"):
        tokenizer.save_pretrained(tmp_path / folder / "tok")
    whole = base.BaseTraining(tmp_path / "whole", data, minutes=1, batch=4)
    for _ in range(4):
        whole.train_step()
    for _ in range(2):
        part = base.BaseTraining(tmp_path / "parts", data, minutes=1, batch=4)
        for _ in range(2):
            part.train_step()
        part.save()
    assert part.step == whole.step == 4
    for name, value in whole.average.values.items():
        assert torch.equal(value, part.average.values[name]), name


def random_targets() -> text.SlotTargets:
    """Targets of four nouns that show noise."""
    single = {size: torch.randn(4, SLOTS, text.CELL) for size in SIZES}
    return text.SlotTargets(single, torch.randn(4, SLOTS, text.CELL))


def test_slots_show_what_a_caption_says_cell_by_cell() -> None:
    """Cell (row, column) is the 2x2 latents there; an open size gets two; of a pair each keeps its side."""
    latents = torch.randn(3, models.LATENT_CHANNELS, 16, 16)
    slots = text.cells_of(latents)
    row, column = 2, 5
    want = latents[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    assert torch.equal(slots[1, 8 * row + column].view(want.shape), want)
    targets = random_targets()
    said = [Statement((2,)), Statement((2,), size="small"), Statement((0, 1)), Statement()]
    (free, small, pair, empty), has_any = targets.batch(said)
    assert torch.equal(free, torch.cat([targets.single["big"][2], targets.single[""][2]], -1))
    assert torch.equal(small, torch.cat([targets.single["small"][2]] * 2, -1))
    left, right = pair.view(8, 8, 2, text.CELL).split(4, 1)
    assert torch.equal(left[:, :, 0], targets.pair[0].view(8, 8, -1)[:, :4])
    assert torch.equal(right[:, :, 1], targets.pair[1].view(8, 8, -1)[:, 4:])
    assert not empty.any() and has_any.tolist() == [True, True, True, False]


def test_the_text_encoder_learns_what_words_look_like(tokenizer: CLIPTokenizer) -> None:
    """A hundred steps on four scenes; a failure would leave the denoiser without its slots."""
    torch.manual_seed(0)
    scenes = bank.balanced_scenes(4, 4, 0.0, seed=1)
    data = bank.Bank(scenes, torch.randn(4, 12, 16, 16).bfloat16())
    encoder, unet = models.new_text_encoder(tokenizer, layers=1), models.new_unet()
    regressor = text.Regressor(unet.add_embedding, 256, (12, 16, 16), hidden=16)
    optimizers = [text.adamw([*encoder.parameters(), *regressor.parameters()], 3e-3)]
    captioner, rng = Captioner(tokenizer, MODEL_LENGTH), random.Random(0)
    targets = random_targets()
    losses = [text._step(encoder, regressor, data, targets, captioner, rng, optimizers) for _ in range(12)]
    assert losses[-1][0] < 0.9 * losses[0][0]


def test_an_export_loads_as_a_stock_pipeline(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "base"
    for _ in range(2):  # the second replaces the first
        export(tiny_vae(), models.new_text_encoder(tokenizer, layers=1), tokenizer, tiny_unet(), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert not list(folder.rglob("*.bin"))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline("a cat", num_inference_steps=2, guidance_scale=3.0, height=CANVAS, width=CANVAS)
    assert result.images[0].size == (CANVAS, CANVAS)
    assert json.loads((folder / "vocabulary.json").read_text())["nouns"]["cat"] == ["kitten", "kitty"]


def test_the_vae_learns(monkeypatch: pytest.MonkeyPatch, pictures: dict[int, Tensor]) -> None:
    torch.manual_seed(0)
    model = tiny_vae().to(memory_format=torch.channels_last)
    matrices, rest = vae.split_parameters(model, decoder_only=False)
    optimizers = [vae.Muon(matrices, 0.02), torch.optim.AdamW(rest, 2e-3)]
    monkeypatch.setattr(vae, "SIDES", (48, 64))
    generator = torch.Generator().manual_seed(0)
    losses = [
        vae.train_step(model, vae.random_batch(pictures, [0, 1], 4, 64, generator), optimizers)
        for _ in range(45)
    ]
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_pictures_are_premultiplied(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 128)).save(tmp_path / "half.png")
    rgba = emoji.load_rgba(tmp_path / "half.png", 16)
    assert rgba.shape == (4, 16, 16)
    assert rgba[:, 8, 8].tolist() == [128, 0, 0, 128]


def test_captioner_gives_the_same_ids_from_its_memory(tokenizer: CLIPTokenizer) -> None:
    scene = random_scene(random.Random(0), [3])
    captioner = Captioner(tokenizer)
    first = [captioner([scene], random.Random(seed)) for seed in range(5)]
    again = [captioner([scene], random.Random(seed)) for seed in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert set(COLORS) <= set(vocabulary()["colors"])  # type: ignore[call-overload]
