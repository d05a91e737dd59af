"""Devices of processes: each has a GPU to itself, or is told so at the start."""

import os
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mgd_ssl.command_line import parse
from mgd_ssl.config import DataConfig, PretrainConfig, RuntimeConfig
from mgd_ssl.errors import UserError
from mgd_ssl.run import runtime
from mgd_ssl.run.folder import as_begun
from mgd_ssl.run.runtime import Runtime, check_one_each, precision_of, settled, shared


def test_processes_with_a_gpu_each_may_start() -> None:
    check_one_each([])
    check_one_each(["host a", "host b", "other a", "other b"])


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        (["h a", "h a"], r"^processes 0 and 1 share one GPU of h: .* than it has GPUs \(1 there\), or pass --runtime"),
        (["h a", "h b", "i a", "h b"], r"^processes 1 and 3 share one GPU of h: .*\(2 there\)"),
    ],
)
def test_processes_that_share_a_gpu_are_refused(devices: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_one_each(devices)


def test_the_check_is_made_when_a_process_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"of {device}"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(runtime, "world_size", lambda: 2)
    monkeypatch.setattr(runtime, "shared", lambda mine: [mine, mine])
    threads = torch.get_num_threads()
    with pytest.raises(UserError, match="share one GPU"), runtime.process(RuntimeConfig()):
        pytest.fail("it was set up")
    assert torch.get_num_threads() == threads


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU, as far as setting up asks."""
    for name, answer in (
        ("is_available", True), ("device_count", 1), ("set_device", None), ("is_bf16_supported", True)
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cudnn.benchmark = before[0]
    torch.use_deterministic_algorithms(before[1])


@pytest.mark.parametrize("wanted", [False, True])
def test_kernels_on_a_gpu_are_the_fastest_or_the_ones_that_repeat(
    gpu: None, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    with runtime.process(RuntimeConfig(deterministic=wanted)) as found:
        assert found.device.type == "cuda"
        assert torch.backends.cudnn.benchmark == (not wanted)
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if wanted else None)


@pytest.mark.parametrize(
    ("device", "native", "wanted", "dtype"),
    [
        ("cuda", True, "auto", torch.bfloat16), ("cuda", False, "auto", None), ("cpu", True, "auto", None),
        ("cuda", True, "float32", None), ("cpu", False, "float16", torch.float16),
    ],
)  # fmt: skip
def test_precision_is_what_the_device_has_natively_or_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, device: str, native: bool, wanted: Any, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert precision_of(RuntimeConfig(precision=wanted), torch.device(device)) == dtype


@pytest.mark.parametrize(
    ("device", "steps", "tools", "wanted", "compiling"),
    [
        ("cuda", 5000, True, None, True), ("cuda", 999, True, None, False), ("cuda", 5000, False, None, False),
        ("cpu", 5000, True, None, False), ("cpu", 1, False, True, True), ("cuda", 5000, True, False, False),
    ],
)  # fmt: skip
def test_compiling_is_decided_by_device_length_and_tools(
    monkeypatch: pytest.MonkeyPatch, device: str, steps: int, tools: bool, wanted: bool | None, compiling: bool
) -> None:
    monkeypatch.setattr(runtime, "can_compile", lambda: tools)
    there = Runtime(torch.device(device), torch.bfloat16, torch.channels_last, 1)
    found = settled(RuntimeConfig(compile=wanted), there, steps)
    assert (found.compile, found.precision) == (compiling, "bfloat16")


def test_a_run_goes_on_in_the_precision_it_began_with(tmp_path: Path) -> None:
    config = PretrainConfig(out=tmp_path, data=DataConfig(train=tmp_path))
    assert as_begun(config, tmp_path) is config
    (tmp_path / "config.json").write_text('{"config": {"runtime": {"precision": "float16"}}}')
    assert as_begun(config, tmp_path).runtime == RuntimeConfig(precision="float16")
    (tmp_path / "config.json").write_text(
        '{"config": {"runtime": {"precision": "float32"}, "teacher_precision": "bfloat16"}}'
    )
    left_open = config.model_copy(update={"teacher_precision": "auto"})
    assert as_begun(left_open, tmp_path).teacher_precision == "bfloat16"
    assert as_begun(config, tmp_path).teacher_precision == "float32"
    told = left_open.model_copy(update={"runtime": RuntimeConfig(precision="bfloat16"), "teacher_precision": "float32"})
    assert as_begun(told, tmp_path) == told
    for damaged in ("{", "[]", '{"config": 3}', '{"config": {"runtime": {"precision": "half"}}}'):
        (tmp_path / "config.json").write_text(damaged)
        assert as_begun(config, tmp_path) == config


@pytest.mark.parametrize(
    ("flags", "compiling"),
    [
        ([], None), (["--runtime.compile"], True), (["--runtime.no-compile"], False),
        (["--runtime.compile", "--seed", "1"], True), (["--runtime.compile", "False"], False),
        (["--runtime.compile", "None"], None),
    ],
)  # fmt: skip
def test_compile_is_a_flag_that_may_be_left_open(flags: list[str], compiling: bool | None) -> None:
    config = parse(PretrainConfig, ["--out", "run", "--data.train", "photos", *flags], "mgd-ssl pretrain")
    assert config.runtime.compile is compiling


def words_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    (folder / str(rank)).write_text(",".join(shared(f"word {rank}")))
    dist.destroy_process_group()


def test_every_process_hears_the_words_of_all(tmp_path: Path) -> None:
    context = get_context("forkserver")
    processes = [context.Process(target=words_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["word 0,word 1"] * 2
