"""What the display understands of a stage's lines."""

from flows.display import Progress

LINE = "[ppo] step 12/40 | loss 0.612 | kl/reference 0.03 | tokens_per_second 412 | left 0:32"


def test_a_step_line_gives_the_progress_and_its_values():
    seen = Progress().after("running", LINE)
    assert (seen.step, seen.steps) == (12, 40)
    assert seen.values == {"loss": "0.612", "kl/reference": "0.03", "tokens_per_second": "412", "left": "0:32"}


def test_free_text_changes_the_state_and_keeps_the_progress():
    seen = Progress().after("running", LINE).after("failed", "[ppo] NaN in batch 3 | step 99/100")
    assert (seen.state, seen.step, seen.values["loss"]) == ("failed", 12, "0.612")


def test_a_value_that_a_later_step_does_not_print_stays():
    seen = Progress().after("running", LINE).after("running", "[ppo] step 13/40 | loss 0.5")
    assert (seen.step, seen.values["loss"], seen.values["kl/reference"]) == (13, "0.5", "0.03")


def test_a_step_line_without_values_is_understood():
    assert Progress().after("running", "[evaluate@dpo] step 1/2").steps == 2
