"""The contrastive model and the evaluator, at tiny sizes with the real classes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer, SiglipModel

from app.training import checkpoints
from app.training.captions import Captioner, Statement, describe
from app.training.compose import CANVAS, Scene, compose, named_rgb, random_scene
from app.training.contrastive import (
    SIZES_OF,
    ContrastiveTraining,
    Patches,
    Sizes,
    altered,
    new_siglip,
    sigmoid_loss,
)
from app.training.degrade import SIDE, degraded_pictures
from app.training.held_out import (
    FOLDS_OF,
    HELD_OUT_FOLD,
    combination,
    fold_of,
    scenes_for,
)
from app.training.judge import CARD, Judge, export_judge, read_card
from app.training.labels import label_matrix, scene_facts, statement_facts
from app.training.quality import background_of
from app.training.tokenizer import encode, train_tokenizer
from app.training.vocabulary import PAIR_SIZE, SIZES, read_nouns

NOUNS = read_nouns()
SIDES = sorted({*SIZES.values(), PAIR_SIZE})
TINY = Sizes(32, 1, 48, heads=2, text_width=16, text_hidden=24, seed=3)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    texts = [word for noun in NOUNS for word in noun.words] * 3
    return train_tokenizer(texts, tmp_path_factory.mktemp("work") / "tok", size=900)


@pytest.fixture(scope="module")
def pictures() -> dict[int, Tensor]:
    """A square of a colour of its own for every noun, with a transparent rim."""
    made = {}
    for side in SIDES:
        rgba = torch.zeros(len(NOUNS), 4, side, side, dtype=torch.uint8)
        rgba[:, :, side // 4 : -side // 4, side // 4 : -side // 4] = 255
        for index in range(len(NOUNS)):
            rgb = torch.tensor([index * 37 % 256, index * 101 % 256, index * 11 % 256])
            rgba[index, :3] = (rgba[index, 3:] // 255) * rgb.view(3, 1, 1).to(torch.uint8)
        made[side] = rgba
    return made


def single(noun: int, color: str = "red", place: str = "center", size: str = "", rgb: str = "") -> Scene:
    return Scene((noun,), size, place, (False,), color, named_rgb(color or rgb))


def pair(first: int, second: int, color: str = "red") -> Scene:
    return Scene((first, second), "", "center", (False, False), color, named_rgb(color))


def labels(statement: Statement, *scenes: Scene) -> list[int]:
    values: list[int] = label_matrix(statement_facts([statement]), scene_facts(scenes))[0].tolist()
    return values


def test_a_caption_is_always_true_of_its_own_picture() -> None:
    """A failure would teach the model that a picture is not what it is."""
    rng = random.Random(0)
    scenes = [random_scene(rng, range(5), pair=0.4) for _ in range(300)]
    said = [describe(scene, NOUNS, rng, empty=0.0)[1] for scene in scenes]
    matrix = label_matrix(statement_facts(said), scene_facts(scenes))
    assert matrix.diagonal().tolist() == [1] * 300
    assert set(matrix.flatten().tolist()) == {-1, 0, 1}


def test_what_a_caption_leaves_open_makes_no_negative_of_a_neighbour() -> None:
    cat_on_red, cat_on_blue, dog = single(0), single(0, "blue", "left", "small"), single(1)
    assert labels(Statement((0,)), cat_on_red, cat_on_blue, dog, pair(1, 0)) == [1, 1, -1, 1]
    assert labels(Statement((0,), color="blue"), cat_on_red, cat_on_blue) == [-1, 1]
    assert labels(Statement((0,), place="left"), cat_on_red, cat_on_blue) == [-1, 1]
    assert labels(Statement((0,), size="small"), cat_on_red, cat_on_blue) == [-1, 1]
    assert labels(Statement((0,), size="big"), cat_on_blue) == [-1]


def test_what_people_could_differ_on_counts_neither_way() -> None:
    """A random background near red, and the size or the side of one of two things."""
    nearly_red = single(0, "", rgb="red")
    assert labels(Statement((0,), color="red"), nearly_red) == [0]
    assert labels(Statement((0,), color="blue"), nearly_red) == [-1]
    assert labels(Statement((0,), place="left"), pair(0, 1)) == [0]
    assert labels(Statement((0,), size="small"), pair(1, 0)) == [0]
    assert labels(Statement((0,), color="blue", size="small"), pair(1, 0)) == [-1]


def test_pairs_are_told_in_any_order_unless_the_caption_gives_sides() -> None:
    assert labels(Statement((0, 1)), pair(0, 1), pair(1, 0), pair(0, 2), single(0)) == [1, 1, -1, -1]
    assert labels(Statement((0, 1), ordered=True), pair(0, 1), pair(1, 0)) == [1, -1]


def test_an_altered_scene_is_another_one_that_captions_can_tell() -> None:
    """Its full description must be false of the original, or it would be no negative at all."""
    rng = random.Random(0)
    for _ in range(500):
        scene = random_scene(rng, range(10), pair=0.3)
        other = altered(scene, rng, nouns=10)
        everything = Statement(
            other.nouns, len(other.nouns) == 2, other.size_word, "" if len(other.nouns) == 2 else other.place,
            other.color,
        )  # fmt: skip
        told_apart = labels(everything, scene) != [1] or other.size_word != scene.size_word
        assert other != scene and told_apart


def test_a_label_of_zero_teaches_nothing() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    given = torch.tensor([[1, -1, 0], [0, 1, -1], [0, 0, 0], [-1, -1, 1]], dtype=torch.int8)
    sigmoid_loss(logits, given).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, given == 0)
    assert bool((logits.grad.sign() == -given.sign()).all())


def test_patches_are_the_convolution() -> None:
    plain = nn.Conv2d(3, 8, 16, 16)
    images = torch.randn(2, 3, 64, 32)
    want = plain(images)
    plain.__class__ = Patches
    assert torch.allclose(plain(images), want, atol=1e-5)


def test_each_model_sees_scenes_of_its_own_and_none_of_the_benchmark_s() -> None:
    """Otherwise a model tuned to please the one would please the other, or figures would be of old scenes."""
    seen = {
        name: {combination(scene) for scene in scenes_for(name, 2000, seed=1, pair=0.3)} for name in FOLDS_OF
    }
    assert not seen["contrastive"] & seen["evaluator"]
    assert {fold_of(one) for one in set().union(*seen.values())} == set(range(5)) - {HELD_OUT_FOLD}
    assert {one[0] for one in seen["contrastive"]} == set(range(len(NOUNS)))


def test_degraded_pictures_are_seeded_and_keep_what_captions_say(pictures: dict[int, Tensor]) -> None:
    scenes = scenes_for("contrastive", 130, seed=2, pair=0.2)
    made = degraded_pictures(scenes, pictures, seed=5, workers=1)
    assert torch.equal(made, degraded_pictures(scenes, pictures, seed=5, workers=3))
    assert not torch.equal(made, degraded_pictures(scenes, pictures, seed=6, workers=1))
    named = [(image, scene) for image, scene in zip(made, scenes, strict=True) if scene.color]
    right = sum(background_of(image.float() / 255) == scene.color for image, scene in named)
    assert right > 0.9 * len(named)
    clean = F.avg_pool2d(torch.stack([compose(scene, pictures) for scene in scenes]), CANVAS // SIDE)
    difference = (made.float() / 127.5 - 1 - clean).square().mean((1, 2, 3))
    assert 0.001 < difference.median() < 0.2


def training(folder: Path, scenes: list[Scene], images: Tensor, batch: int = 8) -> ContrastiveTraining:
    return ContrastiveTraining("contrastive", folder, scenes, images, 1.0, batch, TINY, torch.device("cpu"))


def test_a_resumed_run_equals_an_uninterrupted_one(
    tokenizer: CLIPTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.training.contrastive.Clock.share", 0.5)
    scenes = scenes_for("contrastive", 20, seed=1, pair=0.3)
    images = torch.randint(0, 256, (20, 3, SIDE, SIDE), dtype=torch.uint8)
    for folder in ("whole", "parts"):
        tokenizer.save_pretrained(tmp_path / folder / "tok")
    whole = training(tmp_path / "whole", scenes, images)
    for _ in range(4):
        whole.train_step()
    for _ in range(2):
        part = training(tmp_path / "parts", scenes, images)
        for _ in range(2):
            part.train_step()
        part.save()
    assert part.step == whole.step == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, part.model.state_dict()[name]), name
    assert checkpoints.load(tmp_path / "parts" / "contrastive.pt") is not None


def test_it_learns(
    tokenizer: CLIPTokenizer, tmp_path: Path, pictures: dict[int, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.training.contrastive.Clock.share", 0.0)
    tokenizer.save_pretrained(tmp_path / "tok")
    rng = random.Random(0)
    scenes = [random_scene(rng, range(6)) for _ in range(64)]
    images = degraded_pictures(scenes, pictures, seed=1)
    run = training(tmp_path, scenes, images, batch=24)
    losses = torch.tensor([run.train_step() for _ in range(60)])
    assert bool((losses[-10:].mean(0) < 0.8 * losses[:10].mean(0)).all()), losses


def test_an_export_is_loaded_by_stock_transformers_and_embeds_the_same(
    tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    judge = Judge(new_siglip(tokenizer, TINY).half().float(), tokenizer)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = tmp_path / "contrastive"
    for steps in (1, 2):  # the second replaces the first
        export_judge(judge, folder, {"steps": steps})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contrastive", "tokenizer"]
    assert sorted(path.name for path in folder.iterdir()) == [CARD, "config.json", "model.safetensors"]
    assert read_card(folder)["steps"] == 2
    shown = torch.randint(0, 256, (3, SIDE, SIDE, 3), dtype=torch.uint8)
    texts = ["a cat", "", "a dog on a red background"]
    again = Judge.load(folder, tokenizer=tmp_path / "tokenizer")
    assert torch.allclose(again.pictures(shown), judge.pictures(shown), atol=1e-5)
    assert torch.allclose(again.texts(texts), judge.texts(texts), atol=1e-5)
    stock = SiglipModel.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        out = stock(
            input_ids=torch.tensor(encode(tokenizer, texts)),
            pixel_values=shown.permute(0, 3, 1, 2).float() / 127.5 - 1,
        )
    assert torch.allclose(out.image_embeds, judge.pictures(shown), atol=1e-5)
    assert torch.allclose(out.logits_per_text.diagonal() - stock.logit_bias,
                          judge(shown, texts) * stock.logit_scale.exp(), atol=1e-4)  # fmt: skip


def test_a_judge_takes_pictures_of_other_sizes(tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(0)
    judge = Judge(new_siglip(tokenizer, TINY), tokenizer)
    large = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    large = large.repeat_interleave(64, 1).repeat_interleave(64, 2)
    assert judge.pictures(large).shape == (2, TINY.vision_width)
    assert torch.allclose(judge.pictures(large).norm(dim=1), torch.ones(2))


def test_the_two_models_have_seeds_and_sizes_of_their_own(tokenizer: CLIPTokenizer) -> None:
    first, second = SIZES_OF["contrastive"], SIZES_OF["evaluator"]
    assert first.seed != second.seed and first.vision_width != second.vision_width
    count = sum(p.numel() for p in new_siglip(tokenizer, second).parameters())
    assert 2 * count < 4_000_000


def test_a_captioner_knows_texts_again(tokenizer: CLIPTokenizer) -> None:
    captioner = Captioner(tokenizer)
    texts = ["a cat", "a dog", "a cat"]
    assert captioner.ids(texts).tolist() == encode(tokenizer, texts) == captioner.ids(texts).tolist()
