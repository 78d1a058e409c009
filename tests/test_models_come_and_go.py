"""Loading, unloading and reloading at run time, and what equal models hold together."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from app.backends.local import LocalBackend
from app.catalog.entry import Catalog, CatalogEntry
from app.engine.faults import release_cached_memory
from app.engine.loading import load_family
from app.engine.placement import place
from app.engine.request import Failed, Finished, Progress
from app.engine.room import check_room, needed_bytes
from app.engine.sharing import memory_use, share_equal_tensors
from app.engine.warm_up import warm_up_picture
from app.errors import ModelLoadError, ModelNotReady
from app.families.stable_diffusion import StableDiffusion
from tests.hub_standin import Hub, hub_standin
from tests.test_local_backend import Heard, make_entry, make_request, until
from tests.tiny import make_pipeline

pytestmark = pytest.mark.usefixtures("short_warm_up")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three checkpoints that share text encoder and VAE and differ in their UNet."""
    made = {}
    for i, name in enumerate(["a", "b", "c"]):
        folder = make_pipeline(tmp_path_factory.mktemp(name))
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({key: value + i / 100 for key, value in load_file(file).items()}, file)
        made[name] = folder
    return made


@pytest.fixture(scope="module")
def catalog(folders: dict[str, Path]) -> Catalog:
    """Their catalogue."""
    entries = tuple(make_entry(name, folder) for name, folder in folders.items())
    return Catalog(entries, entries[0])


def load(folder: Path) -> StableDiffusion:
    """One of them, by itself."""
    return load_family(make_entry("x", folder), torch.device("cpu"), torch.float32)


def part_bytes(family: StableDiffusion, part: str) -> int:
    """Bytes of the weights of a part."""
    return sum(tensor.nbytes for name, tensor in family.named_weights() if name.startswith(f"{part}."))


def test_equal_tensors_are_held_once(folders: dict[str, Path]) -> None:
    """Three models cost three UNets, one VAE and one text encoder, and still give their own pictures."""
    alone = {name: load(folder) for name, folder in folders.items()}
    shared: dict[str, StableDiffusion] = {}
    for name, folder in folders.items():
        family = load(folder)
        share_equal_tensors(family, list(shared.values()))
        shared[name] = family
    use = memory_use(shared)
    unet = part_bytes(alone["a"], "unet")
    common = part_bytes(alone["a"], "vae") + part_bytes(alone["a"], "text_encoder")
    held = sum(one.alone for one in use.values()) + use["a"].shared
    assert held <= 1.05 * (3 * unet + common)
    assert all(abs(one.alone - unet) <= 0.05 * unet for one in use.values())
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 500.0])
    for name, family in shared.items():
        embeds = family.encode_prompt("a red cat").embeds.expand(2, -1, -1)
        assert torch.equal(embeds, alone[name].encode_prompt("a red cat").embeds.expand(2, -1, -1))
        ours = family.predict_noise(latents, timesteps, embeds)
        assert torch.equal(ours, alone[name].predict_noise(latents, timesteps, embeds))


async def test_unloading_lets_its_pictures_finish_and_gives_memory_back(catalog: Catalog) -> None:
    """What runs on it finishes, new requests are refused, the weights are gone, and it can come back."""
    backend = LocalBackend(catalog, device="cpu", threads=1)
    await backend.start()
    try:
        await until(lambda: backend.status().loading_ended)
        weights = weakref.ref(backend._worker_of["test/b"]._families["test/b"])
        running = Heard()
        backend.add_request(make_request("running", "test/b", steps=40), running)
        await until(lambda: any(isinstance(event, Progress) for event in running.events))
        backend.unload_model("test/b")
        await until(lambda: backend.status().models[1].state in ("unloading", "unloaded"))
        with pytest.raises(ModelNotReady):
            backend.add_request(make_request("late", "test/b"), Heard())
        assert isinstance(await running.final(), Finished)
        await until(lambda: backend.status().models[1].state == "unloaded")
        gc.collect()
        assert weights() is None, "something still holds the weights"
        assert backend.status().models[1].memory_bytes == 0
        other = Heard()
        backend.add_request(make_request("other", "test/a"), other)
        assert isinstance(await other.final(), Finished)
        backend.load_model("test/b")
        await until(lambda: backend.status().models[1].state == "ready")
        again = Heard()
        backend.add_request(make_request("again", "test/b"), again)
        assert isinstance(await again.final(), Finished)
    finally:
        await backend.stop()


async def test_on_demand_the_least_recently_used_makes_room(catalog: Catalog) -> None:
    """With room for two a request loads its model, the one used longest ago leaves; nobody is refused."""
    backend = LocalBackend(catalog, device="cpu", threads=1, max_loaded=2)
    await backend.start()
    try:
        await until(lambda: backend.status().loading_ended)
        assert [model.state for model in backend.status().models] == ["ready", "ready", "unloaded"]
        used = Heard()
        backend.add_request(make_request("used", "test/a"), used)
        assert isinstance(await used.final(), Finished)
        demanded = Heard()
        backend.add_request(make_request("demanded", "test/c"), demanded)
        assert isinstance(await demanded.final(), Finished)
        assert [model.state for model in backend.status().models] == ["ready", "unloaded", "ready"]
        back = Heard()
        backend.add_request(make_request("back", "test/b"), back)
        assert isinstance(await back.final(), Finished)
        assert sum(model.state == "ready" for model in backend.status().models) == 2
    finally:
        await backend.stop()


async def test_reloading_keeps_those_who_come_meanwhile(catalog: Catalog) -> None:
    """A reload drops the weights and reads them anew; a request made meanwhile waits and is served."""
    backend = LocalBackend(catalog, device="cpu", threads=1)
    await backend.start()
    try:
        await until(lambda: backend.status().loading_ended)
        backend.load_model("test/a")
        heard = Heard()
        backend.add_request(make_request("meanwhile", "test/a"), heard)
        final = await heard.final()
        assert isinstance(final, Finished), final if isinstance(final, Failed) else None
    finally:
        await backend.stop()


async def test_two_devices_have_a_thread_each(catalog: Catalog) -> None:
    """Models are spread over the devices that are listed, and serve side by side."""
    backend = LocalBackend(catalog, device="cpu, cpu", threads=1)
    await backend.start()
    try:
        await until(lambda: backend.status().loading_ended)
        assert backend.status().device == "cpu,cpu"
        assert sorted(len(worker.models) for worker in backend._workers) == [1, 2]
        listeners = {name: Heard() for name in ("a", "b", "c")}
        for name, heard in listeners.items():
            backend.add_request(make_request(name, f"test/{name}"), heard)
        for heard in listeners.values():
            assert isinstance(await heard.final(), Finished)
    finally:
        await backend.stop()


def test_the_largest_model_gets_the_most_room() -> None:
    """Placement by size: large ones first, each where most room is left."""
    assert place({"s": 1, "xl": 9, "m": 4}, [10, 10]) == {"xl": 0, "m": 1, "s": 1}
    assert place({"a": 0, "b": 0}, [5, 5]) == {"a": 0, "b": 1}


async def test_what_does_not_fit_says_what_it_needs(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A catalogue that does not fit loads what does; the rest states what was needed and what was free."""
    room = iter([10**12, 10**12, 1000, 1000])
    monkeypatch.setattr("app.engine.room.free_bytes", lambda device: next(room))
    backend = LocalBackend(catalog, device="cpu", threads=1)
    await backend.start()
    try:
        await until(lambda: backend.status().loading_ended)
        states = [model.state for model in backend.status().models]
        assert states == ["ready", "failed", "failed"]
        error = backend.status().models[1].error or ""
        assert "not enough memory" in error and "it needs" in error and "are free" in error
    finally:
        await backend.stop()


def test_needed_bytes_are_those_that_loading_takes(folders: dict[str, Path]) -> None:
    """Known before loading, in the precision that will be used; buffers count little."""
    needed = needed_bytes(folders["a"], torch.float32)
    held = sum(tensor.nbytes for _, tensor in load(folders["a"]).named_weights())
    assert 0.9 * held <= needed <= 1.1 * held
    assert needed_bytes(folders["a"], torch.float16) < 0.6 * needed


@pytest.fixture
def slow_hub(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Hub, Catalog]]:
    """A model whose weights take half a minute to arrive."""
    with hub_standin() as hub:
        hub.add("someone/slow", folders["a"])
        hub.faults.chunk_seconds = 0.3
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        entry = dataclasses.replace(make_entry("slow", folders["a"]), source="someone/slow")
        yield hub, Catalog((entry,), entry)


async def test_unloading_stops_a_download_and_loading_again_goes_on_with_it(
    slow_hub: tuple[Hub, Catalog],
) -> None:
    """A failure means that gigabytes come in which nobody wants any more, or come twice."""
    hub, catalog = slow_hub
    backend = LocalBackend(catalog, device="cpu", threads=1)
    await backend.start()
    try:
        unet = "unet/diffusion_pytorch_model.safetensors"
        await until(lambda: hub.bytes_sent[unet] > 10_000)
        waiting = Heard()
        backend.add_request(make_request("waiting", "test/slow"), waiting)
        backend.unload_model("test/slow")
        await until(lambda: backend.status().models[0].state == "unloaded")
        files = hub.repositories["someone/slow"].files
        assert hub.bytes_sent[unet] < files[unet].stat().st_size, "it was fetched to its end"
        final = await waiting.final()
        assert isinstance(final, Failed) and isinstance(final.error, ModelNotReady)
        hub.faults.chunk_seconds = 0.0
        backend.load_model("test/slow")
        await until(lambda: backend.status().models[0].state == "ready")
        assert any("range" in headers for _, _, headers in hub.requests), "it began anew"
    finally:
        await backend.stop()


async def test_loading_goes_on_if_it_is_wanted_again_at_once(slow_hub: tuple[Hub, Catalog]) -> None:
    hub, catalog = slow_hub
    backend = LocalBackend(catalog, device="cpu", threads=1)
    await backend.start()
    try:
        await until(lambda: "downloading" in backend.status().models[0].stage)
        backend.unload_model("test/slow")
        backend.load_model("test/slow")
        hub.faults.chunk_seconds = 0.0
        heard = Heard()
        await until(lambda: backend.status().models[0].state in ("waiting", "loading", "ready"))
        backend.add_request(make_request("asked", "test/slow"), heard)
        assert isinstance(await heard.final(), Finished)
    finally:
        await backend.stop()


async def test_on_demand_those_who_wait_are_served_before_it_leaves(slow_hub: tuple[Hub, Catalog]) -> None:
    hub, catalog = slow_hub
    backend = LocalBackend(catalog, device="cpu", threads=1, max_loaded=1)
    await backend.start()
    try:
        await until(lambda: "downloading" in backend.status().models[0].stage)
        heard = Heard()
        backend.add_request(make_request("asked", "test/slow"), heard)
        backend.unload_model("test/slow")
        hub.faults.chunk_seconds = 0.0
        assert isinstance(await heard.final(), Finished)
        await until(lambda: backend.status().models[0].state == "unloaded")
    finally:
        await backend.stop()


def offloaded(folder: Path) -> CatalogEntry:
    """An entry whose parts wait in main memory."""
    return dataclasses.replace(make_entry("x", folder), cpu_offload=True)


def test_parts_that_are_offloaded_visit_the_device_when_their_turn_comes(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hooks must see our calls, which go past the pipeline's own; a failure means weights left behind.

    The device is this CPU: what is shown is the order of visits, and that the picture stays the same.
    """
    entry, cpu = offloaded(folders["a"]), torch.device("cpu")
    visits: list[str] = []
    original = CpuOffload.pre_forward

    def visited(hook: CpuOffload, module: torch.nn.Module, *args: object, **kwargs: object) -> object:
        if visits[-1:] != [type(module).__name__]:
            visits.append(type(module).__name__)
        return original(hook, module, *args, **kwargs)

    pipeline = StableDiffusionPipeline.from_pretrained(entry.source, dtype=torch.float32)
    monkeypatch.setattr(CpuOffload, "pre_forward", visited)
    pipeline.enable_model_cpu_offload(device=cpu)
    picture = warm_up_picture(StableDiffusion(pipeline, cpu), entry)
    assert visits == ["CLIPTextModel", "UNet2DConditionModel", "AutoencoderKL"]
    assert torch.equal(picture, warm_up_picture(load(folders["a"]), entry))


def test_what_is_offloaded_needs_room_for_two_parts_on_the_device(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that a card too small for the whole model refuses what offloading is for."""
    entry, folder, gpu = offloaded(folders["a"]), folders["a"], torch.device("cuda", 0)
    family = load(folder)
    smallest = min(part_bytes(family, "vae"), part_bytes(family, "text_encoder"))
    two = needed_bytes(folder, torch.float32) - smallest
    room = {"cuda": two + smallest // 2, "cpu": 10**9}
    monkeypatch.setattr("app.engine.room.free_bytes", lambda device: room[device.type])
    check_room(entry, folder, gpu, torch.float32)
    with pytest.raises(ModelLoadError, match="are free"):
        check_room(make_entry("x", folder), folder, gpu, torch.float32)
    room["cuda"] = two - smallest // 2
    with pytest.raises(ModelLoadError, match="are free"):
        check_room(entry, folder, gpu, torch.float32)
    room.update(cuda=10**9, cpu=two + smallest // 2)
    with pytest.raises(ModelLoadError, match="are free"):
        check_room(entry, folder, gpu, torch.float32)


def test_on_the_cpu_offloading_changes_nothing_and_says_so(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "app"):
        family = load_family(offloaded(folders["a"]), torch.device("cpu"), torch.float32)
    assert "cpu_offload changes nothing" in caplog.text
    assert all(tensor.device.type == "cpu" for _, tensor in family.named_weights())


def test_a_hundred_loads_leak_nothing(folders: dict[str, Path]) -> None:
    """Loading, sharing and dropping a model again and again leaves no weights and no memory behind."""
    kept = load(folders["a"])
    gone: list[weakref.ref[StableDiffusion]] = []
    process = psutil.Process()
    grown = 0
    for cycle in range(100):
        family = load(folders["b"])
        share_equal_tensors(family, [kept])
        family.encode_prompt("a red cat")
        gone.append(weakref.ref(family))
        del family
        release_cached_memory()
        if cycle == 20:
            grown = -process.memory_info().rss
    grown += process.memory_info().rss
    assert all(one() is None for one in gone)
    assert grown < 20_000_000, f"{grown / 1e6:.0f} MB more after eighty loads"
