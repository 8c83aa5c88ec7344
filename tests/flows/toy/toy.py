"""A stage that takes milliseconds. It obeys the orders that a test leaves in $TOY_ORDERS, and keeps a diary there.

``python toy.py NAME OUT... [-- INPUT...]``
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from tasks.running.progress import StepProgress
from tasks.running.progress import write as report

HOLD_SECONDS = 180  # longer than any test waits for something before it lets a stage go on

orders = Path(os.environ["TOY_ORDERS"])
name = sys.argv[1]
arguments = [*sys.argv[2:], "--"]
outs, inputs = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 : -1]


def write(event: str) -> None:
    with (orders / "diary").open("a") as diary:
        diary.write(f"{event} {name} {os.getpid()}\n")


def say(text: str) -> None:
    sys.stdout.write(f"[{name}] {text}\n")
    sys.stdout.flush()


def stop(*_: object) -> None:
    write("stopped")
    sys.exit(143)


signal.signal(signal.SIGTERM, stop)
write("began")
report(StepProgress(1, 2, {"loss": 0.5, "kl/reference": 0.01, "tokens_per_second": 400.0}, 1.0), say)
fail = orders / f"fail {name}"
if fail.exists():
    left = int(fail.read_text()) - 1
    fail.write_text(str(left)) if left else fail.unlink()
    sys.exit(f"{name} was told to fail")
began = time.monotonic()
while (orders / f"hold {name}").exists():
    if time.monotonic() - began > HOLD_SECONDS:
        sys.exit(f"{name} was held for {HOLD_SECONDS} s, and nobody let it go on")
    time.sleep(0.02)

params = yaml.safe_load(Path("params.yaml").read_text())
weights = [str(params.get(name.partition("@")[0]))] + [(Path(i) / "weights").read_text() for i in inputs]
for out in map(Path, outs):
    out.parent.mkdir(parents=True, exist_ok=True)
    if name == "compare":
        numbers = {"win_rate_low": 0.5, "win_rate_high": 0.7, "score_mean": 0.3}
        rows = [{"policy": "reference", "win_rate": 0.5}, {"policy": "dpo", "win_rate": 0.6}]
        out.write_text(json.dumps([row | numbers for row in rows]))
    elif out.suffix == ".json":
        out.write_text(json.dumps({"loss": 0.25, "steps": 2}))
    else:
        out.mkdir(exist_ok=True)
        (out / "weights").write_text("\n".join(weights))
report(StepProgress(2, 2, {"loss": 0.25, "kl/reference": 0.02, "tokens_per_second": 400.0}, 0.0), say)
write("ended")
