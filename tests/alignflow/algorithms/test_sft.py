"""Supervised fine-tuning."""

import math

import torch

from alignflow.algorithms.sft import count, step
from tests.close import EXACT, close
from tests.toy import Given, plain_numbers, rows


def test_only_response_tokens_carry_loss():
    """Prompts of 2 and 1, responses of 2 and 3: columns 1-2 and 0-2 of the four shifted columns."""
    batch = rows([(2, 2), (1, 3)])
    output = step(Given(torch.tensor([[-1.0, -2, -3], [-4, -5, -6]])), batch)
    assert output.mask.tolist() == [[False, True, True], [True, True, True]]
    close(output.losses[output.mask], [2.0, 3, 4, 5, 6], EXACT)
    assert count(batch) == 5


def test_the_loss_of_a_uniform_model_is_the_log_of_the_vocabulary():
    batch = rows([(3, 4)])
    output = step(Given(torch.full((1, 6), -math.log(256))), batch)
    close(output.metrics["nll"], [math.log(256)] * 4)


def test_metrics_keep_no_graph():
    output = step(Given(torch.full((1, 6), -1.0, requires_grad=True)), rows([(3, 4)]))
    assert output.losses.requires_grad
    plain_numbers(output.metrics)
