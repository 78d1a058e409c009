"""The benchmark of the built-in models: its prompts, its judges, its intervals, and the shipped evaluator."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from app.bench.quality import compare
from app.cli import main
from app.training.bank import balanced_scenes
from app.training.compose import CANVAS, compose, named_rgb
from app.training.held_out import (
    BANKS,
    HELD_OUT_FOLD,
    combination,
    fold_of,
    held_out_pairs,
    held_out_singles,
    name_of,
)
from app.training.judge import BUILTIN, TOKENIZER, Judge, read_card, tokenizer_hash
from app.training.quality import (
    VARIETY,
    Figure,
    Questions,
    background_of,
    bounds,
    judge_pictures,
    real_pictures,
    resampled,
    side_of,
    variety,
    wilson,
)
from app.training.quality import _among_first as among_first
from app.training.sheet import COMPARED, PROMPTS, Cell, draw_sheet, split_prompts
from app.training.vocabulary import COLORS, PAIR_SIZE, SIZES, read_nouns

NOUNS = read_nouns()
SHIPPED = ("contrastive", "evaluator")
MEGABYTE = 1_000_000


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def questions() -> Questions:
    return Questions.draw(40, 20, 6)


@pytest.fixture(scope="module")
def drawn() -> dict[int, Tensor]:
    """For every noun the same grey square with a dark edge, which stands out from every background."""
    made = {}
    for side in sorted({*SIZES.values(), PAIR_SIZE}):
        rgba = torch.zeros(len(NOUNS), 4, side, side, dtype=torch.uint8)
        outer, inner = (slice(side // part, side - side // part) for part in (5, 4))
        rgba[:, 3, outer, outer] = 255
        rgba[:, :3, inner, inner] = 128
        made[side] = rgba
    return made


@pytest.fixture(scope="module")
def evaluator() -> Judge:
    return Judge.load(BUILTIN / "evaluator")


def test_no_held_out_combination_is_in_a_latent_bank() -> None:
    """A failure would make the figures those of scenes that the base was trained on."""
    prompts = held_out_singles(200) + held_out_pairs(200)
    seen = {
        combination(scene)
        for count, pair, seed in BANKS
        for scene in balanced_scenes(count, len(NOUNS), pair, seed)
    }
    asked = [combination(prompt.scene) for prompt in prompts]
    assert len(set(asked)) == 400
    assert not seen & set(asked)
    assert {fold_of(one) for one in asked} == {HELD_OUT_FOLD}


def test_held_out_prompts_ask_for_what_is_judged() -> None:
    singles, pairs = held_out_singles(200), held_out_pairs(50)
    assert singles == held_out_singles(200), "they must be the same in every run"
    assert len({prompt.scene.nouns for prompt in singles}) == 200
    assert sum(bool(prompt.side) for prompt in singles) == 100
    for prompt in singles + pairs:
        assert all(NOUNS[index].word in prompt.text for index in prompt.scene.nouns)
        assert not prompt.color or f"{prompt.color} background" in prompt.text
        assert not prompt.side or f"on the {prompt.side}" in prompt.text
    assert all(prompt.color for prompt in singles)
    assert sum(bool(prompt.color) for prompt in pairs) == 25
    assert [name_of(noun) for noun in NOUNS if noun.word in ("owl", "cat")] == ["a cat", "an owl"]


def test_pixels_judge_real_pictures_right(questions: Questions, drawn: dict[int, Tensor]) -> None:
    """Every one: the judges must not be what limits the figures."""
    held_out, _ = real_pictures(questions, drawn)
    for pictures, prompt in zip(held_out, questions.held_out, strict=True):
        for picture in pictures:
            image = picture.permute(2, 0, 1).float() / 255
            assert not prompt.color or background_of(image) == prompt.color
            assert not prompt.side or side_of(image) == prompt.side


@pytest.mark.parametrize("color", COLORS)
def test_a_plain_picture_has_its_color(color: str) -> None:
    image = torch.tensor(named_rgb(color)).view(3, 1, 1).expand(3, CANVAS, CANVAS)
    assert background_of(image + 0.03 * torch.randn(3, CANVAS, CANVAS).clamp(-2, 2)) == color


def test_real_pictures_show_what_the_prompt_asks_for(questions: Questions, drawn: dict[int, Tensor]) -> None:
    held_out, open_ = real_pictures(questions, drawn)
    assert held_out.shape == (60, 4, CANVAS, CANVAS, 3) and open_.shape == (6, 8, CANVAS, CANVAS, 3)
    prompt = questions.singles[0]
    want = (compose(prompt.scene, drawn) + 1) * 127.5
    assert (held_out[0, 0].permute(2, 0, 1) - want).abs().max() <= 1


def test_wilson_s_interval_has_its_known_values() -> None:
    """Of Newcombe 1998, table I: 81 of 263, and 0 of 20."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-4)


def test_an_interval_of_prompts_is_that_of_their_means() -> None:
    """Four seeds that always agree are one observation: the interval must not shrink by them."""
    generator = torch.Generator().manual_seed(1)
    by_prompt = (torch.rand(400, 1, generator=generator) < 0.3).double()
    figure = Figure.of(by_prompt.expand(400, 4))
    share = float(by_prompt.mean())
    half = 1.96 * math.sqrt(share * (1 - share) / 400)
    assert figure.mean == pytest.approx(share)
    assert figure.low == pytest.approx(share - half, abs=0.006)
    assert figure.high == pytest.approx(share + half, abs=0.006)
    assert (figure.prompts, figure.seeds) == (400, 4)
    assert Figure.of(by_prompt.expand(400, 4)) == figure, "another interval every time"


def test_all_right_is_not_beyond_doubt() -> None:
    figure = Figure.of(torch.ones(100, 4))
    assert figure.mean == 1 and figure.high == pytest.approx(1) and 0.95 < figure.low < 0.97


def test_bounds_are_the_middle_95_percent() -> None:
    assert bounds(torch.arange(1001).double()) == pytest.approx((25, 975))
    assert resampled(torch.full((2, 30), 0.5)).shape == (2, 2000)


def test_two_models_are_compared_prompt_by_prompt() -> None:
    """A constant gain has no interval, however much the prompts differ."""
    torch.manual_seed(0)
    first = {"score": 10 + 5 * torch.randn(50, 4).double()}
    row = compare(first, {"score": first["score"] * 0.75})["score"]
    assert row["ratio"] == pytest.approx(0.75)
    assert row["ratio_interval"] == pytest.approx([0.75, 0.75])
    row = compare(first, {"score": first["score"] + 5})["score"]
    assert row["difference"] == pytest.approx(5) and row["difference_interval"] == pytest.approx([5, 5])
    assert row["deviations"] == pytest.approx(1, abs=0.15)
    same = compare(first, first)["score"]
    assert same["difference"] == 0 and same["ratio"] == 1


def test_a_name_is_found_if_it_scores_highest() -> None:
    scores = torch.zeros(3, 246)
    scores[0, 7] = 1.0
    scores[1, :] = torch.arange(246)
    scores[2, 7], scores[2, 9] = 1.0, 0.9
    assert among_first(scores, (7,), seed=0).tolist() == [True, False, True]
    assert among_first(scores, (7, 9), seed=0).tolist()[1:] == [False, True]
    rng = random.Random(0)
    chance = [
        bool(among_first(torch.randn(1, 246), tuple(rng.sample(range(246), 2)), seed)) for seed in range(600)
    ]
    assert sum(chance) < 0.03 * len(chance), "chance is 10 in 1225"


def test_variety_is_zero_for_one_picture_and_grows_with_difference(evaluator: Judge) -> None:
    flat = torch.full((1, 3, CANVAS, CANVAS, 3), 100, dtype=torch.uint8)
    assert [float(v) for v in variety(evaluator, flat).values()] == pytest.approx([0, 0], abs=1e-5)
    flat[0, 1] = 200
    found = variety(evaluator, flat)
    assert tuple(found) == VARIETY
    # Two of the three pairs differ by 100/255 in each channel.
    assert float(found["variety of backgrounds"]) == pytest.approx(2 / 3 * math.sqrt(3) * 100 / 255, abs=1e-4)
    assert float(found["variety"]) > 0.001


def test_figures_have_the_shapes_of_their_questions(
    evaluator: Judge, questions: Questions, drawn: dict[int, Tensor]
) -> None:
    held_out, _ = real_pictures(questions, drawn)
    values = judge_pictures(evaluator, questions, held_out)
    shapes = {name: tuple(some.shape) for name, some in values.items()}
    assert shapes == {
        "retrieval": (40, 4), "pair": (20, 4), "background": (50, 4), "side": (20, 4), "alignment": (60, 4)
    }  # fmt: skip
    assert values["background"].min() == 1 and values["side"].min() == 1
    assert values["retrieval"].mean() < 0.3, "a grey square is not the thing that was asked for"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_judge_sees_real_pictures_right(name: str) -> None:
    """As noted when it was trained, on pictures whose combinations it had never seen."""
    card = read_card(BUILTIN / name)
    assert card["reference"]["retrieval"]["mean"] > 0.9
    assert card["reference"]["pair"]["mean"] > 0.8
    assert card["tokenizer_sha256"] == tokenizer_hash(CLIPTokenizer.from_pretrained(TOKENIZER)), (
        "the base's tokenizer has changed since: train it again"
    )


def test_shipped_sizes_are_within_their_bounds() -> None:
    def size(name: str) -> int:
        return sum(path.stat().st_size for path in (BUILTIN / name).rglob("*") if path.is_file())

    tokenizer = sum(path.stat().st_size for path in TOKENIZER.iterdir())
    assert size("evaluator") + tokenizer <= 4 * MEGABYTE
    assert size("base") + size("contrastive") + size("evaluator") <= 44 * MEGABYTE


def test_the_judges_tell_every_name_and_every_color_apart(evaluator: Judge) -> None:
    """Texts alone, so that this needs no pictures."""
    texts = [name_of(noun) for noun in NOUNS] + [f"a cat on a {color} background" for color in COLORS]
    for judge in (evaluator, Judge.load(BUILTIN / "contrastive")):
        embeds = judge.texts(texts)
        cosines = embeds @ embeds.T - 2 * torch.eye(len(texts))
        assert cosines.max() < 0.99


def test_the_bench_measures_and_compares_the_shipped_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model against itself differs in nothing: same prompts, same seeds, same pictures."""
    file = tmp_path / "figures.json"
    arguments = ["--prompts", "4", "--pairs", "2", "--open", "2", "--steps", "2"]
    arguments += ["--metrics", "incompressibility"]
    models = ["--model", "builtin/base", "--model", "base"]
    assert main(["bench", "quality", *arguments, *models, "--json", str(file)]) == 0
    assert "NaN" not in file.read_text(), "strict readers refuse it"
    result = json.loads(file.read_text())
    assert result["models"]["base"] == result["models"]["builtin/base"]
    assert result["models"]["base"]["retrieval"]["prompts"] == 4
    assert result["compared"]["base"]["incompressibility"]["ratio"] == 1
    printed = capsys.readouterr().out
    assert "| retrieval |" in printed and "base against builtin/base" in printed


def test_a_sheet_has_a_place_for_every_picture() -> None:
    assert len(split_prompts(PROMPTS)) == 24 and len(split_prompts(COMPARED)) == 8
    flat = torch.zeros(CANVAS, CANVAS, 3, dtype=torch.uint8)
    cells = [
        Cell(flat + 10 * index, "a cat and a very long caption, as long as they come") for index in range(16)
    ]
    sheet = draw_sheet(cells, 8, ["one", "two"])
    assert sheet.width == 8 * (CANVAS + 4) + 4
    colors = {value[1] for value in sheet.getcolors(1 << 24) or []}  # type: ignore[union-attr]
    assert {(10 * index,) * 3 for index in range(16)} <= colors
    taller = draw_sheet(cells, 4)
    assert taller.height > sheet.height and taller.width < sheet.width
