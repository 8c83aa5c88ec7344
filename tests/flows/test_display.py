"""What the display shows of the stages' steps."""

import logging

from rich.console import Console

from flows.display import Board, StageView
from tasks.running.progress import StepProgress

STEP = StepProgress(12, 40, {"loss": 0.6124, "kl/reference": 0.03, "tokens_per_second": 412.3}, 32.0)


def board(*steps: StepProgress, state: str = "running", text: str = "[ppo] a line"):
    shown = Board(Console(), live=True)
    for extra in ({"stage_plan": ["ppo", "grpo"]}, {"stage": "ppo", "stage_state": state, "stage_steps": steps}):
        shown.emit(logging.makeLogRecord({"msg": text, **extra}))
    return shown


def rows(shown: Board) -> list[list[str]]:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(shown.table())
    return [[word for word in line.split() if "━" not in word] for line in capture.get().splitlines()[1:]]


def test_a_step_fills_the_row_of_its_stage():
    assert rows(board(STEP)) == [["ppo", "running", "12/40", "0.612", "0.03", "412", "0:32"], ["grpo", "queued"]]


def test_speed_and_time_left_are_those_of_a_running_stage():
    assert rows(board(STEP, state="ran"))[0] == ["ppo", "ran", "12/40", "0.612", "0.03"]


def test_a_line_of_text_is_never_read_as_a_step():
    assert rows(board(text="[ppo] step 99/100 | loss 0.1 | left 0:01"))[0] == ["ppo", "running"]


def test_a_line_without_a_step_changes_the_state_and_keeps_the_progress():
    seen = StageView().after("running", [STEP]).after("failed", ())
    assert (seen.state, seen.last) == ("failed", STEP)


def test_of_several_new_steps_the_last_counts_and_a_value_that_it_does_not_have_stays():
    seen = StageView().after("running", [STEP, StepProgress(13, 40, {"score": 1.0}, 31.0)])
    seen = seen.after("running", [StepProgress(14, 40, {"loss": 0.5}, 30.0)])
    assert seen.last == StepProgress(
        14, 40, {"loss": 0.5, "kl/reference": 0.03, "tokens_per_second": 412.3, "score": 1.0}, 30.0
    )
