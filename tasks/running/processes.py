"""One stage in several processes: their number, start and stop, and which of them reports an error."""

import os
import signal
import sys
import threading
import time
from types import FrameType

VARIABLE = "ALIGNFLOW_PROCESSES"
KILLED = 128  # plus the number of the signal: what a shell reports
LOOK_SECONDS = 0.2  # between two checks of the processes


class BadProcesses(ValueError):
    """The number or the launch of the processes is not possible here."""


def wanted() -> int:
    """Return the number of processes in ``ALIGNFLOW_PROCESSES``; 1 if it is not set.

    Raises:
        BadProcesses: it is not a number of at least 1, or there are fewer GPUs.
    """
    text = os.environ.get(VARIABLE) or "1"
    if not (text.isdecimal() and int(text) >= 1):
        raise BadProcesses(f"{VARIABLE} is {text!r}; set it to the number of processes of a training stage, at least 1")
    if int(text) > 1:
        _check_gpus(int(text))
    return int(text)


def join(*, shared: bool) -> bool:
    """Join the process group if a launcher started this process as one of several; return whether it did.

    Args:
        shared: whether several processes can run this stage.

    Raises:
        BadProcesses: the launcher's options do not work for this stage.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if by_accelerate and "MASTER_ADDR" in os.environ and "LOCAL_RANK" not in os.environ:
        raise BadProcesses(
            "accelerate launch was given several processes, but starts one on a machine without several GPUs; add "
            f"--multi_gpu, which works on CPUs too, or set {VARIABLE} and start the stage without it"
        )
    if not _one_of_several():
        return False
    import torch

    from alignflow import distributed

    if not shared:
        raise BadProcesses("this stage runs in one process; start it without a launcher")
    for key in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(key, "").lower() == "true":
            raise BadProcesses(
                f"{key.rpartition('_')[2]} is not supported, because processes do not run the same passes; use "
                "accelerate launch --multi_gpu; to save memory, set base.quantization: nf4 and memory.share_base: true "
                "in params.yaml"
            )
    _check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    distributed.join(cpu=not torch.cuda.is_available())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return True


def launch(stage: str, count: int) -> int:
    """Start a stage's program as several processes with ``accelerate launch`` and return its exit code.

    A SIGTERM or Ctrl-C is sent to each of them once, as SIGTERM: they save and stop at the same step. A SIGUSR1 is sent
    on as it is: they save and go on.

    Args:
        stage: as dvc.yaml names it.
        count: number of processes.
    """
    import logging

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)  # the launcher reports each exit code at length; the stage itself says why
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP"  # torchrun would kill after 30 s and forget the exit codes
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _hand_on)
    signal.signal(signal.SIGUSR1, _hand_on_once)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    options = {
        "--num_processes": str(count),
        "--num_machines": "1",
        "--main_process_port": "0",  # any free one
        "--mixed_precision": "no",  # base.dtype decides
        "--dynamo_backend": "no",
        "--num_cpu_threads_per_process": threads,
    }
    program = ["-m", "tasks", *filter(None, stage.split("@"))]
    flat = [word for option in options.items() for word in option]
    try:
        launch_command(launch_command_parser().parse_args(["--multi_gpu", *flat, *program]))
    except ChildFailedError as failed:
        return _exit_code(stage, count, {rank: failure.exitcode for rank, failure in failed.failures.items()})
    return 0


def tells() -> bool:
    """Return whether this process is the first that calls this, so that an error of all processes is reported once."""
    if not _one_of_several():
        return True
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs leave it out

    try:  # torchrun keeps it in the launcher, where it outlives the processes
        port = int(os.environ["MASTER_PORT"])
        store = TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=timedelta(seconds=5))
        return bool(store.add("alignflow/told", 1) == 1)
    except RuntimeError:
        return True


def _one_of_several() -> bool:
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _check_gpus(count: int) -> None:
    import torch

    if 0 < torch.cuda.device_count() < count:
        raise BadProcesses(
            f"{count} processes need a GPU each, but only {torch.cuda.device_count()} visible; lower {VARIABLE} "
            "(or --num_processes), or check CUDA_VISIBLE_DEVICES"
        )


def _exit_code(stage: str, count: int, codes: dict[int, int]) -> int:
    """Return the exit code of a stage whose processes failed, by rank; report a process that a signal ended."""
    for rank, code in codes.items():
        if code < 0 and -code != signal.SIGTERM:
            name = signal.Signals(-code).name
            cause = "; the machine may have run out of memory" if -code == signal.SIGKILL else ""
            print(f"[{stage}] error: process {rank} of {count} was ended by {name}{cause}", file=sys.stderr, flush=True)
            return KILLED - code
    code = next(iter(codes.values()))
    return code if code >= 0 else KILLED - code


def _hand_on(*_: int | FrameType | None) -> None:
    """Send SIGTERM once to every process that this one has started or will start."""

    def send() -> None:
        import psutil

        told: set[int] = set()
        while True:
            for child in psutil.Process().children():
                if child.pid not in told:
                    told.add(child.pid)
                    child.terminate()
            time.sleep(LOOK_SECONDS)

    threading.Thread(target=send, daemon=True).start()


def _hand_on_once(number: int, _: FrameType | None) -> None:
    """Send a signal to every process that this one has started."""
    import psutil

    for child in psutil.Process().children():
        child.send_signal(number)


def _end_with(launcher: int) -> None:
    """End this process at once when its launcher is gone, because nothing else could stop it."""
    while os.getppid() == launcher:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
