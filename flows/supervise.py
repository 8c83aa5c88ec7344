"""Run a command, and stop all its processes when the caller ends.

``python -S supervise.py GRACE COMMAND...``

On SIGTERM, DVC ends at once, but the training that it started goes on and writes to an output folder that
DVC may delete. When the caller is killed with SIGKILL, no process gets a signal. So this process runs between
them: on SIGTERM, or when its standard input closes (the caller held the other end and has ended), the whole
process group gets SIGTERM, has GRACE seconds to save a checkpoint, and is then killed. It returns
when the group is empty. Standard library only: it starts in milliseconds.

A caller starts it with ``start_new_session``, so that no signal to the caller's process group ends it too.
"""

import os
import signal
import subprocess
import sys
import threading
import time


def command(supervised: list[str], grace: float) -> list[str]:
    """Return the command that runs another below a supervisor."""
    return [sys.executable, "-S", __file__, str(grace), *supervised]


def main(grace: float, supervised: list[str]) -> int:
    """Run the command and return its exit status, 128 + n when a signal n ended it."""
    child = subprocess.Popen(supervised, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=False)

    def send(number: int) -> bool:
        """Signal the whole group; False when no process is left."""
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return False
        return True

    once = threading.Lock()

    def end() -> None:
        if not once.acquire(blocking=False):
            return  # a second SIGTERM could interrupt the saving of a checkpoint
        send(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while send(0) and time.monotonic() < deadline:
            child.poll()  # a zombie still counts as a member of its group
            time.sleep(0.05)
        send(signal.SIGKILL)

    def watch_caller() -> None:
        while os.read(0, 4096):
            pass
        end()

    # a handler must return quickly: the waiting happens in a thread
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end, daemon=True).start())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch_caller, daemon=True).start()
    status = child.wait()
    while status and send(0):  # the command is gone, its children may still be saving
        time.sleep(0.05)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
