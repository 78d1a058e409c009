"""From the hub to a folder: only what is used, each file once, resumed, checked; errors in people's words.

A stand-in for the hub answers on this machine; the client is the hub's own library and ours, for real.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import struct
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download

from app.catalog.entry import CatalogEntry
from app.catalog.loader import load_catalog
from app.engine import hub as hub_module
from app.engine.hub import HubAccess, discard_corrupt, fetch, hub_access, plan, progress_words
from app.engine.loading import load_family, revision_of
from app.errors import ModelLoadError
from tests.hub_standin import DDPO, TOKEN, Hub, digest, hub_standin, make_pickled, offer_catalogues
from tests.tiny import make_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
CATALOG = load_catalog(["ddpo", "turbo"])
AESTHETIC = CATALOG.resolve("aesthetic")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hub, Path]:
    """Repositories as a hub has them, made once; each test serves copies of the record, not of the files."""
    offered, folder = Hub(), tmp_path_factory.mktemp("hub")
    offer_catalogues(offered, folder)
    offered.add("someone/pickled", make_pickled(folder / "base", folder / "pickled"))
    return offered, folder


@pytest.fixture
def hub(checkpoints: tuple[Hub, Path]) -> Iterator[Hub]:
    with hub_standin() as serving:
        serving.repositories = {k: dataclasses.replace(v) for k, v in checkpoints[0].repositories.items()}
        yield serving


@pytest.fixture
def access(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubAccess:
    for name in (
        "HF_TOKEN",
        "HUGGINGFACE_HUB_TOKEN",
        "HF_ENDPOINT",
        "HF_HUB_CACHE",
        "HF_HOME",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.utils._auth.get_token", lambda: None)  # the developer's own
    return HubAccess(tmp_path / "cache", endpoint=hub.address, timeout=5.0, retry_seconds=(0.0, 0.0, 0.0))


class Reports(list[tuple[float, str]]):
    def __call__(self, fraction: float, words: str) -> None:
        self.append((fraction, words))


def ignore(fraction: float, words: str) -> None:
    """Nobody is told."""


def entry_for(source: str, **changes: object) -> CatalogEntry:
    return dataclasses.replace(AESTHETIC, source=source, **changes)  # type: ignore[arg-type]


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refusal(entry: CatalogEntry, access: HubAccess) -> str:
    """What people are told, checked for what nobody may be told."""
    with pytest.raises(ModelLoadError) as caught:
        fetch(entry, ignore, access)
    message = caught.value.message
    assert message.startswith(f"{entry.id}: ")
    for secret in (TOKEN, str(access.cache), "http", "127.0.0.1", "models--", "Signature"):
        assert secret not in message
    assert "/" not in message.replace(entry.id, "").replace(entry.source, "")
    return message


# What is fetched.


def test_only_the_files_that_are_used_are_fetched(hub: Hub, access: HubAccess) -> None:
    """A failure means that people wait for a safety checker, or for weights twice."""
    folder = fetch(AESTHETIC, ignore, access)
    assert files_of(folder) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        UNET,
        "unet/config.json",
        VAE,
        "vae/config.json",
    }
    assert folder.name == hub.repositories[AESTHETIC.source].commit
    assert len(hub.downloads()) == 12


def test_what_is_fetched_can_be_loaded_and_is_found_by_the_hubs_own_library(
    hub: Hub, access: HubAccess
) -> None:
    family = load_family(AESTHETIC, torch.device("cpu"), torch.float32, access=access)
    assert family.dtype == torch.float32
    commit = hub.repositories[AESTHETIC.source].commit
    assert revision_of(AESTHETIC, access) == commit[:12]
    asked = len(hub.requests)
    found = snapshot_download(
        AESTHETIC.source, cache_dir=access.cache, local_files_only=True, endpoint=hub.address
    )
    assert Path(found) == fetch(AESTHETIC, ignore, access)
    assert len(hub.requests) == asked + 1  # which commit is the newest


def test_the_plan_tells_size_and_licence_before_anything_is_fetched(
    hub: Hub, access: HubAccess, caplog: pytest.LogCaptureFixture
) -> None:
    planned = plan(AESTHETIC, access)
    assert planned.licence == "creativeml-openrail-m"
    assert planned.total_bytes == sum(
        hub.repositories[AESTHETIC.source].files[file.name].stat().st_size for file in planned.files
    )
    assert not hub.downloads()
    with caplog.at_level(logging.INFO, "app"):
        fetch(AESTHETIC, ignore, access)
    first = next(record.message for record in caplog.records)
    assert "MB from kvablack/ddpo-aesthetic; licence: creativeml-openrail-m" in first


def test_the_variant_is_preferred_and_the_plain_file_taken_where_there_is_none(
    hub: Hub, access: HubAccess
) -> None:
    turbo = CATALOG.resolve("sd-turbo")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in files_of(fetch(turbo, ignore, access))
    assert not hub.downloads("diffusion_pytorch_model.safetensors$")
    family = load_family(turbo, torch.device("cpu"), torch.float32, access=access)
    assert family.dtype == torch.float32
    assert UNET in files_of(fetch(dataclasses.replace(AESTHETIC, variant="fp16"), ignore, access))


def test_equal_files_of_four_repositories_are_fetched_once(hub: Hub, access: HubAccess) -> None:
    """A failure means downloading the same VAE and text encoder four times: two gigabytes for nothing."""
    folders = [fetch(CATALOG.resolve(name), ignore, access) for name in DDPO]
    assert len(hub.downloads(r"/unet/.*safetensors")) == 4
    assert len(hub.downloads(r"/vae/.*safetensors")) == 1
    assert len(hub.downloads(r"/text_encoder/.*safetensors")) == 1
    assert len({(folder / VAE).stat().st_ino for folder in folders}) == 1
    assert len({(folder / UNET).stat().st_ino for folder in folders}) == 4


def test_an_equal_name_with_damaged_content_is_not_taken_over(hub: Hub, access: HubAccess) -> None:
    first = fetch(AESTHETIC, ignore, access)
    content = bytearray((first / VAE).read_bytes())
    content[-1] ^= 255
    (first / VAE).write_bytes(content)
    second = fetch(CATALOG.resolve("alignment"), ignore, access)
    assert digest(second / VAE, VAE) == (second / VAE).resolve().name


def test_progress_is_told_in_fractions_and_words(
    hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_REPORT_SECONDS", 0.0)
    reports = Reports()
    fetch(AESTHETIC, reports, access)
    fractions = [fraction for fraction, _ in reports]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < fractions[-1] == 1
    assert reports[-1][1].startswith("downloading ")
    assert progress_words(1_200_000_000, 3_400_000_000) == "downloading 1.2 of 3.4 GB"
    again = Reports()
    fetch(AESTHETIC, again, access)
    assert again == []


def test_a_pinned_commit_that_is_here_needs_no_network(hub: Hub, access: HubAccess) -> None:
    pinned = entry_for(AESTHETIC.source, revision=hub.repositories[AESTHETIC.source].commit)
    folder = fetch(pinned, ignore, access)
    asked = len(hub.requests)
    assert fetch(pinned, ignore, access) == folder
    assert len(hub.requests) == asked


# Broken connections.


def test_a_broken_connection_is_resumed_where_it_broke(hub: Hub, access: HubAccess) -> None:
    """A failure means that 3.4 GB begin anew at each hiccup."""
    size = hub.repositories[AESTHETIC.source].files[UNET].stat().st_size
    hub.faults.break_after[UNET] = [size // 3, size // 3, 0]
    folder = fetch(AESTHETIC, ignore, access)
    assert digest(folder / UNET, UNET) == digest(hub.repositories[AESTHETIC.source].files[UNET], UNET)
    assert hub.bytes_sent[UNET] == size
    ranges = [headers["range"] for _, path, headers in hub.requests if UNET in path and "range" in headers]
    assert f"bytes={size // 3}-" in ranges


def test_another_process_goes_on_where_the_first_one_ended(hub: Hub, access: HubAccess) -> None:
    """The hub's own library would begin anew: it deletes what has arrived when it gives up."""
    size = hub.repositories[AESTHETIC.source].files[UNET].stat().st_size
    hub.faults.break_after[UNET] = [size // 2]
    assert "cannot be reached" in refusal(AESTHETIC, dataclasses.replace(access, retry_seconds=()))
    folder = fetch(AESTHETIC, ignore, access)
    assert hub.bytes_sent[UNET] == size
    assert digest(folder / UNET, UNET) == (folder / UNET).resolve().name


def test_whoever_is_told_can_end_a_download_and_what_has_arrived_stays(
    hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_REPORT_SECONDS", 0.0)

    def stop_at_half(fraction: float, words: str) -> None:
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(AESTHETIC, stop_at_half, access)
    sent = sum(hub.bytes_sent.values())
    fetch(AESTHETIC, ignore, access)
    total = plan(AESTHETIC, access).total_bytes
    assert sum(hub.bytes_sent.values()) < total + sent / 2


def test_a_server_without_ranges_sends_the_whole_file_again(hub: Hub, access: HubAccess) -> None:
    hub.faults.break_after[UNET] = [1000]
    hub.faults.ignore_ranges = True
    folder = fetch(AESTHETIC, ignore, access)
    assert digest(folder / UNET, UNET) == (folder / UNET).resolve().name


def test_a_hub_that_is_overloaded_for_a_moment_is_asked_again(hub: Hub, access: HubAccess) -> None:
    hub.faults.statuses = [503, 429]
    assert fetch(AESTHETIC, ignore, access).is_dir()


def test_two_at_once_fetch_each_file_once(hub: Hub, access: HubAccess) -> None:
    """Several processes start together; a failure means twice the download, or a file from two halves."""
    hub.faults.chunk_seconds = 0.001
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: fetch(AESTHETIC, ignore, access), range(2))
    assert first == second
    assert len(hub.downloads(UNET)) == 1
    assert digest(first / UNET, UNET) == (first / UNET).resolve().name


def test_a_slow_link_is_waited_for(hub: Hub, access: HubAccess) -> None:
    hub.faults.chunk_seconds = 0.002
    assert fetch(AESTHETIC, ignore, dataclasses.replace(access, timeout=0.5)).is_dir()


# Without a network.


def test_offline_the_cache_serves_and_nothing_is_asked(hub: Hub, access: HubAccess) -> None:
    offline = dataclasses.replace(access, offline=True)
    assert "HF_HUB_OFFLINE" in refusal(AESTHETIC, offline)
    folder = fetch(AESTHETIC, ignore, access)
    asked = len(hub.requests)
    assert fetch(AESTHETIC, ignore, offline) == folder
    assert len(hub.requests) == asked


def test_a_hub_that_is_down_is_no_harm_where_all_files_are_here(hub: Hub, access: HubAccess) -> None:
    folder = fetch(AESTHETIC, ignore, access)
    down = dataclasses.replace(access, endpoint="http://127.0.0.1:9")
    assert fetch(AESTHETIC, ignore, down) == folder
    hub.repositories.clear()
    assert fetch(AESTHETIC, ignore, access) == folder
    (folder / UNET).resolve().unlink()
    assert "cannot be reached" in refusal(AESTHETIC, down)


# What goes wrong, in people's words.


def test_a_repository_that_is_missing_or_private_is_told_alike(hub: Hub, access: HubAccess) -> None:
    hub.repositories["someone/private"] = dataclasses.replace(
        hub.repositories[AESTHETIC.source], private=True, grants=frozenset({TOKEN})
    )
    for name in ("someone/none", "someone/private"):
        message = refusal(entry_for(name), access)
        assert f"the hub knows no repository {name}, or you have no access to it. If it is private" in message
    with_token = dataclasses.replace(access, token=TOKEN)
    assert "or you have no access to it." in refusal(entry_for("someone/none"), with_token)
    assert fetch(entry_for("someone/private"), ignore, with_token).is_dir()


def test_a_gated_repository_says_where_to_ask(hub: Hub, access: HubAccess) -> None:
    hub.repositories["someone/gated"] = gated = dataclasses.replace(
        hub.repositories[AESTHETIC.source], gated=True
    )
    entry, with_token = entry_for("someone/gated"), dataclasses.replace(access, token=TOKEN)
    message = refusal(entry, access)
    assert "someone/gated is gated: accept its conditions" in message
    assert "set HF_TOKEN" in message
    assert "the token's owner has no access" in refusal(entry, with_token)
    gated.grants = frozenset({TOKEN})
    assert fetch(entry, ignore, with_token).is_dir()


def test_a_wrong_token_is_told(hub: Hub, access: HubAccess) -> None:
    wrong = dataclasses.replace(access, token="hf_wrong")
    assert "does not accept the token; check HF_TOKEN" in refusal(AESTHETIC, wrong)
    for impossible in ("hf_line\nbreak", "hf_ü", "hf_ space"):
        message = refusal(AESTHETIC, dataclasses.replace(access, token=impossible))
        assert "HF_TOKEN holds characters that no token has" in message


def test_a_hub_that_cannot_be_reached_is_told(hub: Hub, access: HubAccess) -> None:
    down = dataclasses.replace(access, endpoint="http://127.0.0.1:9")
    assert "the hub cannot be reached" in refusal(AESTHETIC, down)
    assert "the hub cannot be reached" in refusal(AESTHETIC, dataclasses.replace(access, endpoint="nonsense"))
    hub.faults.statuses = [500] * 4
    assert "answers with an error (500)" in refusal(AESTHETIC, access)
    hub.faults.garbage = True
    assert "is not the hub" in refusal(AESTHETIC, access)


def test_too_little_disk_space_is_told_before_the_download(
    hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(access.cache.parent)
    monkeypatch.setattr("app.engine.hub.shutil.disk_usage", lambda path: usage._replace(free=50_000_000))
    message = refusal(AESTHETIC, access)
    assert "too little space" in message
    assert "50.0 MB are free" in message
    assert not hub.downloads()


def test_a_disk_that_fills_up_is_told_and_what_has_arrived_is_kept(
    hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/secret/place")

    monkeypatch.setattr(hub_module._Download, "_write", full)
    message = refusal(AESTHETIC, access)
    assert "the disk of the hub's cache is full" in message
    assert "secret" not in message


def test_a_file_that_is_missing_is_named(hub: Hub, access: HubAccess) -> None:
    files = hub.repositories[AESTHETIC.source].files
    hub.repositories["someone/half"] = half = dataclasses.replace(hub.repositories[AESTHETIC.source])
    half.files = {name: path for name, path in files.items() if name != "vae/config.json"}
    assert "lacks a file that is needed: config.json of the vae" in refusal(entry_for("someone/half"), access)
    half.files = {name: path for name, path in files.items() if name != UNET}
    assert "lacks a file that is needed: diffusion_pytorch_model.safetensors of the unet" in refusal(
        entry_for("someone/half"), access
    )
    hub.faults.missing = {UNET}
    assert "lacks a file that is needed" in refusal(AESTHETIC, access)
    assert "no revision 'gone'" in refusal(entry_for(AESTHETIC.source, revision="gone"), access)


def test_a_file_that_arrives_corrupt_is_deleted_and_fetched_by_the_next_try(
    hub: Hub, access: HubAccess
) -> None:
    hub.faults.corrupt = {VAE}
    assert "safetensors of the vae arrived corrupt and was deleted" in refusal(AESTHETIC, access)
    assert not list(access.cache.rglob("*.incomplete"))
    hub.faults.corrupt = set()
    folder = fetch(AESTHETIC, ignore, access)
    assert digest(folder / VAE, VAE) == (folder / VAE).resolve().name


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(hub: Hub, access: HubAccess) -> None:
    folder = fetch(AESTHETIC, ignore, access)
    (folder / UNET).resolve().write_bytes(b"\0" * 100)
    fetch(AESTHETIC, ignore, access)
    assert len(hub.downloads(UNET)) == 2
    (folder / "model_index.json").resolve().write_bytes(b"{")
    fetch(AESTHETIC, ignore, access)
    assert len(hub.downloads("model_index.json")) == 2
    (folder / UNET).resolve().write_bytes(b"\0" * 100)
    assert "not completely in the cache" in refusal(AESTHETIC, dataclasses.replace(access, offline=True))
    assert not (folder / UNET).exists()


def test_damage_that_only_a_digest_shows_is_found_when_asked_for(hub: Hub, access: HubAccess) -> None:
    folder = fetch(AESTHETIC, ignore, access)
    assert discard_corrupt(AESTHETIC, access) == 0
    content = bytearray((folder / UNET).read_bytes())
    content[-1] ^= 255
    (folder / UNET).resolve().write_bytes(content)
    assert discard_corrupt(AESTHETIC, access) == 1
    assert fetch(AESTHETIC, ignore, access) == folder
    assert digest(folder / UNET, UNET) == (folder / UNET).resolve().name


def test_another_architecture_is_refused_before_its_weights_are_fetched(
    hub: Hub, access: HubAccess, tmp_path: Path
) -> None:
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    hub.repositories["someone/xl"] = other = dataclasses.replace(hub.repositories[AESTHETIC.source])
    other.files = {**other.files, "model_index.json": index}
    assert "it is a StableDiffusionXLPipeline" in refusal(entry_for("someone/xl"), access)
    assert not hub.downloads(r"safetensors$")


# Pickle.


def test_bin_files_are_refused_with_the_line_that_allows_them(hub: Hub, access: HubAccess) -> None:
    message = refusal(entry_for("someone/pickled", allow_pickle=False), access)
    assert "add the line allow_pickle = true under [models.aesthetic] in ddpo.toml" in message
    assert not hub.downloads()


def test_bin_files_that_are_allowed_give_the_same_model(
    hub: Hub, access: HubAccess, checkpoints: tuple[Hub, Path]
) -> None:
    pickled = load_family(entry_for("someone/pickled"), torch.device("cpu"), torch.float32, access=access)
    plain = entry_for(str(checkpoints[1] / "base"), allow_pickle=False)
    wanted = load_family(plain, torch.device("cpu"), torch.float32, access=access)
    embeds = [family.encode_prompt("a red cat").embeds for family in (pickled, wanted)]
    assert torch.equal(*embeds)
    latents, timesteps = torch.ones(1, 4, 8, 8), torch.tensor([500.0])
    predicted = [family.predict_noise(latents, timesteps, embeds[0]) for family in (pickled, wanted)]
    assert torch.equal(*predicted)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"])
def test_code_in_a_bin_file_is_never_run(
    hub: Hub, access: HubAccess, checkpoints: tuple[Hub, Path], tmp_path: Path, part: str
) -> None:
    """A failure means that whoever uploads a model runs programs on this machine."""
    folder = make_pickled(checkpoints[1] / "base", tmp_path / "evil")
    torch.save({"weight": _Trap(tmp_path / "trapped")}, folder / part)
    hub.add("someone/evil", folder)
    with pytest.raises(ModelLoadError, match=r"holds more than weights|could not be loaded"):
        load_family(entry_for("someone/evil"), torch.device("cpu"), torch.float32, access=access)
    assert not (tmp_path / "trapped").exists()


def test_options_that_save_memory_change_no_picture(access: HubAccess, tmp_path: Path) -> None:
    plain = entry_for(str(make_pipeline(tmp_path / "plain")))
    options = {"attention_slicing": True, "vae_slicing": True, "vae_tiling": True}
    sparing = dataclasses.replace(plain, **options)  # type: ignore[arg-type]
    families = [
        load_family(entry, torch.device("cpu"), torch.float32, access=access) for entry in (plain, sparing)
    ]
    assert families[1]._vae.use_slicing
    assert families[1]._vae.use_tiling
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    embeds = families[0].encode_prompt("a red cat").embeds.expand(2, -1, -1)
    predicted = [family.predict_noise(latents, torch.tensor([9.0, 500.0]), embeds) for family in families]
    assert torch.allclose(*predicted, atol=1e-5)
    assert torch.allclose(*(family.decode(latents) for family in families), atol=1e-5)


# The token.


def test_the_token_is_told_to_the_hub_and_to_nobody_else(
    hub: Hub, access: HubAccess, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every way to fail, at DEBUG level: logs, output, messages, tracebacks and the CDN know no token."""
    hub.repositories["someone/gated"] = dataclasses.replace(hub.repositories[AESTHETIC.source], gated=True)
    secret = dataclasses.replace(access, token=TOKEN)
    size = hub.repositories[AESTHETIC.source].files[UNET].stat().st_size
    hub.faults.break_after[UNET] = [size // 2]
    hub.faults.corrupt = {VAE}
    told = [repr(secret)]
    with caplog.at_level(logging.DEBUG):
        for tried, changes in (
            (AESTHETIC, {}),
            (entry_for("someone/gated"), {}),
            (entry_for("someone/none"), {}),
            (AESTHETIC, {"endpoint": "http://127.0.0.1:9"}),
            (AESTHETIC, {"endpoint": "nonsense"}),
            (AESTHETIC, {"token": TOKEN + "wrong"}),
            (AESTHETIC, {"token": TOKEN + "\n"}),
            (AESTHETIC, {"token": TOKEN + "ü"}),
        ):
            with pytest.raises(ModelLoadError) as caught:
                fetch(tried, ignore, dataclasses.replace(secret, **changes))  # type: ignore[arg-type]
            told += traceback.format_exception(caught.value)
            logging.getLogger("app").error("failed", exc_info=caught.value)
        hub.faults.corrupt = set()
        fetch(AESTHETIC, ignore, secret)
    told += [caplog.text, *capfd.readouterr()]
    assert "Request" in caplog.text  # DEBUG is really on
    assert TOKEN not in "\n".join(told)
    to_hub = [headers for _, path, headers in hub.requests if not path.startswith("/cdn/")]
    assert all("authorization" in headers for headers in to_hub)
    to_cdn = [headers for _, path, headers in hub.requests if path.startswith("/cdn/")]
    assert to_cdn
    assert not [headers for headers in to_cdn if "authorization" in headers]


def test_access_is_read_from_the_environment_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, access: HubAccess
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.setenv("HUGGINGFACE_HUB_TOKEN", "hf_old\n")
    read = hub_access()
    assert (read.endpoint, read.offline, read.token) == ("http://mirror.example", True, "hf_old")
    assert read.cache == Path("/somewhere/hub")
    monkeypatch.setenv("HF_TOKEN", "hf_new")
    assert hub_access().token == "hf_new"
    assert hub_access("hf_given").token == "hf_given"


# Folders and files on this disk.


def test_folders_that_lack_something_are_told_so(
    access: HubAccess, checkpoints: tuple[Hub, Path], tmp_path: Path
) -> None:
    assert "no such folder" in refusal(entry_for(str(tmp_path / "gone")), access)
    assert "no such folder" in refusal(entry_for("builtin/gone"), access)
    assert "holds no model" in refusal(entry_for(str(tmp_path)), access)
    copy = shutil.copytree(checkpoints[1] / "base", tmp_path / "copy")
    (copy / VAE).write_bytes(struct.pack("<Q", 10**9) + b"{}")
    assert "safetensors of the vae is corrupt" in refusal(entry_for(str(copy)), access)
    (copy / VAE).unlink()
    assert "a file is missing: diffusion_pytorch_model.safetensors of the vae" in refusal(
        entry_for(str(copy)), access
    )


def test_a_single_file_that_is_none_is_told_so(access: HubAccess, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    entry = entry_for(str(file), config="sd1")
    assert "no such file" in refusal(entry, access)
    torch.save({"weight": torch.zeros(3)}, file)
    assert "corrupt, or no safetensors file" in refusal(entry, access)
