"""Write numbers as a reader wants them."""

from alignflow.evaluation.win_rates import Interval

SPACE = "\u00a0"
"""Does not break, so that a number keeps its unit."""
VALIDATION_SIDE, TEST_SIDE = "validation side", "test side"


def percent(share: float) -> str:
    """Write a share as e.g. ``71 %``."""
    return f"{100 * share:.0f}{SPACE}%"


def between(interval: Interval, *, sign: bool = False) -> str:
    """Write an interval of shares as e.g. ``62–79 %``, or of differences as ``−12 to +3 %``."""
    if sign:
        return f"{_plus(100 * interval.low)} to {_plus(100 * interval.high)}"
    return f"{100 * interval.low:.0f}–{percent(interval.high)}"


def points(difference: float) -> str:
    """Write a difference of shares as e.g. ``−12 points``."""
    return f"{_plus(100 * difference)}{SPACE}points"


def number(value: float) -> str:
    """Write a number with two decimals."""
    return f"{value:z.2f}".replace("-", "−")


def signed(value: float) -> str:
    """Write a difference with its sign, e.g. ``+0.31`` or ``−0.20``."""
    return f"{value:+z.2f}".replace("-", "−")


def span(interval: Interval) -> str:
    """Write an interval of differences as e.g. ``−0.20 to +0.31``."""
    return f"{signed(interval.low)} to {signed(interval.high)}"


def p_value(p: float) -> str:
    """Write a p-value with two digits, small ones as a bound."""
    return f"{p:.2g}" if p >= 0.001 else f"<{SPACE}0.001"


def duration(seconds: float) -> str:
    """Write seconds as e.g. ``45 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def capital(text: str) -> str:
    """Begin a text with a capital letter and leave the rest."""
    return text[:1].upper() + text[1:]


def unbroken(text: str) -> str:
    """Keep ranges such as ``62–79 %`` on one line."""
    return text.replace("–", "\u2060–\u2060")


def listing(items: list[str]) -> str:
    """Write e.g. ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def _plus(value: float) -> str:
    return f"{value:+.0f}".replace("-", "−") if round(value) else "0"
