"""Which slot each cell of a picture should read while the denoiser is trained."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from app.training.captions import Statement
from app.training.compose import CANVAS, Scene, random_scene
from app.training.routing import CELL_PIXELS, SIDE, Routing, sources_of
from app.training.tokenizer import MODEL_LENGTH, SLOTS
from app.training.vocabulary import PAIR_SIZE


def labels_of(scene: Scene) -> Tensor:
    """(128, 128) int: for each pixel the slot whose pixel is shown there, -1 for none, by pasting."""
    steps = torch.arange(CANVAS) // CELL_PIXELS
    slots = SIDE * steps.view(-1, 1) + steps
    out = torch.full((CANVAS, CANVAS), -1)
    for flipped, (left, top, side) in zip(scene.mirrored, scene.boxes, strict=True):
        pair = len(scene.nouns) == 2
        x, y = (left, (CANVAS - PAIR_SIZE) // 2) if pair else ((CANVAS - side) // 2,) * 2
        thing = slots[y : y + side, x : x + side]
        out[top : top + side, left : left + side] = thing.flip(-1) if flipped else thing
    return out


@pytest.mark.parametrize("pair", [0.0, 1.0])
def test_a_cell_reads_the_slots_whose_pixels_it_shows(pair: float) -> None:
    """Against pasting labels: a failure would teach attention to look in the wrong place."""
    rng = random.Random(0)
    for _ in range(60):
        scene = random_scene(rng, range(4), pair)
        begin, end, known = sources_of([scene], [Statement(scene.nouns, size=scene.size_word)])
        labels = (
            labels_of(scene).view(SIDE, CELL_PIXELS, SIDE, CELL_PIXELS).transpose(1, 2).reshape(SLOTS, -1)
        )
        for cell in range(SLOTS):
            shown = set(labels[cell].tolist()) - {-1}
            assert bool(known[0, cell]) == bool(shown)
            if -1 not in labels[cell].tolist():
                assert {int(begin[0, cell]), int(end[0, cell])} <= shown


def test_nothing_is_told_where_slots_do_not_show_the_thing() -> None:
    """An empty caption has no slots; slots show a small thing only where the caption says so."""
    small = Scene((1,), "small", "center", (False,), "", (0, 0, 0))
    _, _, known = sources_of([small] * 3, [Statement(), Statement((1,)), Statement((1,), size="small")])
    assert known.any(1).tolist() == [False, False, True]


def test_the_loss_falls_as_attention_moves_to_the_right_slots() -> None:
    """Trained on it alone, heads find their slots; and the layers compute what they did before."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=(1, 4), norm_num_groups=4,
    )  # fmt: skip
    latents, states = torch.randn(3, 4, 16, 16), torch.randn(3, MODEL_LENGTH, 16)
    scenes = [Scene((0,), "", place, (False,), "", (0, 0, 0)) for place in ("left", "center", "top")]
    said = [Statement((0,))] * 3
    before = unet(latents, 5, states).sample.detach()
    routing = Routing(unet)
    assert (unet(latents, 5, states).sample - before).abs().max() < 1e-4
    optimizer = torch.optim.Adam(unet.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        unet(latents, 5, states)
        loss = routing.loss(scenes, said)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
