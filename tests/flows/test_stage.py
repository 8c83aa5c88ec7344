"""One stage through DVC: its lines and its steps arrive."""

import tempfile

from flows import graph, stage
from tasks.running.progress import StepProgress


def test_a_stage_hands_on_each_step_no_later_than_the_line_that_tells_of_it(cloned, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    steps, known_at = [], {}

    def say(_, text, new=()):
        steps.extend(new)
        known_at[text.partition(" |")[0]] = len(steps)

    ended = stage.run(graph.read(cloned.root)["sft"], cloned.root, say, stage.Stop())
    assert steps == [
        StepProgress(1, 2, {"loss": 0.5, "kl/reference": 0.01, "tokens_per_second": 400.0}, 1.0),
        StepProgress(2, 2, {"loss": 0.25, "kl/reference": 0.02, "tokens_per_second": 400.0}, 0.0),
    ]
    assert known_at["[sft] step 1/2"] >= 1
    assert known_at["[sft] step 2/2"] == 2
    assert (ended.stage, ended.how) == ("sft", "ran")
    assert list((tmp_path / "temporary").iterdir()) == []
