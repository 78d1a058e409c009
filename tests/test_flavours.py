"""Adapters: a model of a catalogue that is another one with a LoRA merged into it."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from app.catalog.entry import ADAPTER_FILE, CatalogEntry
from app.catalog.loader import load_catalog
from app.engine.loading import load_family, load_pipeline, revision_of
from app.engine.sharing import memory_use, share_equal_tensors
from app.errors import InvalidConfiguration, ModelLoadError
from app.families.stable_diffusion import StableDiffusion
from app.main import create_app
from app.training.lora import adapter_state, add_adapter, write_adapter
from tests.conftest import make_settings
from tests.servers import serving_in_thread
from tests.test_catalog import MODEL, write
from tests.test_local_backend import make_entry
from tests.tiny import make_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def adapters(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two adapters, `a` and `b`, that change the pictures of the checkpoint plainly."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("ab"):
        unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
        torch.manual_seed(seed)
        for parameter in add_adapter(unet, 4, "all", torch.float32):
            torch.nn.init.normal_(parameter, 0, 0.25)
        write_adapter(adapter_state(unet), folder / name, {"name": name})
    return folder


def flavour(checkpoint: Path, adapter: Path | str, name: str = "flavour") -> CatalogEntry:
    return dataclasses.replace(make_entry(name, checkpoint), adapter=str(adapter))


def load(entry: CatalogEntry) -> StableDiffusion:
    return load_family(entry, CPU, torch.float32)


def stock_picture(checkpoint: Path, adapter: Path | None, parameters: dict[str, Any]) -> np.ndarray:
    """By nothing but diffusers and PEFT, the adapter beside the weights as `load_lora_weights` leaves it."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        str(checkpoint), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipeline.load_lora_weights(str(adapter), weight_name=ADAPTER_FILE)
    picture = pipeline(
        parameters["prompt"], num_inference_steps=parameters["steps"], eta=parameters["eta"],
        guidance_scale=parameters["guidance_scale"], width=parameters["width"], height=parameters["height"],
        generator=torch.Generator("cpu").manual_seed(parameters["seed"]),
    ).images[0]  # fmt: skip
    return np.asarray(picture, np.int16)


# In the catalogue.


def test_an_adapter_is_a_folder_or_a_file_from_where_it_is_named(tmp_path: Path) -> None:
    for given, file in (
        ("./soft", tmp_path / "soft" / ADAPTER_FILE),
        ("./soft.safetensors", tmp_path / "soft.safetensors"),
        ("/somewhere/soft", Path("/somewhere/soft") / ADAPTER_FILE),
    ):
        text = MODEL.replace("licence =", f'adapter = "{given}"\nlicence =')
        entry = load_catalog([write(tmp_path, text)]).default
        assert entry.adapter_file == file
        assert entry.from_hub, "the source stays what it is"
    assert load_catalog([write(tmp_path, MODEL)]).default.adapter_file is None


@pytest.mark.parametrize("given", ["someone/soft", "./soft.pt", "./soft.bin"])
def test_what_is_no_adapter_is_refused_with_the_model_s_name(tmp_path: Path, given: str) -> None:
    """No hub id is guessed, and no pickle is read."""
    with pytest.raises(InvalidConfiguration, match="model small: adapter: "):
        load_catalog([write(tmp_path, MODEL.replace("licence =", f'adapter = "{given}"\nlicence ='))])


# Loaded.


def test_the_merged_model_is_that_of_stock_diffusers_and_peft(checkpoint: Path, adapters: Path) -> None:
    """One forward agrees with PEFT's own, and differs from the base: merging changed what it should."""
    merged, base = load(flavour(checkpoint, adapters / "a")), load(make_entry("base", checkpoint))
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        str(checkpoint), safety_checker=None, requires_safety_checker=False
    )
    pipeline.load_lora_weights(str(adapters / "a"), weight_name=ADAPTER_FILE)
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 500.0])
    embeds = base.encode_prompt("a red cat").embeds.expand(2, -1, -1)
    with torch.no_grad():
        expected = pipeline.unet(latents, timesteps, embeds).sample
        ours = merged.predict_noise(latents, timesteps, embeds)
        assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(ours, base.predict_noise(latents, timesteps, embeds), atol=1e-2)
    assert [name for name, _ in merged.named_weights()] == [name for name, _ in base.named_weights()]


def test_flavours_hold_all_but_the_changed_layers_once(checkpoint: Path, adapters: Path) -> None:
    """VAE, text encoder and every layer without an adapter are shared between base and flavours."""
    families: dict[str, StableDiffusion] = {}
    for entry in (
        make_entry("base", checkpoint),
        flavour(checkpoint, adapters / "a"),
        flavour(checkpoint, adapters / "b", "other"),
    ):
        family = load(entry)
        share_equal_tensors(family, list(families.values()))
        families[entry.id] = family
    use = memory_use(families)
    base, changed = (
        dict(families["test/base"].named_weights()),
        dict(families["test/flavour"].named_weights()),
    )
    own = sum(t.nbytes for name, t in changed.items() if t.data_ptr() != base[name].data_ptr())
    assert use["test/flavour"].alone == own
    assert all(
        name.startswith("unet.") for name in changed if changed[name].data_ptr() != base[name].data_ptr()
    )
    vae_and_text = sum(t.nbytes for name, t in base.items() if not name.startswith("unet."))
    assert use["test/flavour"].shared > vae_and_text


def test_the_revision_is_of_base_and_adapter(checkpoint: Path, adapters: Path, tmp_path: Path) -> None:
    """Any change of either gives another one, so that their pictures are never counted as one model's."""
    base = revision_of(make_entry("base", checkpoint))
    a, b = (revision_of(flavour(checkpoint, adapters / name)) for name in "ab")
    again = revision_of(flavour(checkpoint, adapters / "a" / ADAPTER_FILE))
    assert len({base, a, b}) == 3 and again == a and len(a) == 12
    stated = dataclasses.replace(flavour(checkpoint, adapters / "a"), revision="main")
    assert revision_of(stated) not in ("main", a)
    other = make_pipeline(tmp_path / "other", seed=1)
    assert revision_of(flavour(other, adapters / "a")) != a


def test_adapters_that_cannot_be_used_say_why(checkpoint: Path, adapters: Path, tmp_path: Path) -> None:
    """Missing, damaged, for another architecture, or no adapter at all: in words, without a path."""
    file = adapters / "a" / ADAPTER_FILE
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / ADAPTER_FILE).write_bytes(file.read_bytes()[:-100])
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", block_out_channels=(32, 64), low_cpu_mem_usage=False, ignore_mismatched_sizes=True)  # fmt: skip # noqa: E501
    add_adapter(unet, 4, "all", torch.float32)
    write_adapter(adapter_state(unet), tmp_path / "wider", {})
    for adapter, reason in (
        (tmp_path / "nowhere", "there is no such adapter"),
        (tmp_path / "cut", "the adapter's file is corrupt"),
        (tmp_path / "wider", "the adapter does not fit this model"),
        (checkpoint / "vae" / "diffusion_pytorch_model.safetensors", "the adapter does not fit this model"),
    ):
        with pytest.raises(ModelLoadError, match=reason) as caught:
            load(flavour(checkpoint, adapter))
        assert str(tmp_path) not in caught.value.message


def test_an_adapter_may_change_the_text_encoder_too(checkpoint: Path, tmp_path: Path) -> None:
    """As adapters from elsewhere do; both parts are merged."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = load_pipeline(make_entry("base", checkpoint), CPU, torch.float32)
    pipeline.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet, adapter_name="default"),
        text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder, adapter_name="default"),
    )
    merged, base = load(flavour(checkpoint, tmp_path)), load(make_entry("base", checkpoint))
    assert not torch.allclose(
        merged.encode_prompt("a red cat").embeds, base.encode_prompt("a red cat").embeds, atol=1e-3
    )


# Served.


@pytest.fixture(scope="module")
def server(checkpoint: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real application with a base and two flavours of it, in float32."""
    folder = tmp_path_factory.mktemp("served")
    tables = []
    for name, extra in (("base", ""), ("a", f'adapter = "{adapters}/a"'), ("b", f'adapter = "{adapters}/b"')):
        text = MODEL[MODEL.index("[models") :].replace("models.small", f"models.{name}")
        tables.append(text.replace('"someone/small"', f'"{checkpoint}"\n{extra}'))
    catalog = write(folder, 'default = "a"\n' + "".join(tables))
    settings = make_settings(folder / "data", dtype="float32", threads=1, port=0, catalog=(catalog,))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("app.engine.warm_up.MAX_ROWS", 4)
        with serving_in_thread(create_app(settings)) as address:
            for _ in range(600):
                health = httpx.get(f"{address}/health").json()
                if all(model["state"] == "ready" for model in health["models"].values()):
                    break
                time.sleep(0.1)
            yield address


def fetch(server: str, model: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    """A served picture and the parameters in its PNG."""
    query = {"prompt": "a red cat", "seed": 3, "steps": 4} | ({} if model is None else {"model": model})
    answer = httpx.get(f"{server}/generate", params=query, headers={"Accept": "image/png"}, timeout=60)
    assert answer.status_code == 200, answer.text
    image = Image.open(io.BytesIO(answer.content))
    return np.asarray(image, np.int16), json.loads(image.info["darkroom"])


def test_a_served_picture_is_made_again_by_stock_diffusers_and_peft(
    server: str, checkpoint: Path, adapters: Path
) -> None:
    """Within one grey level: nothing but the weights makes the difference between flavours."""
    pictures = {}
    for name, adapter in (("base", None), ("a", adapters / "a"), ("b", adapters / "b")):
        served, parameters = fetch(server, name)
        assert np.abs(served - stock_picture(checkpoint, adapter, parameters)).max() <= 1, name
        pictures[name] = served
    assert all(np.abs(pictures["base"] - pictures[name]).max() > 5 for name in "ab")


def test_bare_and_full_names_mean_the_same_model(server: str, checkpoint: Path, adapters: Path) -> None:
    """On /generate, /models and /health; the PNG names the full id and the revision of base and adapter."""
    pictures = {}
    for name in ("a", "mine/a", None):
        pictures[name], parameters = fetch(server, name)
        assert parameters["model"] == "mine/a"
        assert parameters["revision"] == revision_of(flavour(checkpoint, adapters / "a"))
    assert np.array_equal(pictures["a"], pictures["mine/a"]) and np.array_equal(pictures["a"], pictures[None])
    models = httpx.get(f"{server}/models").json()
    assert models["default"] == "a"
    assert [(model["name"], model["id"]) for model in models["models"]] == [
        ("base", "mine/base"), ("a", "mine/a"), ("b", "mine/b"),
    ]  # fmt: skip
    health = httpx.get(f"{server}/health").json()
    assert health["status"] == "healthy" and sorted(health["models_loaded"]) == ["a", "b", "base"]
    assert all(model["shared_bytes"] > 0 for model in health["models"].values()), health["models"]
    # What a step costs is measured for the first of them alone: starting must not take three times as long.
    assert len({model["step_seconds"] for model in health["models"].values()}) == 1
