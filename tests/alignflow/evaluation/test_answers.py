"""Distance, repetition, variety and language of a policy's answers."""

from math import log

import pytest
import torch

from alignflow.evaluation.answers import distinct, language_drift, repetition, response_kl, words
from alignflow.evaluation.language import languages
from tests.close import close
from tests.toy import rows


@pytest.mark.parametrize("softcap", [0.0, 1e4])  # so high a cap bends nothing
def test_the_kl_is_that_of_both_policies_at_the_temperature(softcap: float):
    """Odds 4:1 of the policy and 1:1 of the reference; at temperature 1/2 odds are squared, 16:1 and 1:1.

    KL = 16/17 log(2·16/17) + 1/17 log(2/17) at each response token, of which the rows have 1 and 2.
    """
    batch = rows([(2, 1), (1, 2)])
    policy = torch.tensor([log(4.0), 0.0]).expand(2, 3, 2)
    for temperature, odds in ((1.0, 4.0), (0.5, 16.0)):
        likely, other = odds / (odds + 1), 1 / (odds + 1)
        kl = likely * log(2 * likely) + other * log(2 * other)
        found = response_kl(
            policy,
            torch.zeros_like(policy),
            torch.eye(2),
            batch,
            temperature=temperature,
            bias=None,
            softcap=softcap,
            chunk=2,
        )
        close(found, [kl, 2 * kl])


def test_words_are_runs_of_letters_and_single_characters_where_no_spaces_are_written():
    assert words("Stop, now! 42 Ärzte") == ["stop", "now", "42", "ärzte"]
    assert words("猫がいる cat") == ["猫", "が", "い", "る", "cat"]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a b c A B C", 1 / 4),  # abc, bca, cab and abc again
        ("a a a a a", 2 / 3),  # three times the same
        ("a b c d", 0.0),
        ("a b", 0.0),
        ("", 0.0),
    ],
)
def test_the_repeated_share_of_trigrams(text: str, share: float):
    assert repetition(text) == pytest.approx(share, abs=1e-12)


def test_distinct_n_divides_by_all_words_and_joins_no_texts():
    """Words a b a | a b: 2 different of 5; pairs ab, ba | ab: 2 different over 5 words."""
    assert distinct(["a b a", "a b"], 1) == distinct(["a b a", "a b"], 2) == 2 / 5
    assert distinct(["a", "b"], 2) == 0.0
    assert distinct(["", "?"], 1) == 0.0


def test_a_language_is_named_when_it_is_sure():
    texts = [
        "Deciduous trees drop all their leaves each year, while evergreens keep theirs.",
        "Pourquoi le ciel est-il bleu pendant la journée ?",
        "Wie lernt man am schnellsten, ohne Hilfe zu schwimmen?",
        "cat",
        "",
    ]
    assert languages(texts, least=0.9) == ["en", "fr", "de", None, None]
    assert languages(texts, least=1.0) == [None] * 5


def test_drift_counts_answers_that_are_surely_in_another_language():
    assert language_drift(["en", None, "fr", "en", "de"], ["en", "en", "en", None, "de"]) == 1 / 5
