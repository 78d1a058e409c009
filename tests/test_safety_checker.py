"""The safety checker: off unless asked for; then no picture leaves that it has not seen."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from safetensors.torch import load_file, save_file

from app.backends.local import LocalBackend
from app.catalog.entry import Catalog
from app.catalog.loader import checked_by
from app.engine.hub import HubAccess
from app.engine.request import Failed, Finished, Progress
from app.engine.safety import SafetyChecker, blurred, load_safety_checker
from app.errors import InvalidConfiguration, ModelLoadError, PictureWithheld
from app.main import create_app
from tests.conftest import client_of, make_settings
from tests.hub_standin import hub_standin
from tests.safety_checkers import make_checker
from tests.test_local_backend import Heard, make_entry, make_request, until
from tests.tiny import make_pipeline

pytestmark = pytest.mark.usefixtures("short_warm_up")
CPU = torch.device("cpu")
FLAGS_ALL, FLAGS_NONE = -2.0, 2.0


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Two models that nobody checks."""
    folder = make_pipeline(tmp_path_factory.mktemp("model"))
    entries = (make_entry("good", folder), make_entry("other", folder))
    return Catalog(entries, entries[0])


def load(folder: Path) -> SafetyChecker:
    entry = dataclasses.replace(make_entry("any", folder), safety_checker=str(folder))
    return load_safety_checker(entry, CPU, torch.float32, lambda fraction, words: None, HubAccess(folder))


async def picture_and_previews(catalog: Catalog) -> tuple[Finished | Failed, list[Image.Image]]:
    """What comes of one request, and the previews on the way."""
    backend = LocalBackend(catalog, device="cpu", threads=1)
    await backend.start()
    try:
        heard = Heard()
        backend.add_request(make_request("one"), heard)
        final = await heard.final()
        assert isinstance(final, Finished | Failed)
        await until(lambda: backend.status().loading_ended)
        worker = backend._workers[0]
        checkers = {id(model.safety_checker) for model in worker.engine._models.values()}
        assert len(checkers) == 1, "a checker for each model"
        previews = [e.preview for e in heard.events if isinstance(e, Progress) and e.preview is not None]
        return final, [Image.open(io.BytesIO(preview)) for preview in previews]
    finally:
        await backend.stop()


def test_it_flags_the_pictures_that_are_near_a_concept_and_no_others(tmp_path: Path) -> None:
    """A failure means that pictures are not prepared as it was trained, or verdicts go to the wrong ones."""
    rng = np.random.default_rng(0)
    bad = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    good = np.full_like(bad, 255)
    checker = load(make_checker(tmp_path / "checker", threshold=0.998, flagged=bad))
    assert checker.flags(np.stack([good, bad, good])) == [False, True, False]
    assert checker.memory_bytes > 1000


async def test_a_flagged_picture_is_withheld_and_its_previews_show_nothing(
    catalog: Catalog, tmp_path: Path
) -> None:
    """A failure means that somebody sees what the checker was switched on to hide."""
    folder = make_checker(tmp_path / "checker", threshold=FLAGS_ALL)
    final, previews = await picture_and_previews(checked_by(catalog, str(folder)))
    assert isinstance(final, Failed) and isinstance(final.error, PictureWithheld)
    assert len(previews) == 4
    plain, sharp = await picture_and_previews(catalog)
    assert isinstance(plain, Finished)
    for hidden, shown in zip(previews, sharp, strict=True):
        assert _detail(hidden) < 0.3 * _detail(shown), "the preview can be recognised"


def _detail(image: Image.Image) -> float:
    """Mean difference of neighbouring pixels."""
    return float(np.abs(np.diff(np.asarray(image, dtype=float), axis=0)).mean())


async def test_a_picture_that_is_not_flagged_is_the_same_as_without(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_checker(tmp_path / "checker", threshold=FLAGS_NONE)
    checked, _ = await picture_and_previews(checked_by(catalog, str(folder)))
    plain, _ = await picture_and_previews(catalog)
    assert isinstance(checked, Finished) and isinstance(plain, Finished)
    assert checked.pixels == plain.pixels and checked.alone == plain.alone


def test_blurred_previews_keep_eight_colours_a_side() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1.0
    assert torch.allclose(blurred(stripes), torch.full_like(stripes, 0.5))


def test_it_comes_from_the_hub_with_the_files_that_it_needs(tmp_path: Path) -> None:
    """In the form of the hub's own: a .bin file with the names of its time, beside formats for others."""
    folder = make_checker(tmp_path / "made", threshold=FLAGS_ALL)
    weights = load_file(folder / "model.safetensors").items()
    nested = {f"vision_model.{n}" if n.startswith("vision_model.") else n: value for n, value in weights}
    nested["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(nested, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "flax_model.msgpack").write_bytes(b"for others")
    with hub_standin() as hub:
        hub.add("someone/checker", folder)
        access = HubAccess(tmp_path / "cache", endpoint=hub.address, timeout=5.0)
        entry = dataclasses.replace(make_entry("any", folder), safety_checker="someone/checker")
        checker = load_safety_checker(entry, CPU, torch.float32, lambda fraction, words: None, access)
        fetched = {name.rpartition("/")[2] for name in hub.downloads()}
    assert fetched == {"config.json", "preprocessor_config.json", "pytorch_model.bin"}
    assert checker.flags(np.zeros((1, 16, 16, 3), dtype=np.uint8)) == [True]


async def test_no_model_serves_without_the_checker_that_was_asked_for(
    catalog: Catalog, tmp_path: Path
) -> None:
    """A failure means that pictures leave unchecked because the checker could not be loaded."""
    backend = LocalBackend(checked_by(catalog, str(tmp_path / "gone")), device="cpu", threads=1)
    await backend.start()
    try:
        await until(lambda: backend.status().loading_ended)
        for model in backend.status().models:
            assert (model.state, model.error) == ("failed", "safety/checker: there is no such folder.")
    finally:
        await backend.stop()


@pytest.mark.parametrize("spoil", ["weights", "index", "other"])
def test_an_incomplete_checker_is_refused(tmp_path: Path, spoil: str) -> None:
    """Weights that are missing would be random numbers, and let everything pass."""
    folder = make_checker(tmp_path / "checker", threshold=FLAGS_ALL)
    weights = load_file(folder / "model.safetensors")
    if spoil == "weights":
        del weights["concept_embeds"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    else:
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = [] if spoil == "index" else ["CLIPModel"]
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="safety/checker: ") as caught:
        load(folder)
    assert str(tmp_path) not in caught.value.message


@pytest.fixture
async def checked_app(catalog: Catalog, tmp_path: Path) -> AsyncIterator[FastAPI]:
    """The application with a checker that flags everything."""
    folder = make_checker(tmp_path / "checker", threshold=FLAGS_ALL)
    settings = make_settings(tmp_path / "data", safety_checker=str(folder), device="cpu", threads=1)
    application = create_app(settings, catalog=catalog)
    async with application.router.lifespan_context(application):
        yield application


async def test_who_asks_is_told_in_words(checked_app: FastAPI) -> None:
    """On the stream, as an answer to a picture asked for, and on /health."""
    async with client_of(checked_app, timeout=60) as client:
        stream = (await client.get("/generate", params={"prompt": "a red cat", "steps": 2})).text
        events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        assert events[-1]["done"] and events[-1]["error"]["code"] == "picture_withheld"
        assert "safety checker" in events[-1]["error"]["message"]
        answer = await client.get(
            "/generate", params={"prompt": "a red cat", "steps": 2}, headers={"Accept": "image/png"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "picture_withheld")
        assert (await client.get("/health")).json()["safety_checker"] == "on"


async def test_it_is_off_unless_asked_for(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json()["safety_checker"] == "off"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("off", ""), ("On", "CompVis/stable-diffusion-safety-checker"), ("someone/checker", "someone/checker")],
)
def test_the_setting_takes_words_and_hub_ids(tmp_path: Path, given: str, meant: str) -> None:
    assert make_settings(tmp_path, safety_checker=given).safety_checker_source == meant


def test_a_word_that_is_no_checker_is_refused(catalog: Catalog) -> None:
    """A failure means that 'yes' is looked for on the hub."""
    with pytest.raises(InvalidConfiguration, match="DARKROOM_SAFETY_CHECKER"):
        checked_by(catalog, "yes")
    assert checked_by(catalog, "") is catalog
    assert checked_by(catalog, "someone/checker").default.name == "good"
