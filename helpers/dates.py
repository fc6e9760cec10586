"""Dates as people say them: "next friday", "by the 5th", "end of the month", "2026-12-03".

``dateparser`` does the work. It leaves four things to us, and they come first: days of the
month ("the 5th"), ends and beginnings of weeks and months, holidays, and times of day, which
a date does not hold.
"""

from __future__ import annotations

import calendar
import contextlib
import datetime
import re
import warnings
from collections.abc import Callable

_WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_MONTHS = [name.lower() for name in calendar.month_name if name]
WEEKDAY = "(?:" + "|".join(_WEEKDAYS) + ")"
MONTH = "(?:" + "|".join(_MONTHS) + ")"
_D = f"({WEEKDAY})"

_NO_DATE = ("none", "no due date", "no date", "no deadline", "null", "never")

# Applied in this order, as whole words. What stands for itself is not repeated here.
_WORDS = {
    r"mon": "monday",
    r"tues?": "tuesday",
    r"weds?": "wednesday",
    r"thu(?:rs?)?": "thursday",
    r"fri": "friday",
    r"sat": "saturday",
    r"sun": "sunday",
    r"jan": "january",
    r"feb": "february",
    r"mar": "march",
    r"apr": "april",
    r"jun": "june",
    r"jul": "july",
    r"aug": "august",
    r"sept?": "september",
    r"oct": "october",
    r"nov": "november",
    r"dec": "december",
    r"tmrw|tmr|tomm?or?row|tommorow|2moro": "tomorrow",
    r"christmas eve": "24 december",
    r"christmas(?: day)?|xmas": "25 december",
    r"new year'?s? eve": "31 december",
    r"new year(?:'?s)?(?: day)?": "1 january",
    r"a fortnight|fortnight": "2 weeks",
    r"first of": "1st of",
    r"tonight": "today",
    r"eow": "end of this week",
    r"eom": "end of this month",
    r"eoy": "end of this year",
    r"end of (?:the )?(week|month|year)": r"end of this \1",
    r"(?:beginning|start) of|early": "start of",
    r"(?:the )?middle of|mid": "middle of",
    r"late(?= next)": "end of",
}
SHORT = "(?:" + "|".join(s for s, m in _WORDS.items() if m in (*_WEEKDAYS, *_MONTHS)) + ")"
_TIMES = (
    r"\b(?:at |by |before |around )?(?:\d{1,2}(?:[:.]\d{2})? ?(?:am|pm)|\d{1,2}:\d{2}"
    r"|\d{1,2} o'?clock|noon|midday|midnight|lunch(?:time)?|cob|eod"
    r"|(?:the )?(?:end of (?:the )?(?:business )?day|close of business))\b"
    r"|\bat \d{1,2}$"
    r"|\b(?:in the |this |start of |late |first thing (?:in the )?)?(?:morning|afternoon|evening)\b"
    r"|\b(?:at )?night\b|\b(?:with)?in (?:the|an?|half an) hour\b"
)
_BEFORE = (
    r"^(?:(?:due|deadline|no later than|not later than|at the latest|(?:the )?latest|sometime"
    r"|asap|as soon as possible|immediately|right away|straight away|now|first thing"
    r"|by|before|until|till?|on|for|at|around|about|from)\b[ :,]*)+"
)


def parse_due(text: str, today: datetime.date) -> datetime.date | None:
    """The date that a person means, seen from ``today``.

    A date without a year lies ahead. "By" and "before" mean that day; the end of a week is
    its Friday, a weekend its Saturday.

    Returns:
        The date; None for "none", "no deadline" and the like.

    Raises:
        ValueError: When it is not a date.
    """
    phrase = text.casefold().replace("\u2019", "'").replace("mid-", "mid ")
    phrase = " ".join(phrase.split()).strip(" .!,;?")
    if not phrase:
        raise ValueError("an empty text is not a date")
    if phrase in _NO_DATE:
        return None
    if match := re.fullmatch(r"(\d{4}-\d\d-\d\d)(?:[t ]\d\d:\d\d.*)?", phrase):
        return datetime.date.fromisoformat(match[1])
    for said, meant in _WORDS.items():
        phrase = re.sub(rf"\b(?:{said})(?!\w)", meant, phrase)
    phrase = re.sub(_TIMES, " ", phrase).strip(" ,")
    phrase = re.sub(_BEFORE, "", phrase)
    phrase = re.sub(r"\b(?:at the latest|latest|sharp|please)$", "", phrase)
    phrase = re.sub(rf"^{WEEKDAY},? (?:the )?(?=\d)", "", phrase)  # friday the 4th
    phrase = re.sub(r"^within (?:the|an?) ", "in 1 ", phrase)
    phrase = re.sub(r"^within ", "in ", phrase)
    phrase = " ".join(phrase.removeprefix("the ").strip(" ,").split()) or "today"
    for pattern, date in _IDIOMS:
        if match := re.fullmatch(pattern, phrase):
            return date(today, *match.groups())
    if ", " in phrase and not re.search(r"\b\d{4}\b", phrase):
        # "the sunday after, the 15th", "thursday, before the dress run": the plainest piece.
        numbered = re.compile(r"\d(?:st|nd|rd|th)\b")
        for piece in sorted(phrase.split(", "), key=lambda piece: not numbered.search(piece)):
            with contextlib.suppress(ValueError):
                return parse_due(piece, today)
    try:
        date = _library(phrase, today)
    except OverflowError:  # in 999999999 years
        date = None
    if date is None:
        raise ValueError(f"{text!r} is not a date")
    return date


def _library(phrase: str, today: datetime.date) -> datetime.date | None:
    if phrase.isdigit():  # it would take "2026" for a year and "12" for a month
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own imports
        import dateparser

        dates = []
        for order in ("MDY", "DMY"):
            found = dateparser.parse(
                phrase,
                languages=["en"],
                settings={
                    "RELATIVE_BASE": datetime.datetime.combine(today, datetime.time()),
                    "PREFER_DATES_FROM": "future",
                    "PREFER_DAY_OF_MONTH": "last",
                    "DATE_ORDER": order,
                    "RETURN_AS_TIMEZONE_AWARE": False,
                },
            )
            dates += [found.date()] if found else []
    # 03/12/2026 is a date in March or in December: the one that lies ahead.
    return min((d for d in dates if d >= today), default=dates[0] if dates else None)


def _days(n: int) -> datetime.timedelta:
    return datetime.timedelta(days=n)


def _monday(today: datetime.date, which: str | None = None) -> datetime.date:
    return today - _days(today.weekday()) + _days(7 * (which == "next"))


def _month(today: datetime.date, ahead: int) -> datetime.date:
    """First day of the month that many months ahead."""
    years, month = divmod(today.month - 1 + ahead, 12)
    return datetime.date(today.year + years, month + 1, 1)


def _last(first: datetime.date) -> datetime.date:
    return first.replace(day=calendar.monthrange(first.year, first.month)[1])


def _named_month(today: datetime.date, name: str) -> datetime.date:
    return _month(today, (_MONTHS.index(name) + 1 - today.month) % 12)


def _weekday(today: datetime.date, name: str) -> datetime.date:
    """The next one after today."""
    return today + _days((_WEEKDAYS.index(name) - today.weekday() - 1) % 7 + 1)


def _day_of_month(today: datetime.date, day: str, which: str | None) -> datetime.date:
    for ahead in (1,) if which == "next" else range(3):  # one of three months has a 31st
        first = _month(today, ahead)
        if int(day) in range(1, _last(first).day + 1):
            date = first.replace(day=int(day))
            if date >= today:
                return date
    raise ValueError(f"no {day}th lies ahead")


def _part(
    today: datetime.date, part: str, first: datetime.date, last: datetime.date, middle: int
) -> datetime.date:
    date = {"start": first, "middle": first + _days(middle), "end": last}[part]
    return max(date, today)


def _part_of_week(today: datetime.date, part: str, which: str) -> datetime.date:
    monday = _monday(today, which)
    return _part(today, part, monday, monday + _days(4), 2)


def _part_of_month(today: datetime.date, part: str, which: str) -> datetime.date:
    first = _named_month(today, which) if which in _MONTHS else _month(today, which == "next")
    return _part(today, part, first, _last(first), 14)


def _counted(today: datetime.date, count: str, unit: str, day: str) -> datetime.date:
    n = {"a": 1, "one": 1, "two": 2, "three": 3}.get(count) or int(count)
    start = today if day in ("today", "now") else _library(day, today)
    if start is None:
        raise ValueError(f"{day!r} is not a date")
    return start + _days(n * (7 if unit == "week" else 1))


_IDIOMS: list[tuple[str, Callable[..., datetime.date]]] = [
    (r"(\d{1,2})(?:st|nd|rd|th)(?:(?: of)? (this|next) month)?", _day_of_month),
    (r"(start|middle|end) of (?:the )?(this|next) week", _part_of_week),
    (
        rf"(start|middle|end) of (?:the )?(this month|next(?= month)|{MONTH})(?: month)?",
        lambda today, part, which: _part_of_month(today, part, which.removesuffix(" month")),
    ),
    (
        r"end of (?:the )?(this|next) year",
        lambda today, which: datetime.date(today.year + (which == "next"), 12, 31),
    ),
    (
        r"this (week|month)",
        lambda today, unit: (_part_of_week if unit == "week" else _part_of_month)(
            today, "end", "this"
        ),
    ),
    (
        r"(?:this |coming |(next) )?weekend",
        lambda today, which: max(_monday(today, which) + _days(5), today),
    ),
    (rf"(?:this coming |this |coming ){_D}", _weekday),
    (
        rf"{_D} (?:of )?next week|next week(?: on)? {_D}",
        lambda today, a, b: _monday(today, "next") + _days(_WEEKDAYS.index(a or b)),
    ),
    (rf"a week on {_D}|{_D} week", lambda today, a, b: _weekday(today, a or b) + _days(7)),
    (r"(a|one|two|three|\d{1,3}) (day|week)s? (?:from|after) (.+)", _counted),
]
