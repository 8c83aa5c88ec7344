"""Reasons why a record gives no row, or an answer no part of one; each is one of a fixed set of texts."""

GOOD_LABELS = (
    *("1", "+1", "true", "yes", "y", "up", "good", "thumbs_up", "desirable", "positive", "chosen", "accepted", "like"),
    *("liked", "correct", "👍"),
)
BAD_LABELS = (
    *("0", "-1", "false", "no", "n", "down", "bad", "thumbs_down", "undesirable", "negative", "rejected", "dislike"),
    *("disliked", "incorrect", "wrong", "👎"),
)

EMPTY = "empty text"
HALF_CHARACTER = "half of a surrogate pair in a text"
NOT_A_TURN = "chat turn without a role or a text"
UNKNOWN_ROLE = "unknown chat role"
ORDER = "chat turns out of order"
PROMPT_END = "prompt does not end with the user's turn"
NOT_AN_ANSWER = "answer is not an assistant's turn"
CUT_CHAT = "chat messages written as a text that is cut off or broken"
MEDIA = "images, sound or video: only text can be trained on"
OTHER_PROMPTS = "chosen and rejected answer different prompts"
OTHER_PROMPT = "prompt is not in the conversation"
BAD_MARGIN = "margin is not a number of at least 0"
BAD_ANSWER = "answer is neither a text nor a number"
BAD_LABEL = f"unknown label; known: {', '.join(GOOD_LABELS)}; {', '.join(BAD_LABELS)}"
BAD_SCORE = "score is not a number"
BAD_WINNER = "unclear which response is better: neither its number, letter, name or text, nor a tie"
BAD_CHOICE = "the correct choice is none of the choices"
UNLIKE_LENGTHS = "responses and scores differ in number"
ONE_RESPONSE = "fewer than two responses"
ALL_TIED = "all responses score alike"
TIE = "neither response is better"
NO_RANKED_REPLIES = "no message of the tree has two ranked replies"
LATE_COLUMN = "a column that the first rows lack, and that no form can read"
LEFT_OUT = "one of several answers is left out: "
# and, for the columns of a source: "COLUMN is missing", "COLUMN is not a text", "COLUMN is not a list",
# "COLUMN is neither a text nor chat messages"


class Unusable(ValueError):
    """A record gives no row; the message is the reason."""
