"""What is used of other packages although it is private, because nothing public does the same.

A test that fails here after an upgrade says which function of ours needs another way, and where to look for one.
"""

import importlib.util
import inspect
import multiprocessing.queues
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from submitit.slurm import slurm as submitit_slurm
from torch.utils.data import DataLoader

from launchers.config import SlurmConfig
from launchers.slurm import parameters
from mgd_ssl.data.worker import START_METHOD


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_loaders_iterator_knows_its_workers_and_ends_them() -> None:
    """There is no public way: a DataLoader has no `close`, its iterator ends the workers when the last reference to it
    is gone, which an exception's traceback may be, and `multiprocessing.active_children` forgets a worker that died."""
    iterator: Any = iter(DataLoader(range(4), num_workers=2, multiprocessing_context=START_METHOD))  # type: ignore[arg-type]
    advice = (
        "mgd_ssl.data.loader.batches needs it: look in torch's _MultiProcessingDataLoaderIter.__init__ for where it "
        "keeps the processes it starts, in its __del__ for what ends them, and for a public `close` or `shutdown`"
    )
    workers = getattr(iterator, "_workers", None)
    assert workers is not None and len(workers) == 2, f"a DataLoader's iterator has no list _workers: {advice}"
    assert all(isinstance(worker, multiprocessing.process.BaseProcess) for worker in workers), (
        f"a DataLoader's _workers are no processes: {advice}"
    )
    assert all(worker.is_alive() for worker in workers)
    assert callable(getattr(iterator, "_shutdown_workers", None)), (
        f"a DataLoader's iterator has no _shutdown_workers: {advice}"
    )
    iterator._shutdown_workers()
    assert not any(worker.is_alive() for worker in workers), f"_shutdown_workers leaves workers alive: {advice}"
    iterator._shutdown_workers()  # as `batches` does it after a loader has ended by itself


def test_a_queue_tells_that_it_could_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no public way: a queue's thread prints the error, and who waits for the object waits without end."""
    advice = (
        "mgd_ssl.data.worker.start_worker hangs _give_up there: look in multiprocessing.queues.Queue._feed for what is "
        "called with an object that cannot be sent"
    )
    assert callable(getattr(multiprocessing.queues.Queue, "_on_queue_feeder_error", None)), (
        f"multiprocessing's Queue has no _on_queue_feeder_error: {advice}"
    )
    told, done = list[tuple[Exception, Any]](), threading.Event()

    def hear(error: Exception, sent: Any) -> None:
        told.append((error, sent))
        done.set()

    monkeypatch.setattr(multiprocessing.queues.Queue, "_on_queue_feeder_error", staticmethod(hear))
    queue = multiprocessing.get_context(START_METHOD).Queue()
    cannot_be_sent = threading.Lock()
    queue.put(cannot_be_sent)
    assert done.wait(30), f"_on_queue_feeder_error is not called: {advice}"
    queue.close()
    queue.join_thread()
    assert isinstance(told[0][0], TypeError) and told[0][1] is cannot_be_sent, (
        f"_on_queue_feeder_error is called with something else than (error, object): {advice}"
    )


def test_submitit_makes_the_text_of_a_batch_script(tmp_path: Path) -> None:
    """There is no public way: a SlurmExecutor wants srun on the PATH, and shows the script only by submitting it."""
    advice = (
        "launchers.slurm.batch_script (`launch --print`, and the question to sbatch before submitting) needs it: look "
        "in SlurmExecutor._make_submission_file_text for what makes the text"
    )
    make = getattr(submitit_slurm, "_make_sbatch_string", None)
    assert callable(make), f"submitit.slurm.slurm has no _make_sbatch_string: {advice}"
    config = SlurmConfig(time="1:00:00", gpus_per_node=1, cpus_per_task=2, mem="4G", partition="p", qos="q")
    wanted = {"command", "folder", "map_count", *parameters(config, "name", "afterok:1")}
    missing = wanted - inspect.signature(make).parameters.keys()
    assert not missing, f"submitit's _make_sbatch_string takes no {', '.join(sorted(missing))}: {advice}"
    text = make("the command", tmp_path, map_count=3, **parameters(config, "name"))
    assert isinstance(text, str) and text.startswith("#!/bin/bash\n"), f"it makes no script: {advice}"
    assert "#SBATCH --array=0-2%" in text, f"_make_sbatch_string's map_count makes no array: {advice}"
    assert "the command" in text.splitlines()[-1] or any(
        line.startswith("srun ") and line.endswith("the command") for line in text.splitlines()
    ), f"_make_sbatch_string runs something else than the command: {advice}"


def test_submitit_runs_a_job_by_its_module() -> None:
    assert importlib.util.find_spec("submitit.core._submit") is not None, (
        "submitit has no module submitit.core._submit: launchers.slurm.batch_script names it in the batch script, look "
        "in SlurmExecutor._submitit_command_str for what a job runs"
    )


def test_torch_convolves_bytes() -> None:
    """There is no public way: torch.ao's modules make tensors that know their scale, which are deprecated."""
    advice = (
        "mgd_ssl.networks.int8.Int8Conv2d needs it: look in torch/_inductor/fx_passes/quantization.py for what the x86 "
        "backend's graphs call"
    )
    for name, arguments in (("qconv_prepack", 9), ("qconv2d_pointwise", 17)):
        packet = getattr(torch.ops.onednn, name, None)
        assert packet is not None, f"torch.ops.onednn has no {name}: {advice}"
        found = len(packet.default._schema.arguments)
        assert found == arguments, f"torch.ops.onednn.{name} takes {found} arguments: {advice}"
