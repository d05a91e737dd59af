"""Devices of processes: each has a GPU to itself, or is told so at the start."""

from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from mgd_ssl.config import RuntimeConfig
from mgd_ssl.errors import UserError
from mgd_ssl.run import runtime
from mgd_ssl.run.runtime import check_one_each, shared


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
