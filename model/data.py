"""Synthetic conversations about tasks: requests, calls, results, answers.

Nothing is downloaded: requests are composed from the phrase files in phrases/ (written for this
project), titles are varied with the words of Faker and wonderwords (both MIT). The order of things
in a conversation: a list of offered tools (a `Toolbox`, whose schemas vary), then one to eight
exchanges. An exchange is a request, the calls it asks for (`Action`), their results and a short
answer; or a request that must be refused. `conversations(seed)` yields the same sequence for the
same seed, for ever.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from hints import telling

HERE = Path(__file__).parent
PHRASES = HERE / "phrases"
PRIORITIES = ["low", "medium", "high", "urgent"]
STATUSES = ["pending", "in_progress", "completed"]
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = (
    "january february march april may june july august september october november december".split()
)
VERBS = {"create": "create", "update": "update", "complete": "complete", "list": "list",
         "delete": "delete"}  # fmt: skip


# --- words ------------------------------------------------------------------------------------


@cache
def lines(name: str) -> tuple[str, ...]:
    """The phrasings in phrases/NAME.txt without comments; sorted, so order in the file is free.
    A backslash and an n stand for a new line."""
    text = (PHRASES / f"{name}.txt").read_text(encoding="utf-8")
    kept = {s for line in text.splitlines() if (s := line.strip()) and s[0] != "#"}
    return tuple(sorted(s.replace("\\n", "\n") for s in kept))


@cache
def vocabulary() -> dict[str, tuple[str, ...]]:
    """Word sources for variation: wonderwords' nouns, verbs, adjectives; Faker's names in many
    languages, companies, cities."""
    from faker import Faker
    from wonderwords import RandomWord

    words = RandomWord()
    found = {
        "noun": words.filter(include_categories=["noun"]),
        "verb": words.filter(include_categories=["verb"]),
        "adj": words.filter(include_categories=["adjective"]),
    }
    fakers = []
    for i, locale in enumerate(["en_GB", "en_US", "de_DE", "fr_FR", "es_ES", "it_IT", "pl_PL",
                                "en_IN", "nl_NL", "sv_SE", "tr_TR", "pt_BR"]):  # fmt: skip
        faker = Faker(locale)
        faker.seed_instance(1000 + i)
        fakers.append(faker)
    found["person"] = [f.first_name() for f in fakers for _ in range(250)]
    found["person"] += [f.last_name() for f in fakers for _ in range(250)]
    found["company"] = [f.company().split(",")[0] for f in fakers for _ in range(80)]
    # Faker keeps the Italian cities in a set, whose order differs from process to process.
    steady = [f for f in fakers if f.locales != ["it_IT"]]
    found["place"] = [f.city() for f in steady for _ in range(150)]
    return {key: tuple(sorted(set(value))) for key, value in found.items()}


SYLLABLES = (
    "ba be bi bo bu ca ce ci co cu da de di do du fa fe fi fo fu ga ge go gu ha he hi ho hu ja jo "
    "ka ke ki ko ku la le li lo lu ma me mi mo mu na ne ni no nu pa pe pi po pu ra re ri ro ru sa "
    "se si so su ta te ti to tu va ve vi vo wa we wi ya yo za ze zi sh ch th st tr br gr pl sk mp "
    "nd rk lt rn ss ll ck ing er on el an ea oo ou ai"
).split()


def word(r: random.Random) -> str:
    """One word of any origin, invented ones and codes among them."""
    x = r.random()
    v = vocabulary()
    if x < 0.55:
        return r.choice(v["noun"])
    if x < 0.67:
        return r.choice(v["adj"])
    if x < 0.75:
        return r.choice(v["verb"])
    if x < 0.85:
        return r.choice(v["person"])
    if x < 0.95:
        return "".join(r.choice(SYLLABLES) for _ in range(r.randint(2, 4)))
    return code(r)


def code(r: random.Random) -> str:
    """A reference such as PR-1423, v2.1, LH 432, Q3, 4471."""
    n = r.randint(1, 9999)
    kind = r.randrange(9)
    letters = "".join(r.choice("ABCDEFGHIJKLMNOPRSTUVWXYZ") for _ in range(r.randint(1, 4)))
    return [
        str(n),
        f"{letters}-{n}",
        f"{letters}{r.randint(1, 99)}",
        f"{letters} {n}",
        f"v{r.randint(0, 9)}.{r.randint(0, 20)}",
        f"Q{r.randint(1, 4)}",
        str(r.randint(2019, 2030)),
        f"#{n}",
        f"{letters.lower()}{n}",
    ][kind]


PLAIN = {"person": "persons", "place": "places", "company": "companies", "food": "foods",
         "noun": "nouns", "adj": "adjs", "subject": "subjects"}  # fmt: skip
SLOT = re.compile(r"\{(\w+?)(\d*)\}")


def fill_words(text: str, r: random.Random) -> str:
    """Replace {person}, {noun}, {num} … in a title."""

    def one(match: re.Match) -> str:
        name = match[1]
        v = vocabulary()
        if name == "num":
            return str(r.randint(1, r.choice([9, 99, 999, 9999])))
        if name in ("code", "product"):
            return code(r) if name == "code" or r.random() < 0.2 else word(r)
        if name in v and r.random() < 0.55:
            return r.choice(v[name])
        if name in PLAIN:
            return r.choice(lines(PLAIN[name]))
        return word(r)

    return SLOT.sub(one, text)


TAILS = (
    " ({code})", " ({noun})", " ({adj} {noun})", " ({num})", " in {adj}", " in {adj} {noun}",
    " to the {noun}", " to {place}", " to {person}", " from {place}", " from the {noun}",
    " with the {noun}", " without {noun}", " on the {noun}", " by {person}", " of the {noun}",
    " as a {noun}", " for {person}'s {noun}", ": {noun}", ": {noun}, {noun} and {noun}",
    ": {noun} & {noun}", ": {noun}, {noun}", " - {noun} {noun}", ", {adj} ones", " and {noun} {noun}",
    " the {adj} way", " for the {num} {noun}s", " {num} x {noun}", " no. {num}", " {num}/{num}",
)  # fmt: skip


def title(r: random.Random, kind: str = "title") -> str:
    """A task's title: kind 'do' (verb phrase), 'thing' (noun phrase) or 'title' (either)."""
    x = r.random()
    if x < 0.05:  # words without sense: copying must not lean on meaning
        text = " ".join(word(r) for _ in range(r.randint(1, 5)))
    else:
        if kind == "title":
            kind = "do" if r.random() < 0.6 else "thing"
        text = fill_words(r.choice(lines(kind)), r)
        if x < 0.28:  # exchange a word or two
            parts = text.split(" ")
            for _ in range(r.randint(1, 2)):
                parts[r.randrange(1 if kind == "do" and len(parts) > 1 else 0, len(parts))] = word(
                    r
                )
            text = " ".join(parts)
        if 0.88 < x <= 0.93:  # what is easily taken for the end of the title
            text += fill_words(r.choice(TAILS), r)
        if x > 0.93:
            text += r.choice([" and ", " & ", " + ", " / ", " with ", " for ", " at ", " - ", ", "])
            text += fill_words(r.choice(lines("thing")), r) if r.random() < 0.5 else word(r)
    text = text.replace('"', "").replace("\\", "").strip(" .,;:!?")
    y = r.random()
    if y < 0.45:
        text = text.lower()
    elif y < 0.60:
        text = text[:1].upper() + text[1:]
    elif y < 0.63:
        text = text.title()
    elif y < 0.64:
        text = text.upper()
    return text or "milk"


def iso(r: random.Random) -> str:
    return (dt.date(2025, 1, 1) + dt.timedelta(days=r.randrange(1100))).isoformat()


def fill_date(text: str, values: dict[str, str]) -> str:
    return SLOT.sub(lambda m: values.get(m[1], m[0]), text)


EVERYDAY = (
    "today | today", "tomorrow | tomorrow", "tonight | tonight", "on {weekday} | {weekday}",
    "by {weekday} | {weekday}", "{weekday} | {weekday}", "next {weekday} | next {weekday}",
    "next week | next week", "this week | this week", "this weekend | this weekend",
    "next month | next month", "tomorrow morning | tomorrow morning", "this evening | this evening",
    "this afternoon | this afternoon", "tomorrow evening | tomorrow evening",
    "by tomorrow | tomorrow", "by tonight | tonight", "for tomorrow | tomorrow",
    "at {hour} | at {hour}", "by {hour} | {hour}", "tomorrow at {hour} | tomorrow at {hour}",
    "on {month} {day} | {month} {day}", "on the {ordinal} | the {ordinal}", "on {iso} | {iso}",
    "by {iso} | {iso}", "in {n} days | in {n} days", "by the end of the week | the end of the week",
    "before {weekday} | before {weekday}", "in an hour | in an hour",
)  # fmt: skip


def date(r: random.Random) -> tuple[str, str]:
    """(phrase as it stands in a sentence, bare form)."""
    common = r.random() < COMMON_DATES  # a few dates are most of what people say
    line = r.choice(EVERYDAY if common else lines("dates"))
    full, bare = (part.strip() for part in line.split("|"))
    day = r.randint(1, 31)
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(day % 10 if day not in (11, 12, 13) else 0, "th")
    hour = r.randint(1, 12)
    weekday, month = r.choice(WEEKDAYS), r.choice(MONTHS)
    if r.random() < 0.15:
        weekday = weekday[:3]
    if r.random() < 0.3:
        month = month[:3]
    if r.random() < 0.45:
        weekday, month = weekday.capitalize(), month.capitalize()
    values = {
        "weekday": weekday,
        "month": month,
        "day": str(day),
        "ordinal": f"{day}{suffix}",
        "n": r.choice([str(r.randint(2, 30)), "two", "three", "four", "a couple of", "ten"]),
        "year": str(r.randint(2026, 2028)),
        "iso": iso(r),
        "hour": r.choice(
            [f"{hour}", f"{hour}pm", f"{hour}am", f"{hour} pm", f"{hour}:30", f"{hour + 11}:00",
             "noon", f"{hour} o'clock", f"{hour}.30pm"]
        ),
    }  # fmt: skip
    return fill_date(full, values), fill_date(bare, values)


NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
           "fifteen sixteen seventeen eighteen nineteen twenty").split()  # fmt: skip
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth".split()


def spelled(n: int, r: random.Random) -> str:
    """A number below 10,000 as it is dictated: "three hundred and twelve", "three one two"."""
    if n > 99 and r.random() < 0.3:
        zero = r.choice(["oh", "zero", "o", "oh"])
        return " ".join(NUMBERS[int(digit)] if digit != "0" else zero for digit in str(n))
    if 20 < n < 100:
        tens, ones = divmod(n, 10)
        return TENS[tens - 2] + (r.choice([" ", "-"]) + NUMBERS[ones] if ones else "")
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if n >= unit:
            much, rest = divmod(n, unit)
            link = r.choice([" and ", " and ", " "]) if rest < 100 else " "
            return f"{spelled(much, r)} {name}" + (link + spelled(rest, r) if rest else "")
    return NUMBERS[n]


ID_FORMS = (
    ["{n}"] * 8 + ["#{n}"] * 5 + ["task {n}"] * 8
    + ["task #{n}", "number {n}", "no. {n}", "no {n}", "task number {n}", "task no. {n}", "id {n}",
       "task id {n}", "item {n}", "the task {n}", "Task {n}", "nr {n}", "nr. {n}", "task nr {n}",
       "ticket {n}", "entry {n}", "todo {n}", "to-do {n}", "#{n}", "the one with id {n}",
       "TASK {n}", "task-{n}", "T{n}", "task {n}", "tsk {n}", "the task numbered {n}",
       "number #{n}", "my task {n}", "that task {n}", "job {n}"]
)  # fmt: skip


def number(r: random.Random) -> int:
    return r.randint(*r.choice([(1, 9), (10, 99), (10, 99), (10, 99), (100, 999), (100, 999),
                                (1000, 9999), (10000, 99999)]))  # fmt: skip


def numbers(count: int, r: random.Random) -> list[int]:
    """Different ids of a list's tasks: far apart or, as most stores have them, close together, so
    that one digit decides; mostly in their order."""
    if r.random() < 0.4:
        found = {number(r) for _ in range(count)}
        while len(found) < count:
            found.add(number(r))
        out = sorted(found)
    else:
        step, n = r.choice([1, 3, 10, 40]), number(r)
        out = []
        for _ in range(count):
            out.append(n)
            n += r.randint(1, step)
    if r.random() < 0.2:
        r.shuffle(out)
    return out


def titles(count: int, r: random.Random) -> list[str]:
    """Titles of a list's tasks; some lists begin many of them with the same word, some have many
    that people call by other words, or of which there are stories."""
    x = r.random()
    known = sorted(synonyms()) if x < 0.25 else list(stories()) if x < 0.5 else []
    out = [r.choice(known) if known and r.random() < 0.7 else title(r) for _ in range(count)]
    if known:
        return [t[:1].upper() + t[1:] if r.random() < 0.3 else t for t in dict.fromkeys(out)]
    if count > 1 and r.random() < 0.25:
        first = out[0].split(" ")[0]
        out = [
            " ".join([first, *t.split(" ")[1:]]) if " " in t and r.random() < 0.7 else t
            for t in out
        ]
    return out


# --- tools ------------------------------------------------------------------------------------


@dataclass
class Action:
    """A call in canonical form: tool 'create' …, args with canonical keys; ids are what the
    conversation shows (int, or str under a string-id schema)."""

    tool: str
    args: dict


@dataclass
class Prop:
    key: str
    name: str
    kind: str = "string"
    enum: dict[str, str] | None = None  # canonical value -> offered value
    required: bool = False
    nullable: bool = False


RENAMES = {
    "due": ["due_date", "deadline", "when", "date", "due_on", "by"],
    "title": ["name", "summary", "text", "task", "description", "content"],
    "task_id": ["id", "taskId", "task", "number", "task_number"],
    "priority": ["prio", "importance", "level", "urgency"],
    "status": ["state", "progress", "stage"],
}
TOOL_RENAMES = {
    "create": ["add_task", "new_task", "task_create", "createTask", "add_todo"],
    "update": ["edit_task", "change_task", "task_update", "modify_task"],
    "complete": ["finish_task", "mark_done", "task_complete", "close_task", "completeTask"],
    "list": ["get_tasks", "show_tasks", "task_list", "list_todos", "find_tasks"],
    "delete": ["remove_task", "task_delete", "drop_task", "deleteTask"],
}
FOREIGN = {
    "get_weather": ["city", "unit"],
    "send_email": ["to", "subject", "body"],
    "search_web": ["query"],
    "play_music": ["artist", "track"],
    "calculate": ["expression"],
    "book_flight": ["from", "to", "date"],
    "translate": ["text", "language"],
    "create_note": ["text"],
    "get_stock_price": ["symbol"],
    "set_alarm": ["time"],
    "create_event": ["title", "start", "end"],
    "read_file": ["path"],
    "list_files": ["folder"],
    "delete_file": ["path"],
    "get_user": ["user_id"],
    "update_profile": ["name", "email"],
}
BASE = {
    "create": ["title", "priority", "due"],
    "update": ["task_id", "title", "priority", "status", "due"],
    "complete": ["task_id"],
    "list": ["status", "priority"],
    "delete": ["task_id"],
}


class Toolbox:
    """The tools one conversation offers: names, properties and how values are written."""

    def __init__(self, r: random.Random, need: set[str] | None = None, plain: bool | None = None):
        self.r = r
        plain = r.random() < 0.38 if plain is None else plain
        vary = lambda p: not plain and r.random() < p  # noqa: E731
        self.strict = vary(0.3)
        self.string_ids = vary(0.17)
        self.id_style = r.choice(["TASK-{:04d}", "TASK-{:04d}", "T-{}", "task_{}", "{}", "TSK{:03d}",
                                  "id-{:05d}"])  # fmt: skip
        renames = {k: r.choice(v) for k, v in RENAMES.items() if vary(0.22)}
        if len(set(renames.values())) < len(renames):
            renames.pop("title", None)
            renames.pop("due", None)
        priorities = {p: p for p in PRIORITIES}
        statuses = {s: s for s in STATUSES}
        if vary(0.05):
            priorities["medium"] = "normal"
        if vary(0.06):
            statuses = dict(zip(STATUSES, r.choice([("todo", "doing", "done"),
                ("open", "active", "closed"), ("PENDING", "IN_PROGRESS", "COMPLETED")])))  # fmt: skip
        free = vary(0.1)  # enums given as free text
        tools = list(BASE)
        x = r.random()
        if x < 0.33:
            keep = set(r.sample(tools, r.randint(1, 4))) | (need or set())
            tools = [t for t in tools if t in keep]
        if vary(0.3):
            r.shuffle(tools)
        self.names = {t: r.choice(TOOL_RENAMES[t]) if vary(0.07) else f"{t}_task" + "s" * (t == "list")
                      for t in tools}  # fmt: skip
        self.props: dict[str, list[Prop]] = {}
        shuffled = vary(0.5)
        backwards = shuffled and r.random() < 0.4
        default_shown = r.random() < 0.6
        for tool in tools:
            keys = list(BASE[tool])
            if tool in ("create", "update") and vary(0.05):
                keys.remove("due")
            if backwards:
                keys.reverse()
            elif shuffled:
                r.shuffle(keys)
            self.props[tool] = []
            for key in keys:
                required = key in ("task_id", "title") and (tool != "update" or key == "task_id")
                p = Prop(key, renames.get(key, key), required=required)
                if key == "task_id" and not self.string_ids:
                    p.kind = "integer"
                if key in ("priority", "status") and not free:
                    p.enum = priorities if key == "priority" else statuses
                if self.strict and not required:
                    p.required = True
                    # function_tool shows a defaulted priority as required and not nullable.
                    p.nullable = not (tool == "create" and key == "priority" and default_shown)
                elif vary(0.1) and not required:
                    p.nullable = True
                self.props[tool].append(p)
        self.values = {"priority": priorities, "status": statuses}
        self.schemas = [self._schema(t) for t in tools]
        if vary(0.25):
            for name in r.sample(sorted(FOREIGN), r.randint(1, 2)):
                self.schemas.insert(r.randint(0, len(self.schemas)), _foreign(name))

    def _schema(self, tool: str) -> dict:
        properties = {}
        for p in self.props[tool]:
            spec: dict = {"type": p.kind}
            if p.enum:
                spec["enum"] = list(p.enum.values())
            properties[p.name] = {"anyOf": [spec, {"type": "null"}]} if p.nullable else spec
        return {"type": "function", "function": {"name": self.names[tool], "parameters": {
            "type": "object", "properties": properties,
            "required": [p.name for p in self.props[tool] if p.required]}}}  # fmt: skip

    def offers(self, *tools: str) -> bool:
        return all(t in self.names for t in tools)

    def id(self, n: int) -> int | str:
        return self.id_style.format(n) if self.string_ids else n

    def arguments(self, action: Action) -> dict:
        """The arguments as the offered schema has them written: in its order, but those that are
        required first, which is the order that llama.cpp's grammar allows."""
        out = {}
        for p in sorted(self.props[action.tool], key=lambda p: not p.required):
            value = action.args.get(p.key)
            if value is None:
                if not (self.strict and p.required):
                    continue
                if not p.nullable:
                    value = "medium"
            if value is not None and p.key in self.values:
                value = self.values[p.key].get(value, value)
            out[p.name] = value
        return out

    def call(self, action: Action, n: int, args: dict | None = None) -> dict:
        """The call of an action; args: in place of the right ones."""
        args = self.arguments(action) if args is None else args
        return {"id": f"call_{n}", "type": "function", "function": {
            "name": self.names[action.tool],
            "arguments": json.dumps(args, ensure_ascii=False)}}  # fmt: skip


def _foreign(name: str) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object",
            "properties": {p: {"type": "string"} for p in FOREIGN[name]},
            "required": FOREIGN[name][:1]}}}  # fmt: skip


# --- requests ---------------------------------------------------------------------------------

GREETINGS = (
    "hi|hello|hey|hi there|hey there|hello there|good morning|good afternoon|good evening|hiya|"
    "howdy|hi again|hello again|morning|evening|greetings|yo|dear all|hey you|hallo"
).split("|")
OPENERS = GREETINGS + (
    "ok|okay|ok so|so|right|right then|um|alright|well|listen|hey assistant|please|pls|quick one|"
    "one more thing|also|and|oh|oh and|ah|actually|now|next|first|hmm|real quick|quickly|btw|sorry|"
    "dear assistant|hey so|just|hey can you|could you please|can you|could you|"
    "would you|would you please|can u|i'd like you to|i want you to|i need you to|please could you|"
    "kindly|be a dear and|go ahead and|let's|lets|you can|you may|when you get a chance"
).split("|")
THANKS = (
    "thanks|thank you|thx|cheers|many thanks|thanks a lot|ta|thanks!|thank you!|cheers!|thx!|"
    "thank you so much|thanks so much|thanks again|thanks a bunch|much obliged|ty|tysm"
).split("|")
CLOSERS = THANKS + (
    "please|pls|ok?|okay?|please!|:)|!|thanks in advance|will you?|would you?|for me|"
    "for me please|now|if you can|if possible|and that's it|that's all|got it?|lol|haha|"
    "you're a star|appreciate it|kind regards|...|!!|tks|thank u|please and thank you|"
    "much appreciated|have a nice day"
).split("|")
ASIDES = (
    "what a day|sorry for the late message|my coffee is cold already|it's been one of those weeks|"
    "the kids are finally asleep|i just got out of a meeting|hope you're well|i'm on the train|"
    "typing from my phone|long story|my boss asked|i nearly forgot|before i forget|it's raining again|"
    "the client called this morning|so much going on|i was talking to sam about it|as discussed|"
    "don't ask why|you know how it is|we had a good weekend|my memory is terrible|i'm so behind|"
    "finally some good news|i have five minutes|the office is loud today|as i said yesterday|"
    "ugh|great news|not my best day|my head is full|just got home|everyone is on holiday"
).split("|")


def context(r: random.Random) -> str:
    """An irrelevant remark, complete with its words."""
    if r.random() < 0.3:
        return r.choice(ASIDES)
    text = r.choice(lines("contexts"))
    text = text.replace("{note}", title(r).replace("{", "").replace("}", ""))
    return fill_words(text, r)


def misspell(text: str, r: random.Random) -> str:
    """One slip of the finger in a word of the frame; slots stay whole."""
    places = [m for m in re.finditer(r"(?<![{\w])[A-Za-z]{4,}(?![}\w])", text)]
    if not places:
        return text
    m = r.choice(places)
    w = m[0]
    i = r.randrange(1, len(w) - 1)
    w = r.choice([w[:i] + w[i + 1 :], w[:i] + w[i] + w[i:], w[:i] + w[i + 1] + w[i] + w[i + 2 :],
                  w[:i] + r.choice("abcdefghijklmnoprstuvwy") + w[i + 1 :]])  # fmt: skip
    return text[: m.start()] + w + text[m.end() :]


def slips(text: str, r: random.Random) -> str:
    """Many slips of the finger: one in about thirty letters, seldom twice as many."""
    letters = r.choice([30, 30, 30, 15])
    count = sum(r.random() < 1 / letters for c in SLOT.sub("", text) if c.isalpha())
    for _ in range(count):
        text = misspell(text, r)
    return text


# Words that stand for each other in a frame without changing what is asked.
SAME = [
    group.split("|")
    for group in (
        "task|item|entry|to-do|todo|ticket|job",
        "tasks|items|entries|to-dos|todos|jobs",
        "my list|the list|my to-do list|my todo list|the task list|our list",
        "delete|remove|erase|scrap|bin",
        "deleted|removed|erased|scrapped|binned",
        "done|finished|completed",
        "please|pls|plz|kindly",
        "i've|ive",
        "i am|i'm|im",
        "it is|it's",
        "do not|don't|dont",
        "cannot|can't|cant",
        "because|cos|bc",
        "any more|any longer|anymore",
        "priority|prio|importance",
        "deadline|due date",
        "should be|ought to be|needs to be|has to be|must be",
        "can you|could you|will you|would you|can u",
    )
]
INSTEAD = {word: group for group in SAME for word in group}
SWAPPED = re.compile(
    rf"(?i)(?<![\w{{-])(?:{'|'.join(sorted(map(re.escape, INSTEAD), key=len, reverse=True))})(?![\w}}-])"
)


def reword(frame: str, r: random.Random) -> str:
    """One word of a frame in another way."""
    places = list(SWAPPED.finditer(frame))
    if not places:
        return frame
    m = r.choice(places)
    return frame[: m.start()] + r.choice(INSTEAD[m[0].lower()]) + frame[m.end() :]


def dress(frame: str, r: random.Random) -> str:
    """Vary a phrase frame: words, case, slips, punctuation, greetings, irrelevant remarks."""
    for p in (0.22, 0.4):
        if r.random() >= p:
            break
        frame = reword(frame, r)
    careless = r.random() < 0.25
    x = r.random()
    if x < (0.45 if careless else 0.18):
        opener = r.choice(GREETINGS if careless and r.random() < 0.7 else OPENERS)
        lower = frame[:1].lower() + frame[1:] if not frame.startswith("I ") else frame
        frame = f"{opener}{r.choice([',', '', '', ' -', '!', '...', ',', '.'])} {lower}"
    elif x < (0.50 if careless else 0.30):
        aside = context(r)
        if r.random() < 0.15:  # somebody who has more to tell
            aside = f"{aside}{r.choice(['. ', ', ', ' and ', '... '])}{context(r)}"
        frame = f"{aside}{r.choice(['.', ',', '...', ' -', '!', ' so', ';'])} {frame}"
    x = r.random()
    if x < (0.45 if careless else 0.13):
        closer = r.choice(THANKS if careless and r.random() < 0.7 else CLOSERS)
        closer = closer.capitalize() if r.random() < 0.3 else closer
        frame = f"{frame.rstrip(' .')}{r.choice([' ', ', ', '. ', ' '])}{closer}"
    elif x < (0.50 if careless else 0.25):
        link = r.choice([". ", ", ", " - ", "; ", ", because ", ", since ", "... "])
        frame = f"{frame.rstrip(' .')}{link}{context(r)}"
    elif x < (0.60 if careless else 0.42):
        frame = frame.rstrip(" .!") + "." if not frame.endswith("?") else frame
    if careless:
        frame = slips(frame, r)
    elif r.random() < 0.14:
        frame = misspell(frame, r)
    x = r.random()
    if x < 0.30:
        frame = re.sub(r"(?<!\{)\b[A-Z]", lambda m: m[0].lower(), frame)
    elif x < 0.50:
        frame = frame[:1].upper() + frame[1:]
    elif x < 0.56:
        frame = frame.replace("'", "")
    elif x < 0.64:
        frame = re.sub(r"[.,!?](?=\s|$)", "", frame)
    return frame


@cache
def frames(name: str) -> tuple[tuple[str, str], ...]:
    """(frame, meaning after =>) pairs of a phrase file."""
    out = []
    for line in lines(name):
        frame, _, meaning = line.partition("=>")
        out.append((frame.strip(), meaning.strip()))
    return tuple(out)


PLAINLY = 0.12  # share of the requests for one call that are asked for in the plainest way
COMMON_DATES = 0.3


@cache
def plain(tool: str) -> tuple[tuple[str, str], ...]:
    """The plainest (frame, meaning) pairs for a tool."""
    pairs = (line.split("|", 1) for line in lines("plain"))
    found = [rest.partition("=>")[::2] for name, rest in pairs if name.strip() == tool]
    return tuple((frame.strip(), meaning.strip()) for frame, meaning in found)


def parse_meaning(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in re.split(r"[,;\s]+", text) if "=" in part)


def quote(text: str, r: random.Random, p: float = 0.1) -> str:
    x = r.random()
    if x < p:
        return f'"{text}"'
    if x < 1.6 * p and "'" not in text:
        return f"'{text}'"
    if x < 1.8 * p:
        return f"“{text}”"
    return text


@dataclass
class Known:
    """A task of the conversation as its results showed it."""

    n: int
    title: str
    priority: str = "medium"
    status: str = "pending"
    due: str | None = None


@dataclass
class World:
    """What earlier turns established."""

    box: Toolbox
    tasks: list[Known] = field(default_factory=list)
    listed: list[Known] = field(default_factory=list)  # the last list shown, in its order
    last: Known | None = None  # what "it" means
    made: list[Known] = field(default_factory=list)  # created one after another, nothing between
    did: list[Action] = field(default_factory=list)  # what the last request asked for, of one kind
    numbered: bool = False  # the last list was told as "1. ... 2. ..."
    calls: int = 0


def numbered_as(id_: int | str, r: random.Random) -> str:
    return r.choice(["{}", "#{}", "task {}", "{}"]).format(id_)


class Slots:
    """Values for the slots of one request, remembered by name so that meanings can use them."""

    def __init__(self, r: random.Random, world: World, refer: bool):
        self.r, self.world, self.refer = r, world, refer
        self.values: dict[str, object] = {}
        self.texts: dict[str, str] = {}

    def text(self, name: str, index: str) -> str:
        """What stands for a slot; the same wherever a phrase names it again."""
        key = name + index
        if key not in self.texts:
            self.texts[key] = self._text(name, key)
        return self.texts[key]

    def _text(self, name: str, key: str) -> str:
        r = self.r
        if name in ("do", "thing", "title"):
            value = title(r, name)
            self.values[key] = value
            return quote(value, r, 0.18 if name == "title" else 0.05)
        if name in ("due", "date"):
            full, bare = date(r)
            self.values[key] = bare
            return full if name == "due" else bare
        if name == "prio":
            free = [p for p in PRIORITIES if p not in self.texts.values()]
            self.values[key] = r.choice(free or PRIORITIES)
            return str(self.values[key])
        if name == "oldprio":  # what it was, or is not to be
            return r.choice([p for p in PRIORITIES if p not in self.values.values()])
        if name == "olddate":
            return date(r)[1]
        if name == "id":
            return self.reference(key)
        if name == "n":  # a number that nothing is to happen to
            return numbered_as(self.world.box.id(number(r)), r)
        if name == "note":
            return title(r)
        return fill_words("{" + name + "}", r)

    def reference(self, key: str) -> str:
        r, w = self.r, self.world
        if self.refer and (w.tasks or w.last):
            text, known = refer(r, w)
            if known is not None:
                self.values[key] = w.box.id(known.n)
                return text
        n = r.choice(w.tasks).n if w.tasks and r.random() < 0.25 else number(r)
        shown = w.box.id(n)
        self.values[key] = shown
        if isinstance(shown, str) and not shown.isdigit():
            x = r.random()
            return shown if x < 0.7 else f"task {shown}" if x < 0.9 else f"#{shown}"
        if not isinstance(shown, str) and n < 10_000 and r.random() < 0.12:
            return r.choice(["task {}", "number {}", "{}", "task {}"]).format(spelled(n, r))
        if not isinstance(shown, str) and n > 999 and r.random() < 0.06:
            return r.choice(["task {}", "number {}", "{}", "no. {}"]).format(f"{n:,}")
        return r.choice(ID_FORMS).format(n=n)


# Words of a title that do not name it: small words, and words with a meaning of their own here.
COMMON = set(
    "with from that this about into over before after until your their them than then some more "
    "again back down done finished started cancelled task tasks list urgent high medium normal "
    "pending progress completed today tomorrow tonight last first second third".split()
    + WEEKDAYS + MONTHS
)  # fmt: skip


def keyword(known: Known, others: list[Known], r: random.Random, bare: bool = False) -> str | None:
    """A word of the title that no other title has. With `bare` it will stand without "the … one":
    then it is not the first of several words, which is often a verb."""
    parts = known.title.split()
    words = [w.strip("'\"().,:;!?") for w in (parts[1:] or parts if bare else parts)]
    taken = " ".join(o.title.lower() for o in others if o is not known)
    words = [w for w in words if telling(w) and w.lower() not in COMMON and w.lower() not in taken]
    if (named := synonyms().get(known.title.lower())) and r.random() < 0.6:
        named = [n for n in named if not set(n.split()) & set(taken.split())]
        if named:
            return r.choice(named)
    first = parts[0].lower()
    if first in PAST and first not in taken and len(parts) > 1 and r.random() < 0.08:
        return gerund(first)
    if not words:
        return None
    i = r.randrange(len(words))
    x = r.random()
    if x < 0.10 and i + 1 < len(words) and f"{words[i]} {words[i + 1]}" in known.title:
        return f"{words[i]} {words[i + 1]}"
    return inflected(words[i]) if x > 0.92 else words[i]


def gerund(verb: str) -> str:
    """The -ing form of a verb of PAST."""
    if verb.endswith("e") and not verb.endswith("ee"):
        return verb[:-1] + "ing"
    if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnpt]|submit", verb):
        return verb + verb[-1] + "ing"
    return verb + "ing"


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """Other words for what a title is about, by the title in small letters."""
    found = {}
    for line in lines("synonyms"):
        text, *others = (part.strip() for part in line.split("|"))
        found[text.lower()] = tuple(other for other in others if other)
    return found


@cache
def stories() -> dict[str, dict[str, tuple[str, ...]]]:
    """What people say of a task in words of their own, by its title in small letters: "+" that it
    is done, ">" that it is due on another {date}, "-" from which nothing follows for the list."""
    found = {}
    for line in lines("stories"):
        text, *told = (part.strip() for part in line.split("|"))
        found[text.lower()] = {
            kind: tuple(t[1:].strip() for t in told if t[0] == kind) for kind in "+>-"
        }
    return found


def story(r: random.Random, world: World, done: bool = False) -> tuple[str, list[Action]] | None:
    """What somebody tells of a task that earlier turns showed, and the call that follows from it,
    if any; None where there is no such task or no such tool. done: only that it is done."""
    known = [k for k in world.tasks if k.title.lower() in stories()]
    if not known:
        return None
    one = r.choice(known)
    kind = "+" if done else r.choice("+++++>>---")
    text = r.choice(stories()[one.title.lower()][kind])
    slots = Slots(r, world, False)
    if kind != "-" and (one.status == "completed" or not world.box.offers(STORIES[kind])):
        return None
    text = dress(text, r) if r.random() < 0.5 else text
    text = SLOT.sub(lambda m: slots.text(m[1], m[2]), text)
    n = world.box.id(one.n)
    if not done and r.random() < 0.15:
        name = r.choice(["task {}", "{}", "#{}", "number {}", "Task {}"]).format(n)
        text = name + r.choice([": ", ": ", " - ", ", "]) + text
    if kind == "-":
        return text, []
    return text, [Action(STORIES[kind], {"task_id": n, **gather({}, slots)})]


STORIES = {"+": "complete", ">": "update"}


def inflected(word: str) -> str:
    """Another form of a title's word, as people use it who do not quote: "cats" for "cat"."""
    if not word.isalpha() or not word.islower() or len(word) < 4:
        return word
    if word.endswith("ing") and len(word) > 6:
        return word[:-3]
    if word.endswith("ss"):
        return word
    return word[:-1] if word.endswith("s") else word + "s"


def distinct(listed: list[Known]) -> list[tuple[str, Known]]:
    """Words for the tasks of a list that alone have a priority, a status, a date or its month, or
    are the only one with a date or without."""
    out = []
    # Where some dates are in words and others are not, nobody can say which are the same.
    written = [bool(re.fullmatch(r"\d{4}-\d\d-\d\d", k.due)) for k in listed if k.due]
    dated = len(set(written)) < 2
    in_words = dated and not all(written)
    for known in listed:
        if sum(k.priority == known.priority for k in listed) == 1:
            name = known.priority
            out += [(f"the {name} priority one", known), (f"the one with {name} priority", known),
                    (f"whichever is {name} priority", known), (f"the {name} one", known)]  # fmt: skip
            if name == "urgent":
                out += [("the only urgent one", known), ("whatever is urgent", known)]
        if [k.status for k in listed].count(known.status) == 1:
            out += [(text, known) for text in BY_STATUS[known.status]]
        if not dated:
            continue
        if known.due and sum(k.due == known.due for k in listed) == 1:
            out += [(f"the one due {known.due}", known), (f"the {known.due} one", known),
                    (f"the thing due on {known.due}", known)]  # fmt: skip
            if not in_words:
                month, day = MONTHS[int(known.due[5:7]) - 1], int(known.due[8:])
                same = [k for k in listed if k.due and k.due[5:7] == known.due[5:7]]
                out += [
                    (f"the one due {month} {day}", known),
                    (f"the one for {day} {month}", known),
                ]
                if len(same) == 1:
                    out += [(f"the {month} one", known), (f"the one due in {month}", known)]
        if len(listed) > 1 and sum((k.due is None) == (known.due is None) for k in listed) == 1:
            out += [
                (text, known)
                for text in (
                    ("the one with a due date", "the one with a deadline", "the dated one")
                    if known.due
                    else ("the one without a due date", "the one with no date", "the undated one",
                          "whichever has no date")
                )
            ]  # fmt: skip
    return out


BY_STATUS = {
    "in_progress": ["the one in progress", "the one that is in progress", "the started one",
                    "the one i'm in the middle of", "the one under way"],
    "completed": ["the completed one", "the finished one", "the one that is completed",
                  "the one that's already done"],
    "pending": ["the pending one", "the one that is still pending", "the one not started yet"],
}  # fmt: skip


def places(w: World, i: int) -> list[str]:
    """More ways to point at place `i` of the last list, counted from 0."""
    count = len(w.listed)
    n = i + 1
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(n, "th") if n < 11 else "th"
    out = [f"the {n}{suffix} one", f"the {n}{suffix} on the list", f"the {n}{suffix} of those"]
    if all(k.n != n for k in w.tasks):  # else the number would be a task's own
        out += [f"no {n} on there", f"number {n} on that list", f"the one in position {n}"]
        if n < 8:
            out += [f"number {NUMBERS[n]} on there", f"number {NUMBERS[n]} of those"]
        if w.numbered:
            out += [f"{n}", f"number {n}", f"no. {n}", f"{n}", f"{n}"]
    if i == 0:
        out += ["top one", "first one", "the one at the top"]
    if n == count:
        out += ["bottom one", "last one", "the one at the bottom", "the last of them"]
    if n == count - 1 and count > 3:
        out += ["the second to last one", "the last but one", "the second-to-last",
                "the penultimate one", "the next to last one"]  # fmt: skip
    if count == 2:
        out += [["the former", "the first of those two", "the first of the two"],
                ["the latter", "the second of those two", "the second of the two"]][i]  # fmt: skip
    if count == 3 and i == 1:
        out += ["the middle one", "the one in the middle"]
    return out


def made(count: int, i: int) -> list[str]:
    """Ways to point at task `i`, counted from 0, of `count` that were just created."""
    names = ORDINALS
    many = {2: "two", 3: "three", 4: "four", 5: "five"}[count]
    out = [f"the {names[i]} one", f"the {names[i]} of those", f"the {names[i]} of those {many}",
           f"the {names[i]} of the {many}", f"the {names[i]} one i added", f"the {names[i]} task"]  # fmt: skip
    if count == 2:
        out += [["the former", "the earlier one", "the one before that", "the other one"],
                ["the latter", "the later one", "the one i added last", "the newer one"]][i]  # fmt: skip
    return out


def refer(r: random.Random, w: World) -> tuple[str, Known | None]:
    """Words that point at a task of the conversation."""
    choices = []
    if w.last is not None:
        choices += ["it"] * 4
    if len(w.listed) > 1:
        choices += ["ordinal"] * 3 + ["property"] * 2
    if len(w.listed) == 2 and w.last in w.listed:
        choices += ["other"] * 2
    if len(w.made) > 1 and not w.listed:
        choices += ["made"] * 3
    if w.tasks:
        choices += ["keyword"] * 3 + ["title"] * 2
    kind = r.choice(choices) if choices else None
    if kind == "made":
        i = r.randrange(len(w.made))
        return r.choice(made(len(w.made), i)), w.made[i]
    if kind == "it":
        return r.choice(
            ["it", "it", "it", "that", "that one", "this one", "this", "that task", "the task",
             "this task", "the new one", "the one i just added", "the last task", "the same task",
             "the one you just mentioned", "that last one", "the task from before", "the thing"]
        ), w.last  # fmt: skip
    if kind == "other":
        other = w.listed[w.listed[0] is w.last]
        if r.random() < 0.3 and (k := keyword(w.last, w.tasks, r)):
            return f"the other one, not the {k} one,", other
        return r.choice(["the other one", "the other", "the other task", "that other one"]), other
    if kind == "property":
        found = distinct(w.listed)
        if found:
            return r.choice(found)
        kind = "ordinal"
    if kind == "ordinal":
        i = r.randrange(len(w.listed))
        if r.random() < 0.3:
            return r.choice(places(w, i)), w.listed[i]
        forms = ORDINALS[i : i + 1]
        if i == len(w.listed) - 1:
            forms += ["last", "last", "bottom"]
        if i == 0:
            forms += ["top", "very first"]
        form = r.choice(forms) if forms else "last"
        if not forms:
            i = len(w.listed) - 1
        return (
            f"the {form} {r.choice(['one', 'one', 'one', 'task', 'item', 'of those', 'on the list'])}",
            w.listed[i],
        )
    pool = w.listed if w.listed and r.random() < 0.7 else w.tasks
    if kind == "keyword":
        known = r.choice(pool)
        if r.random() < 0.12 and (k := keyword(known, w.tasks, r, bare=True)):
            return k, known  # "Moreau can be medium"
        k = keyword(known, w.tasks, r)
        if k:
            if r.random() < 0.5:
                k = k.lower()
            form = "the {k} one" if r.random() < 0.1 else r.choice(lines("refer"))
            return form.replace("{k}", k), known
    if kind in ("title", "keyword") and pool:
        known = r.choice(pool)
        text = known.title.lower() if r.random() < 0.4 else known.title
        return r.choice(
            [text, text, f'"{text}"', f"the {text} task", f"the {text} one", f"the task '{text}'"]
        ), known
    return "it", None


def prepared(name: str, r: random.Random, world: World, refer_p: float) -> tuple[str, dict, Slots]:
    """(request, meaning, slots) from one phrase of the file `name`."""
    frame, meaning = r.choice(
        plain(name) if name in BASE and r.random() < PLAINLY else frames(name)
    )
    frame = dress(frame, r)
    slots = Slots(r, world, r.random() < refer_p)
    text = SLOT.sub(lambda m: slots.text(m[1], m[2]), frame)
    return text, parse_meaning(meaning), slots


def gather(meaning: dict, slots: Slots) -> dict:
    """Canonical arguments from slot values and the phrase's own meaning."""
    v = slots.values
    out: dict = {}
    for key in ("do", "thing", "title"):
        if key in v:
            out["title"] = v[key]
    for key in ("date", "due"):
        if key in v:
            out["due"] = v[key]
    if "prio" in v:
        out["priority"] = v["prio"]
    if "id" in v:
        out["task_id"] = v["id"]
    out.update({k: x for k, x in meaning.items() if k in ("priority", "status", "due")})
    return out


def single(
    tool: str, r: random.Random, world: World, refer_p: float, phrases: str = ""
) -> tuple[str, list[Action]]:
    """A request for one call of `tool`, over and again until its meaning is complete; phrases: the
    file to take it from, if not the tool's own."""
    while True:
        text, meaning, slots = prepared(phrases or tool, r, world, refer_p)
        args = gather(meaning, slots)
        if tool == "create" and "title" not in args:
            continue
        if tool != "create" and tool != "list" and "task_id" not in args:
            continue
        if tool == "update" and len(args) < 2:
            continue
        if tool in ("complete", "delete"):
            args = {"task_id": args["task_id"]}
        return text, [Action(tool, args)]


# Past and participle of verbs that begin titles: "feed the fish" is done when the fish is fed.
PAST = {
    verb: (past, participle or past)
    for verb, past, participle in (
        [*entry.split(), ""][:3]
        for entry in (
            "feed fed|buy bought|pay paid|book booked|order ordered|write wrote written|"
            "check checked|fix fixed|send sent|clean cleaned|update updated|renew renewed|"
            "find found|cancel cancelled|call called|sign signed|collect collected|"
            "return returned|finish finished|change changed|translate translated|print printed|"
            "paint painted|wash washed|test tested|swap swapped|submit submitted|scan scanned|"
            "replace replaced|post posted|pack packed|clear cleared|trim trimmed|sharpen sharpened|"
            "service serviced|sell sold|restock restocked|reserve reserved|prune pruned|"
            "oil oiled|file filed|exchange exchanged|edit edited|draft drafted|"
            "defrost defrosted|count counted|bleed bled|bake baked|water watered|mow mowed mown|"
            "walk walked|iron ironed|sweep swept|tidy tidied|wipe wiped|milk milked|groom groomed|"
            "tag tagged|measure measured|photograph photographed|prepare prepared|"
            "ring rang rung|sand sanded|hang hung|repair repaired|mend mended|polish polished|"
            "shred shredded|review reviewed|merge merged|publish published|deliver delivered"
        ).split("|")
    )
}
LINKS = set(
    "with from about into over before after for at to in on of off out up down and & + / - by "
    "through round around under back away".split()
)


def retold(known: Known, others: list[Known]) -> dict[str, str] | None:
    """{object}, {past} and {participle} for a title such as "feed the fish"; None where the title
    is of another kind or another task's title has the same object."""
    verb, *rest = known.title.lower().split()
    if rest and rest[0] in ("the", "a", "an", "my", "our", "some"):
        rest = rest[1:]
    if verb not in PAST or not 1 <= len(rest) <= 2 or LINKS & set(rest) or rest[-1] in COMMON:
        return None
    thing = " ".join(rest)
    if len(thing) < 3 or re.search(r"[^\w' -]", thing):
        return None
    if any(set(rest) & set(o.title.lower().split()) for o in others if o is not known):
        return None
    past, participle = PAST[verb]
    return {"object": thing, "past": past, "participle": participle}


@cache
def naming() -> tuple[tuple[str, str], ...]:
    """The follow-ups that say by a word which task they are about."""
    return tuple(f for f in frames("follow_up") if "{keyword}" in f[0] or "{object}" in f[0])


def follow_up(
    r: random.Random, world: World, named: bool = False
) -> tuple[str, list[Action]] | None:
    """A few words about a task that earlier turns showed, such as "sat actually" or "fish fed";
    None where the phrase drawn fits no task or no offered tool. named: with a word for it."""
    frame, meaning = r.choice(naming() if named else frames("follow_up"))
    tool, _, fixed = meaning.partition(" ")
    names = {m[1] for m in SLOT.finditer(frame)}
    words: dict[str, str] = {}
    known = world.last
    if "keyword" in names and world.tasks:
        known = r.choice(world.tasks)
        k = keyword(known, world.tasks, r, bare=True)
        if k is None:
            return None
        words["keyword"] = k.lower() if r.random() < 0.5 else k
    elif "object" in names and world.tasks:
        found = [(k, told) for k in world.tasks if (told := retold(k, world.tasks))]
        if not found:
            return None
        known, words = r.choice(found)
    if known is None or not world.box.offers(tool):
        return None
    back = parse_meaning(fixed).get("status") == "pending"
    if known.status == "completed" and tool != "delete" and not back:
        return None
    if back and known.status == "pending":
        return None
    slots = Slots(r, world, False)
    frame = dress(frame, r) if r.random() < 0.5 else frame
    text = SLOT.sub(lambda m: words.get(m[1]) or slots.text(m[1], m[2]), frame)
    args = gather(parse_meaning(fixed), slots) if tool == "update" else {}
    return text, [Action(tool, {"task_id": world.box.id(known.n), **args})]


def follow_ups(r: random.Random, world: World) -> tuple[str, list[Action]] | None:
    """Two or three of them about different tasks in one breath: "tap is fixed, sunscreen bought";
    sometimes with a new task or one with a number among them."""
    texts: list[str] = []
    actions: list[Action] = []
    wanted = r.choice([2, 2, 2, 3])
    for _ in range(12):
        if len(actions) == wanted:
            break
        x = r.random()
        if x < 0.12:
            tool = r.choice(list(BASE))
            found = single(tool, r, world, 0.0) if world.box.offers(tool) else None
        elif x < 0.4:
            found = story(r, world, done=True)
        else:
            found = follow_up(r, world, named=True)
        if not found:
            continue
        text, (action,) = found
        about = action.args.get("task_id")
        if about is not None and about in {a.args.get("task_id") for a in actions}:
            continue
        texts.append(text.rstrip(" .,!"))
        actions.append(action)
    if len(actions) < 2:
        return None
    glue = r.choice([", ", ", ", " and ", " and ", ". ", "; ", ", and ", " but ", "\n", ". And ",
                     ", also ", " - ", ". Also, "])  # fmt: skip
    return glue.join(texts) + r.choice(["", "", "", ".", "!", " please"]), actions


def pointer(r: random.Random, world: World, taken: set) -> tuple[str, int | str] | None:
    """(words, id) for a task other than those with the ids `taken`."""
    others = [k for k in world.tasks if world.box.id(k.n) not in taken]
    if others and r.random() < 0.8:
        known = r.choice(others)
        id_ = world.box.id(known.n)
        if known in world.listed and r.random() < 0.3:
            i = world.listed.index(known)
            if i < len(ORDINALS):
                ways = [f"the {ORDINALS[i]} one", f"the {ORDINALS[i]}", *places(world, i)]
                return r.choice(ways), id_
        if r.random() < 0.2:
            return r.choice([known.title, known.title.lower(), f"{id_}"]), id_
        if k := keyword(known, world.tasks, r, bare=True):
            k = k.lower() if r.random() < 0.6 else k
            form = r.choice(["{k}", "{k}", "the {k}", "the {k} one", r.choice(lines("refer"))])
            return form.replace("{k}", k), id_
        return None
    shown = world.box.id(number(r))
    if shown in taken:
        return None
    return r.choice(["{}", "task {}", "number {}", "#{}", "{}"]).format(shown), shown


def again(r: random.Random, world: World, did: list[Action]) -> tuple[str, list[Action]] | None:
    """The last request, `did`, once more for other tasks, such as "camera too" or "and the car to
    friday"; None where the phrase drawn does not fit."""
    if did[0].tool == "create":
        return None
    before, taken = did[0], {a.args.get("task_id") for a in did}
    frame, meaning = r.choice(frames("again"))
    if meaning != "same" and (
        before.tool != "update" or not before.args.keys() & {"due", "priority"}
    ):
        return None
    slots = Slots(r, world, False)
    found: dict[str, tuple[str, int | str]] = {}
    for match in SLOT.finditer(frame):
        if match[1] != "k" or match[0] in found:
            continue
        one = pointer(r, world, taken)
        if one is None:
            return None
        taken = {*taken, one[1]}
        found[match[0]] = one
    frame = dress(frame, r) if r.random() < 0.5 else frame
    text = SLOT.sub(lambda m: found[m[0]][0] if m[1] == "k" else slots.text(m[1], m[2]), frame)
    args = {k: v for k, v in before.args.items() if k != "task_id"}
    if meaning != "same":
        args = gather({}, slots)
    return text, [Action(before.tool, {"task_id": n, **args}) for _, n in found.values()]


def same_date(r: random.Random, world: World, did: list[Action]) -> tuple[str, list[Action]] | None:
    """A task of a list shall have the date or priority of another one."""
    frame, key = r.choice(frames("same_date"))
    models = [k for k in world.listed if getattr(k, key)]
    if not models or len(world.listed) < 2 or not world.box.offers("update"):
        return None
    model = r.choice(models)
    known = r.choice([k for k in world.listed if k is not model])
    k, j = (keyword(one, world.tasks, r, bare=True) for one in (known, model))
    if not k or not j or getattr(known, key) == getattr(model, key):
        return None
    frame = dress(frame, r) if r.random() < 0.5 else frame
    text = SLOT.sub(lambda m: {"k": k, "j": j}.get(m[1], m[0]), frame)
    return text, [Action("update", {"task_id": world.box.id(known.n), key: getattr(model, key)})]


def one_more(r: random.Random, world: World, did: list[Action]) -> tuple[str, list[Action]] | None:
    """Another new task after one that was just created, in few words: "also rye bread"."""
    if did[0].tool != "create":
        return None
    return single("create", r, world, 0, "more")


ELLIPTICAL = {again: 0.5, one_more: 0.35, same_date: 0.06}


def elliptical(
    r: random.Random, world: World, did: list[Action]
) -> tuple[str, list[Action]] | None:
    """What is understood from what the request before asked for, `did`, or from a list, only."""
    for way, p in ELLIPTICAL.items():
        if r.random() < p and (found := way(r, world, did)):
            return found
    return None


def join(parts: list[str], r: random.Random) -> str:
    last = r.choice([" and ", " and ", ", and ", " & ", ", ", " + ", " and also ", " plus "])
    sep = r.choice([", ", ", ", ", ", " , ", "; ", " and "])
    return parts[0] if len(parts) == 1 else sep.join(parts[:-1]) + last + parts[-1]


def spared(text: str, name: str, r: random.Random) -> str:
    """The request with a word on one task, `name`, that nothing is to happen to."""
    way = r.choice(lines("spared"))
    return way.replace("{n}", name).replace("{t}", text.rstrip(" .,!"))


MANY_TITLES = (
    "add {x} as separate tasks|add {k} tasks: {x}|new tasks: {x}|create {k} tasks: {x}|"
    "put {x} on my list, one task each|please create separate tasks for {x}|tasks for {x}|"
    "i need {k} tasks: {x}|make a task each for {x}|three things for my list: {x}|todo: {x} (separate)|"
    "create tasks for {x}|add these: {x}|add individual tasks for {x}|i've got to {x}, add each of them|"
    "remind me about {x} separately|{k} new to-dos: {x}|add the following tasks: {x}|"
    "set up tasks for {x}|log {x} as {k} tasks|note down {x} as individual items"
).split("|")


ALL_WORDS = {
    2: ["both", "both of them", "both tasks", "the two of them", "the two", "the pair of them",
        "those two"],
    3: ["all three", "all three of them", "the three tasks"],
    4: ["all four", "all four of them", "all four tasks"],
    5: ["all five", "all five of them", "the five tasks"],
}  # fmt: skip


def one_for_many(
    r: random.Random, world: World, shown: str, tasks: list[Known]
) -> tuple[str, list[Action]]:
    """A request for one action on `tasks`, which `shown` names."""
    frame, meaning = r.choice(frames("all"))
    slots = Slots(r, world, False)
    text = SLOT.sub(lambda m: shown if m[1] == "all" else slots.text(m[1], m[2]), dress(frame, r))
    tool, _, fixed = meaning.partition(" ")
    args = gather(parse_meaning(fixed), slots) if tool == "update" else {}
    return text, [Action(tool, {"task_id": world.box.id(k.n), **args}) for k in tasks]


def all_of_them(r: random.Random, world: World) -> tuple[str, list[Action]] | None:
    """A request for one action on every task just shown or made, where that is a few."""
    tasks = world.listed or world.made
    if not 2 <= len(tasks) <= 5:
        return None
    words = ["all of them", "all of those", "them all", "these", "all these", "everything on there",
             "the lot", "the whole lot", "every one of them", "each of them"]  # fmt: skip
    return one_for_many(r, world, r.choice(ALL_WORDS[len(tasks)] * 2 + words), tasks)


def some_of_them(r: random.Random, world: World) -> tuple[str, list[Action]] | None:
    """A request for one action on two to four tasks of the list just shown, named in words."""
    if len(world.listed) < 2:
        return None
    ways = [
        *at_the_ends(world.listed),
        *alike(world.listed),
        by_place(r, world.listed, world.numbered),
    ]
    if r.random() < 0.15 and 3 <= len(world.listed) <= 5:
        return all_others(r, world)
    ways += [way for way in (all_but_one(r, world.listed),) if way] * 2
    ways += [way for way in (by_words(r, world.listed),) if way] * 4
    names, tasks = r.choice(ways)
    return one_for_many(r, world, r.choice(names), tasks)


# Ways to name some tasks of a list: what to call them, and which they are.
Way = tuple[list[str], list[Known]]


def at_the_ends(tasks: list[Known]) -> Iterator[Way]:
    if len(tasks) > 2:
        yield ["the first two", "the top two", "the first two on the list"], tasks[:2]
        yield ["the last two", "the bottom two"], tasks[-2:]
    if len(tasks) > 3:
        yield ["the first three", "the top three"], tasks[:3]


def alike(tasks: list[Known]) -> Iterator[Way]:
    """Those of one priority or status, where that is some of them."""
    for key, text in (("priority", "{} priority"), ("status", "{}")):
        for value in {getattr(k, key): None for k in tasks}:  # a set has another order each time
            same = [k for k in tasks if getattr(k, key) == value]
            if 2 <= len(same) <= 4 and len(same) < len(tasks):
                name = text.format(value.replace("_", " "))
                yield [f"the {NUMBERS[len(same)]} {name} ones", f"the {name} ones",
                       f"all the {name} ones"], same  # fmt: skip


def all_but_one(r: random.Random, tasks: list[Known]) -> Way | None:
    if not 3 <= len(tasks) <= 5:
        return None
    i = r.randrange(len(tasks))
    names = [f"the {ORDINALS[i]} one", f"the {ORDINALS[i]}"]
    if k := keyword(tasks[i], tasks, r):
        names += [f"the {k} one", f"the {k} one", k]
    but = r.choice(["all but", "all except", "everything but", "everything except for",
                    "all of them except", "all of those but", "everything there except",
                    "everything apart from", "all of them bar"])  # fmt: skip
    return [f"{but} {r.choice(names)}"], tasks[:i] + tasks[i + 1 :]


def all_others(r: random.Random, world: World) -> tuple[str, list[Action]]:
    """One action on all tasks of a list but the one that is named beside it."""
    tasks = world.listed
    i = r.randrange(len(tasks))
    others = tasks[:i] + tasks[i + 1 :]
    names = [f"the {ORDINALS[i]} one", f"the {ORDINALS[i]}"]
    if k := keyword(tasks[i], tasks, r):
        names += [k, k, f"the {k}", f"the {k} one"]
    rest = ["the others", "the other ones", "the rest", "all the others", "the remaining ones",
            f"the other {NUMBERS[len(others)]}", f"other {NUMBERS[len(others)]}"]  # fmt: skip
    text, actions = one_for_many(r, world, r.choice(rest), others)
    return spared(text, r.choice(names), r), actions


def some(r: random.Random, tasks: list[Known]) -> list[int]:
    """Places of two or three tasks near the top, counted from 0."""
    count = min(len(tasks), 6)
    return sorted(r.sample(range(count), r.choice([2, 2, 2, 3]) if count > 2 else 2))


def by_place(r: random.Random, tasks: list[Known], numbered: bool) -> Way:
    places = some(r, tasks)
    names = [join([f"the {ORDINALS[i]}" for i in places], r) + r.choice(["", "", " one", " ones"])]
    if numbered:
        names += [join([str(i + 1) for i in places], r)] * 3
    return names, [tasks[i] for i in places]


def by_words(r: random.Random, tasks: list[Known]) -> Way | None:
    chosen = [tasks[i] for i in some(r, tasks)]
    keys = [keyword(k, tasks, r) for k in chosen]
    if not all(keys):
        return None
    keys = [k.lower() for k in keys] if r.random() < 0.5 else keys
    listing = join(keys, r)
    return [join([f"the {k} one" for k in keys], r), listing, f"the {listing} ones",
            f"the {listing}"], chosen  # fmt: skip


def several(r: random.Random, world: World) -> tuple[str, list[Action]]:
    """A request for two to four calls."""
    if len(world.tasks) > 1 and r.random() < 0.35 and (found := follow_ups(r, world)):
        return found
    if (world.listed or len(world.made) > 1) and r.random() < 0.65:
        way = all_of_them if not world.listed or r.random() < 0.35 else some_of_them
        if found := way(r, world):
            return found
    x = r.random()
    if x < 0.42:
        frame, meaning = r.choice(frames("several"))
        slots = Slots(r, world, r.random() < (0.5 if world.listed else 0.15))
        text = SLOT.sub(lambda m: slots.text(m[1], m[2]), dress(frame, r))
        actions = []
        for part in meaning.split(";"):
            m = re.match(r"\s*(\w+)\((.*)\)\s*$", part)
            if not m or m[1] not in BASE:
                return several(r, world)
            args: dict = {}
            for token in filter(None, (t.strip() for t in m[2].split(","))):
                if "=" in token:
                    k, value = token.split("=", 1)
                    args[k.strip()] = value.strip()
                    continue
                base = re.sub(r"\d+$", "", token)
                if token not in slots.values:
                    return several(r, world)
                key = {"do": "title", "thing": "title", "title": "title", "date": "due",
                       "due": "due", "prio": "priority", "id": "task_id", "n": "task_id"}.get(base)  # fmt: skip
                if key is None:
                    return several(r, world)
                args[key] = slots.values[token]
            actions.append(Action(m[1], args))
        aims = [(a.tool, a.args["task_id"]) for a in actions if "task_id" in a.args]
        distinct = len({n for _, n in aims}) == len(aims)
        return (text, actions) if len(actions) > 1 and distinct else several(r, world)
    if x < 0.60:  # one action on several ids
        tool = r.choice(["complete", "complete", "delete", "delete", "update"])
        frame, meaning = r.choice(frames(tool))
        if frame.count("{id}") != 1 or "{title}" in frame:
            return several(r, world)
        count = r.choice([2, 2, 3, 3, 4])
        ids = []
        while len(ids) < count:
            if (n := number(r)) not in ids:
                ids.append(n)
        form = r.choice(["{n}", "{n}", "{n}", "#{n}", "task {n}", "number {n}"])
        shown = [world.box.id(n) for n in ids]
        names = [form.format(n=s) for s in shown]
        listing = join(names, r)
        if form == "{n}" and r.random() < 0.45:
            listing = (
                r.choice(
                    ["tasks ", "both ", "numbers ", "tasks "]
                    if count == 2
                    else ["tasks ", "numbers ", "tasks ", "all of "]
                )
                + listing
            )
        slots = Slots(r, world, False)
        frame = dress(frame, r).replace("{id} is ", "{id} are ").replace("{id}'s", "{id} are")
        text = SLOT.sub(lambda m: listing if m[1] == "id" else slots.text(m[1], m[2]), frame)
        if r.random() < 0.12 and (other := number(r)) not in ids:
            text = spared(text, form.format(n=world.box.id(other)), r)
        base = gather(parse_meaning(meaning), slots)
        if tool == "update" and not base:
            return several(r, world)
        keep = base if tool == "update" else {}
        return text, [Action(tool, {"task_id": s, **keep}) for s in shown]
    if x < 0.72:  # several titles
        titles = [title(r) for _ in range(r.choice([2, 2, 3, 3, 4]))]
        titles = [t for t in titles if not re.search(r" and | & |,|/|\+", t)] or ["milk", "eggs"]
        if len(titles) < 2:
            return several(r, world)
        frame = dress(r.choice(MANY_TITLES), r)
        q = r.random() < 0.1
        k = {2: ["two", "2"], 3: ["three", "3"], 4: ["four", "4"]}[len(titles)]
        text = frame.replace("three things", f"{k[0]} things").replace("{k}", r.choice(k))
        text = text.replace("{x}", join([f'"{t}"' if q else t for t in titles], r))
        return text, [Action("create", {"title": t}) for t in titles]
    # several sentences or clauses
    texts, actions = [], []
    seen = set()
    for _ in range(r.choice([2, 2, 2, 2, 3, 3, 4])):
        tool = r.choices(list(BASE), [30, 20, 22, 5, 23])[0]
        text, acts = single(tool, r, world, 0.1)
        if acts[0].args.get("task_id") in seen and "task_id" in acts[0].args:
            continue
        seen.add(acts[0].args.get("task_id"))
        texts.append(text.rstrip(" .,!?"))
        actions += acts
    if len(actions) < 2:
        return several(r, world)
    glue = r.choice([" and ", " and ", ", then ", ". ", "; ", ", ", ", and ", " and then ", ". also ",
                     "\n", " plus ", ". Then ", ", also ", ". And ", " - and "])  # fmt: skip
    return glue.join(texts) + r.choice(["", "", ".", "!", " please", " thanks"]), actions


# --- results and answers ----------------------------------------------------------------------


def as_result(action: Action, known: Known, world: World, style: str, tasks: list[Known]) -> str:
    """The tool's answer as JSON text, in one of the ways tools write it."""
    r = world.box.r

    def obj(k: Known) -> dict:
        name = "id" if style == "id" else "task_id"
        out = {name: world.box.id(k.n), "title": k.title, "priority": k.priority,
               "status": k.status, "due": k.due}  # fmt: skip
        if style == "short" and k.due is None:
            del out["due"]
        if style == "extra":
            out["created"] = iso(r)
        return out

    if action.tool == "list":
        value: object = {"tasks": [obj(k) for k in tasks]}
        if style == "bare":
            value = [obj(k) for k in tasks]
    elif action.tool == "delete":
        value = {"id" if style == "id" else "task_id": world.box.id(known.n), "deleted": True}
    else:
        value = obj(known)
    separators = (",", ":") if style == "compact" else (", ", ": ")
    text = json.dumps(value, ensure_ascii=False, separators=separators)
    if style == "mcp":
        return json.dumps([{"type": "text", "text": text}], ensure_ascii=False)
    if style == "sentence" and action.tool != "list":
        verb = {"create": "Created", "update": "Updated", "complete": "Completed",
                "delete": "Deleted"}[action.tool]  # fmt: skip
        return f"{verb} task {world.box.id(known.n)}" + (
            f": {known.title}" if action.tool != "delete" else ""
        )
    return text


def details(k: Known) -> str:
    parts = [k.priority] if k.priority != "medium" else []
    parts += [k.status.replace("_", " ")] if k.status != "pending" else []
    parts += [f"due {k.due}"] if k.due else []
    return f" ({', '.join(parts)})" if parts else ""


def confirm(action: Action, known: Known, world: World, style: str, tasks: list[Known]) -> str:
    """The short truthful answer to a result; says only what the result says."""
    n = world.box.id(known.n)
    if action.tool == "list":
        if not tasks:
            return "You have no such tasks."
        what = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
        return (
            f"{what}: "
            + "; ".join(f"{world.box.id(k.n)} {k.title}{details(k)}" for k in tasks)
            + "."
        )
    if action.tool == "delete":
        return f"Deleted task {n}."
    verb = {"create": "Created", "update": "Updated", "complete": "Completed"}[action.tool]
    if style == "sentence":
        return f"{verb} task {n}: {known.title}."
    return f"{verb} task {n}: {known.title}{details(known) if action.tool != 'complete' else ''}."


CANNOT = "Sorry, I can only help with your task list."
NO_TOOLS = "I have no tools in this conversation, so I cannot change your tasks."
WHICH = "Which task do you mean? Please give me its number."


def missing(tool: str) -> str:
    return f"Sorry, I have no tool to {tool} tasks here."


def ability(box: Toolbox | None) -> str:
    if box is None or not box.names:
        return "I help with task lists, but I have no tools in this conversation."
    names = [t for t in box.names]
    text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return f"I can {text} tasks."


SMALL = {
    "hello": "Hello! What shall I do with your tasks?",
    "thanks": "You are welcome.",
    "bye": "Goodbye!",
}


@cache
def chat_lines() -> tuple[tuple[str, str], ...]:
    return tuple(
        tuple(p.strip() for p in line.split("|", 1)) for line in lines("chat") if "|" in line
    )  # type: ignore[misc]


@cache
def error_lines() -> dict[str, tuple[str, ...]]:
    out: dict[str, list[str]] = {}
    for line in lines("errors"):
        if "|" in line:
            kind, text = (p.strip() for p in line.split("|", 1))
            out.setdefault(kind, []).append(text)
    return {k: tuple(v) for k, v in out.items()}


# --- conversations ----------------------------------------------------------------------------


def blocked() -> frozenset[str]:
    """Hashes of the evaluation sets' requests: none of them is ever trained on."""
    found = set()
    for path in sorted((HERE / "evaluation").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)  # a case has messages, a scenario has turns
            messages = entry.get("messages", [])
            said = [m["content"] for m in messages if m["role"] == "user"]
            found |= {fingerprint(text) for text in [*said, *entry.get("turns", [])]}
    return frozenset(found)


def fingerprint(text: str) -> str:
    """Hash of a request after folding case, punctuation and white space."""
    folded = " ".join(re.findall(r"\w+", text.lower()))
    return hashlib.sha256(folded.encode()).hexdigest()[:16]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


def result(call: dict, content: str) -> dict:
    return {"role": "tool", "tool_call_id": call["id"], "content": content}


RESULT_STYLES = ["plain"] * 11 + ["short"] * 4 + ["compact", "compact", "id", "extra", "mcp", "mcp",
                                  "sentence", "bare"]  # fmt: skip


POINTING = 0.2


BAD_ENUM = {
    "low": ["LOW", "minor", "lowest", "Low", "lo", "p4", "not important", "trivial", "1", "whenever"],
    "medium": ["MEDIUM", "normal", "mid", "Medium", "med", "p3", "standard", "average", "default"],
    "high": ["HIGH", "important", "High", "top", "hi", "p2", "hgih", "very high", "3", "major"],
    "urgent": ["URGENT", "critical", "asap", "highest", "Urgent", "p1", "emergency", "immediate",
               "urgnet", "4"],
    "pending": ["open", "todo", "PENDING", "to do", "not started", "Pending", "new", "waiting"],
    "in_progress": ["in progress", "doing", "started", "IN_PROGRESS", "in-progress", "inProgress",
                    "active", "ongoing", "wip"],
    "completed": ["done", "finished", "COMPLETED", "complete", "closed", "Done", "resolved"],
}  # fmt: skip


class Conversation:
    def __init__(self, r: random.Random, pointing: float = POINTING):
        self.r, self.pointing = r, pointing
        self.messages: list[dict] = []
        self.tools: list[dict] | None = None

    # each exchange appends messages; assistant messages with "learn": False are not trained on

    def build(self) -> Conversation:
        r = self.r
        if r.random() < 0.05:
            self.without_tools()
            return self
        box = Toolbox(r)
        self.tools = box.schemas
        world = World(box)
        self.style = r.choice(RESULT_STYLES)
        changes = {"update", "complete", "delete"} & set(box.names)
        if r.random() < self.pointing and box.offers("list") and changes:
            # A list, then many requests that point at its tasks: to find the task that a word
            # names, and then its number, is learned late, and from many examples only.
            for _ in range(20):
                self.messages.clear()
                if made := r.random() < 0.25 and box.offers("create"):
                    self.making(world)
                else:
                    self.listing(world)
                if 2 <= len(world.made if made else world.listed) <= 5:
                    break
            else:
                self.messages.clear()
                return self
            bare = r.random() < 0.7  # the others show what became of each request
            turns = r.randint(1, 4) if made else r.randint(6, 14) if bare else r.randint(3, 8)
            for _ in range(turns):
                self.exchange(world, bare=bare, pointing=True)
            return self
        if r.random() < 0.58:
            # Requests under one list of tools, without results: many decisions in few tokens.
            # Some begin with a result, so that later requests can refer to its tasks.
            if r.random() < 0.40:
                if box.offers("list") and r.random() < 0.6:
                    self.listing(world)
                else:
                    self.exchange(world)
            for _ in range(r.choices([1, 2, 6, 9, 12], [14, 12, 26, 28, 20])[0]):
                self.exchange(world, bare=True)
            return self
        turns = r.choices([1, 2, 3, 4, 6, 8], [36, 25, 15, 10, 8, 6])[0]
        if r.random() < 0.12 and box.offers("list"):
            self.listing(world)
        for _ in range(turns):
            self.exchange(world)
        return self

    def without_tools(self) -> None:
        r = self.r
        for _ in range(r.choice([1, 1, 2])):
            x = r.random()
            if x < 0.4:
                kind, text = r.choice(chat_lines())
                text = dress(text, r) if r.random() < 0.4 else text
                answer = SMALL.get(kind) or (ability(None) if kind == "ability" else CANNOT)
            elif x < 0.75:
                world = World(Toolbox(r, plain=True))
                tool = r.choice(list(BASE))
                text = single(tool, r, world, 0)[0] if r.random() < 0.85 else several(r, world)[0]
                answer = NO_TOOLS
            else:
                text, answer = self.off_topic(), CANNOT
            self.messages += [user(text), said(answer)]

    def off_topic(self, world: World | None = None) -> str:
        r = self.r
        text = r.choice(lines(r.choice(["refusal", "nearmiss", "nearmiss"])))
        known = r.choice(world.tasks) if world and world.tasks else None
        k = keyword(known, [], r, bare=True) if known else None
        beyond = world is not None and r.random() < 0.3
        if beyond:  # about tasks, and nothing that a tool can do
            text = r.choice(lines("beyond"))
        elif k and r.random() < 0.3:
            text = r.choice(lines("beside"))
        elif r.random() < 0.08:  # of a task that nobody has shown
            shown = {k.title.lower() for k in world.tasks} if world else set()
            told = stories()[r.choice([t for t in stories() if t not in shown])]
            text = r.choice(told["+"] + told["-"])
        text = text.replace("{k}", k.lower() if k else word(r))
        slots = Slots(r, world or World(Toolbox(r, plain=True)), False)
        if known and r.random() < 0.5:
            slots.texts["n"] = numbered_as(world.box.id(known.n), r)
        text = SLOT.sub(lambda m: slots.text(m[1], m[2]), text)
        if not beyond and r.random() < 0.2:  # a changed word keeps it off topic and keeps it new
            parts = text.split(" ")
            if len(parts) > 5:
                parts[r.randrange(3, len(parts))] = word(r)
                text = " ".join(parts)
        text = dress(text, r) if r.random() < 0.65 else text
        return text.upper() if r.random() < 0.03 else text

    def exchange(self, world: World, bare: bool = False, pointing: bool = False) -> None:
        """A request, with its answer; bare: the call without its result; pointing: about a task
        that was shown."""
        r, box = self.r, world.box
        x = r.random()
        if pointing:
            x = 0.0 if x < 0.06 else r.uniform(0.3, 1.0)
        before, world.did = world.did, []
        if x < 0.14:
            self.messages += [user(self.off_topic(world)), said(CANNOT)]
            return
        if x < 0.16:
            kind, text = r.choice(chat_lines())
            text = dress(text, r) if r.random() < 0.4 else text
            answer = SMALL.get(kind) or (ability(box) if kind == "ability" else CANNOT)
            self.messages += [user(text), said(answer)]
            return
        found = None
        if before and r.random() < 0.3:
            found = elliptical(r, world, before)
        if not found and world.tasks and r.random() < (0.3 if pointing else 0.15):
            found = story(r, world)
        if found and not found[1]:
            self.messages += [user(found[0]), said(CANNOT)]
            return
        if not found and (world.last or world.tasks) and r.random() < (0.35 if pointing else 0.22):
            found = next((f for _ in range(4) if (f := follow_up(r, world))), None)
        if found:
            text, actions = found
        elif x < 0.42:
            text, actions = several(r, world)
        else:
            tool = r.choices(list(BASE), [0, 24, 13, 0, 13] if pointing else [40, 24, 13, 10, 13])[
                0
            ]
            refer_p = (1.0 if pointing else 0.55) if world.tasks else 0.0
            if tool == "complete" and not box.offers("complete") and box.offers("update"):
                if r.random() < 0.6:
                    return  # a fair judge might accept an update of "4 is done": left out
                text, actions = single("update", r, world, refer_p, "status")
            else:
                text, actions = single(tool, r, world, refer_p)
        absent = [a.tool for a in actions if not box.offers(a.tool)]
        if absent:
            if len(actions) > 1 and len(set(absent)) > 1:
                return
            if len(actions) > 1 and len(absent) < len(actions):
                return
            self.messages += [user(text), said(missing(absent[0]))]
            return
        if not self.fits(world, actions):
            return
        # Somebody leans on the shift key. The template puts that in small letters, those of ASCII.
        if r.random() < 0.025 and not box.string_ids and text.isascii():
            text = text.upper()
            for a in actions:
                a.args.update(
                    {
                        k: a.args[k].lower()
                        for k in ("title", "due")
                        if a.args.get(k, "none") != "none"
                    }
                )
        self.messages.append(user(text))
        alike = {json.dumps({**a.args, "task_id": 0, "title": ""}) + a.tool for a in actions}
        if len(alike) == 1 and (actions[0].tool == "create" or "title" not in actions[0].args):
            world.did = [] if actions[0].tool == "list" else actions
        if bare:
            if len(actions) == 1 and r.random() < 0.14:
                self.mistake(world, actions[0])
            calls = [box.call(a, world.calls + i) for i, a in enumerate(actions, 1)]
            world.calls += len(calls)
            self.messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            self.assume(world, actions)
        else:
            self.act(world, actions)

    def fits(self, world: World, actions: list[Action]) -> bool:
        """Whether the offered schemas have a place for every argument."""
        return all(
            key in {p.key for p in world.box.props[a.tool]} for a in actions for key in a.args
        )

    def assume(self, world: World, actions: list[Action]) -> None:
        """What may still be referred to after calls whose results are not shown."""
        world.last = None
        world.made = []
        for action in actions:
            known = next(
                (k for k in world.tasks if world.box.id(k.n) == action.args.get("task_id")), None
            )
            if action.tool == "list":
                world.listed = []
            elif known and action.tool == "delete":
                world.tasks = [k for k in world.tasks if k is not known]
                world.listed = [] if known in world.listed else world.listed
            elif known:
                self.change(known, action)
                world.last = known if len(actions) == 1 else None

    def change(self, known: Known, action: Action) -> None:
        """Bring a task to the state after the call, as far as words may point at it."""
        if action.tool == "complete":
            known.status = "completed"
        known.title = action.args.get("title") or known.title
        known.priority = action.args.get("priority") or known.priority
        known.status = action.args.get("status") or known.status
        known.due = action.args.get("due") or known.due

    def listing(self, world: World) -> None:
        text, actions = single("list", self.r, world, 0)
        if self.fits(world, actions):
            self.messages.append(user(text))
            self.act(world, actions)

    def making(self, world: World) -> None:
        """Two or three new tasks at once, so that the next request can mean both or one of them."""
        text, actions = several(self.r, world)
        if all(a.tool == "create" for a in actions) and self.fits(world, actions):
            self.messages.append(user(text))
            self.act(world, actions)

    def calls(self, calls: list[dict], learn: bool = True) -> None:
        """Append an assistant's message with calls."""
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        self.messages.append(message if learn else {**message, "learn": False})

    def act(self, world: World, actions: list[Action]) -> None:
        r, box = self.r, world.box
        answers: list[str] = []
        touched: list[tuple[Action, Known, list[Known]]] = []
        if len(actions) > 1 and r.random() < 0.12:
            actions = self.half_done(world, actions, answers, touched)
        elif len(actions) == 1 and r.random() < 0.22:
            self.mistake(world, actions[0])
        first = world.calls + 1
        world.calls += len(actions)
        calls = [box.call(action, n) for n, action in enumerate(actions, first)]
        self.calls(calls)
        for action, call in zip(actions, calls, strict=True):
            failed = self.failure(world, action) if r.random() < 0.06 else None
            if failed:
                content = self.error_content(failed)
                short = failed if len(failed) < 90 else re.split(r"(?<=[.!;:])\s", failed)[0]
                answers.append(
                    f"Sorry, that did not work: {short}" + ("" if short[-1:] in ".!?" else ".")
                )
            else:
                content = self.carry_out(world, action, answers, touched)
            self.messages.append(result(call, content))
        self.messages.append(said(" ".join(answers)))
        numbered = False
        if len(touched) == 1 and r.random() < 0.25:  # history as other assistants write it
            action, known, tasks = touched[0]
            if action.tool == "list" and tasks:
                names = [r.choice([k.title, f"{k.title} ({box.id(k.n)})", f"{box.id(k.n)} {k.title}"])
                         for k in tasks]  # fmt: skip
                text = (
                    r.choice(["", "You have: ", "Yes: ", "Here they are: ", "Left: "])
                    + ", ".join(names)
                    + "."
                )
                if r.random() < 0.3 and not {k.n for k in world.tasks + tasks} & set(range(1, 11)):
                    text = r.choice([" ", "\n", ", "]).join(
                        f"{i}. {k.title}" for i, k in enumerate(tasks, 1)
                    )
                    numbered = True
            else:
                text = r.choice(lines("reported")).replace("{id}", str(box.id(known.n)))
                text = text.replace("{what}", known.title)
            self.messages[-1] = {**said(text), "learn": False}
        self.remember(world, touched)
        if any(action.tool == "list" for action, _, _ in touched):
            world.numbered = numbered

    def half_done(
        self, world: World, actions: list[Action], answers: list[str], touched: list
    ) -> list[Action]:
        """Append several calls of which one is flawed and the others are carried out; returns the
        actions that are left to do, all where none can be flawed."""
        i = self.r.randrange(len(actions))
        flawed = self.flaw(world, actions[i])
        if not flawed:
            return actions
        wrong, args, text = flawed
        first = world.calls + 1
        world.calls += len(actions)
        calls = [
            world.box.call(*((wrong, n, args) if action is actions[i] else (action, n)))
            for n, action in enumerate(actions, first)
        ]
        self.calls(calls, learn=False)
        for action, call in zip(actions, calls, strict=True):
            if action is actions[i]:
                content = self.error_content(text)
            else:
                content = self.carry_out(world, action, answers, touched)
            self.messages.append(result(call, content))
        return [actions[i]]

    def carry_out(self, world: World, action: Action, answers: list[str], touched: list) -> str:
        """What the tool returns; adds what there is to say of it, and what it did."""
        known, tasks = self.apply(world, action)
        answers.append(confirm(action, known, world, self.style, tasks))
        touched.append((action, known, tasks))
        return as_result(action, known, world, self.style, tasks)

    def apply(self, world: World, action: Action) -> tuple[Known, list[Known]]:
        r, a = self.r, action.args
        if action.tool == "list":
            count = r.choices([0, 1, 2, 3, 4, 5, 7, 10], [8, 14, 22, 24, 17, 10, 4, 1])[0]
            when = (lambda r: date(r)[1]) if r.random() < 0.2 else iso
            texts = titles(count, r)
            tasks = [
                Known(n, text, a.get("priority") or r.choice(PRIORITIES),
                      a.get("status") or r.choice(STATUSES[:2] + STATUSES),
                      when(r) if r.random() < 0.4 else None)
                for n, text in zip(numbers(len(texts), r), texts, strict=True)
            ]  # fmt: skip
            return Known(0, ""), tasks
        if action.tool == "create":
            n = number(r)
            if world.tasks and r.random() < 0.6:  # as stores number what is new
                n = max(k.n for k in world.tasks) + r.choice([1, 1, 1, 2, 3])
            known = Known(n, a["title"], a.get("priority") or "medium", "pending",
                          iso(r) if a.get("due") else None)  # fmt: skip
            return known, []
        known = next((k for k in world.tasks if world.box.id(k.n) == a["task_id"]), None)
        if known is None:
            n = a["task_id"]
            n = n if isinstance(n, int) else int(re.sub(r"\D", "", n) or 1)
            known = Known(n, title(r), r.choice(PRIORITIES), r.choice(STATUSES[:2]),
                          iso(r) if r.random() < 0.4 else None)  # fmt: skip
        if action.tool == "complete":
            known.status = "completed"
        if action.tool == "update":
            known.title = a.get("title") or known.title
            known.priority = a.get("priority") or known.priority
            known.status = a.get("status") or known.status
            if a.get("due"):
                known.due = None if a["due"] == "none" else iso(r)
        return known, []

    def remember(self, world: World, touched: list) -> None:
        if touched and all(action.tool == "create" for action, _, _ in touched):
            world.made = (world.made + [known for _, known, _ in touched])[-5:]
        else:
            world.made = []
        for action, known, tasks in touched:
            if action.tool == "list":
                world.listed = tasks
                world.tasks = [k for k in world.tasks if k.n not in {t.n for t in tasks}] + tasks
                world.last = tasks[0] if len(tasks) == 1 else None
            elif action.tool == "delete":
                world.tasks = [k for k in world.tasks if k.n != known.n]
                world.listed = [] if known in world.listed else world.listed
                world.last = None
            else:
                if known not in world.tasks:
                    world.tasks.append(known)
                world.last = known
        if len(touched) > 1:
            world.last = None

    def failure(self, world: World, action: Action) -> str | None:
        """An error that no other call can mend, so that the answer must admit it."""
        r = self.r
        if action.tool in ("update", "complete", "delete") and r.random() < 0.7:
            text = r.choice(error_lines()["bad_id"])
        elif action.args.get("due") and r.random() < 0.3:
            text = r.choice(error_lines()["bad_date"])
            return self.error_text(text, world, action, "due", str(action.args["due"]))
        else:
            text = r.choice(error_lines()["unavailable"])
        if r.random() < 0.25:  # words that must be copied, not remembered
            text = f"{text.rstrip('.')}{r.choice(['; ', ' (', ', ', ' because '])}{title(r)}"
        shown = str(action.args.get("task_id", ""))
        return self.error_text(text, world, action, "task_id", shown)

    def error_text(self, text: str, world: World, action: Action, key: str, bad: str) -> str:
        props = {p.key: p for p in world.box.props[action.tool]}
        prop = props.get(key)
        accepted = ", ".join(prop.enum.values()) if prop and prop.enum else {
            "due": "tomorrow, friday, 2026-12-03", "task_id": "an integer"}.get(key, "a text")  # fmt: skip
        values = {"field": prop.name if prop else key, "bad": bad, "accepted": accepted, "id": bad,
                  "tool": world.box.names[action.tool]}  # fmt: skip
        return SLOT.sub(lambda m: values.get(m[1], m[0]), text)

    def mistake(self, world: World, action: Action) -> bool:
        """Append a flawed call and its error, seldom a second time; True when one was appended. The
        flawed call is in the history and not trained on; what is learned is the right call after
        it."""
        found = False
        while flawed := self.flaw(world, action):
            wrong, args, text = flawed
            found = True
            world.calls += 1
            call = world.box.call(wrong, world.calls, args)
            self.calls([call], learn=False)
            self.messages.append(result(call, self.error_content(text)))
            if self.r.random() > 0.1:
                break
        return found

    def numbers_said(self, but: str) -> list[str]:
        """The other numbers in the request that is being answered."""
        said = next(m["content"] for m in reversed(self.messages) if m["role"] == "user")
        return [n for n in re.findall(r"\d+", said) if n != but]

    def error_content(self, text: str) -> str:
        if self.style == "mcp":
            return json.dumps([{"type": "text", "text": text}], ensure_ascii=False)
        if self.r.random() < 0.2:
            return text
        shape = {"error": text}
        if self.r.random() < 0.15:
            shape = self.r.choice([
                {"ok": False, "message": text}, {"status": "error", "detail": text},
                {"code": self.r.choice([400, 404, 409, 422, 500]), "message": text},
                {"error": {"message": text}}, {"success": False, "error": text},
                {"result": None, "errors": [text]}, {"type": "error", "title": text},
            ])  # fmt: skip
        return json.dumps(shape, ensure_ascii=False)

    def flaw(self, world: World, action: Action) -> tuple[Action, dict, str] | None:
        """A call that is wrong in one way, its arguments, and what a tool says to them."""
        r, box = self.r, world.box
        a = dict(action.args)
        args = box.arguments(action)
        props = {p.key: p for p in box.props[action.tool]}
        options = []
        if a.get("priority") in PRIORITIES and props["priority"].enum:
            options.append("priority")
        if a.get("status") in STATUSES and props["status"].enum:
            options.append("status")
        if "task_id" in a:
            options += ["id", "id", "id", "type", "no_id"]
        if "title" in a:
            options += ["cut", "typo"]
            if action.tool == "create":
                options += ["no_title"]
            options += ["empty"]
        if a.get("due") and a["due"] != "none":
            options.append("due")
        said = [key for key in ("due", "priority", "status") if a.get(key)]
        if said and action.tool in ("create", "update"):
            options.append("left_out")
        if args:
            options.append("unknown")
        if not options:
            return None
        if action.tool == "list" and len(a) > 1:
            options += ["crossed"] * 2
        instead = "create" if action.tool == "update" and a.get("title") else "update"
        if action.tool in ("update", "delete") and action.tool != instead and box.offers(instead):
            options.append("tool")
        kind = r.choice(options)
        errors = error_lines()
        if kind == "tool":
            other = {p.key: p.name for p in box.props[instead]}
            given = {"title": a.get("title"), "task_id": a.get("task_id"),
                     "status": r.choice(["deleted", "removed", "cancelled", "trash", "archived"])}  # fmt: skip
            keys = ("title", "task_id") if instead == "create" else ("task_id", "status")
            args = {other.get(key, key): given[key] for key in keys}
            text = self.error_text(r.choice(errors["wrong_tool"]), world, action, "task_id", "")
            action = Action(instead, a)
        elif kind == "crossed":
            one, other = (props[key].name for key in ("status", "priority"))
            args[one], args[other] = args[other], args[one]
            text = self.error_text(r.choice(errors["bad_enum"]), world, action, "status", args[one])
        elif kind in ("priority", "status"):
            key = kind
            wrong = r.choice(BAD_ENUM[a[key]])
            args[props[key].name] = wrong
            text = self.error_text(r.choice(errors["bad_enum"]), world, action, key, wrong)
        elif kind == "id":
            n = str(a["task_id"])
            digits = [i for i, c in enumerate(n) if c.isdigit()]
            i = r.choice(digits)
            wrong = n[:i] + r.choice("123456789".replace(n[i], "")) + n[i + 1 :]
            if r.random() < 0.3 and len(digits) > 1:
                wrong = n[: digits[-1]] or "1"
            elif r.random() < 0.5 and len(digits) > 1:  # two digits changed places
                i = r.choice(digits[:-1])
                wrong = n[:i] + n[i + 1] + n[i] + n[i + 2 :]
            x = r.random()
            if x < 0.15:  # quite another one
                wrong = str(world.box.id(number(r)))
            elif x < 0.35 and (others := self.numbers_said(n)):  # another number of the request
                wrong = r.choice(others)
            elif x < 0.45:  # a digit twice
                wrong = n[: i + 1] + n[i:]
            elif x < 0.55 and len(digits) > 1:  # a digit lost
                wrong = n[:i] + n[i + 1 :]
            elif x < 0.65 and len(world.tasks) > 1:  # the task beside it
                wrong = str(world.box.id(r.choice(world.tasks).n))
            if wrong == n or int(re.sub(r"\D", "", wrong) or 0) == 0:
                return None
            args[props["task_id"].name] = int(wrong) if isinstance(a["task_id"], int) else wrong
            text = self.error_text(r.choice(errors["bad_id"]), world, action, "task_id", wrong)
        elif kind == "type":
            if not isinstance(a["task_id"], int):
                return None
            n = a["task_id"]
            wrong = r.choice(
                [f"#{n}", f"task {n}", str(n), f"no. {n}", f"{n}.0", f"TASK-{n}", f"id:{n}", [n]]
                + ([spelled(n, r)] if n < 10_000 else [])
                + [word(r)]
            )
            args[props["task_id"].name] = wrong
            wrong = str(wrong)
            text = self.error_text(r.choice(errors["bad_type"]), world, action, "task_id", wrong)
        elif kind == "no_title":
            args.pop(props["title"].name, None)
            if r.random() < 0.3:
                args = {}
            text = self.error_text(r.choice(errors["missing"]), world, action, "title", "")
        elif kind == "empty":
            wrong = r.choice(["", " ", "   ", "  ", "-", "\n", "."])
            args[props["title"].name] = wrong
            text = self.error_text(r.choice(errors["empty"]), world, action, "title", wrong)
        elif kind == "left_out":  # what the request says, and the schema does not require
            key = r.choice(said)
            args.pop(props[key].name)
            text = self.error_text(r.choice(errors["missing"]), world, action, key, "")
        elif kind == "no_id":
            args.pop(props["task_id"].name, None)
            text = self.error_text(r.choice(errors["missing"]), world, action, "task_id", "")
        elif kind == "typo":
            wrong = misspell(a["title"], r)
            if not a["title"].isascii():  # letters that some terminal did not know
                wrong = re.sub(r"[^\x00-\x7f]", r.choice(["?", "??", "\ufffd", "_"]), a["title"])
            elif world.tasks and r.random() < 0.2:  # what another task is called
                wrong = r.choice(world.tasks).title
            if wrong == a["title"]:
                return None
            args[props["title"].name] = wrong
            text = self.error_text(r.choice(errors["typo"]), world, action, "title", wrong)
        elif kind == "cut":
            words = a["title"].split(" ")
            if len(words) < 3:
                return None
            wrong = " ".join(words[: r.randint(1, len(words) - 1)])
            if r.random() < 0.25:
                wrong += r.choice(["...", "\u2026", " ...", "-", ","])
            elif r.random() < 0.3:  # within a word
                wrong = a["title"][: r.randint(len(words[0]), len(a["title"]) - 1)]
            args[props["title"].name] = wrong
            text = self.error_text(r.choice(errors["cut"]), world, action, "title", wrong)
        elif kind == "due":
            wrong = r.choice(
                ["11/31", "soonish", "31.02.", "T+3", "0000-00-00", "next", "eod+1", "xx", "tmrw",
                 "2026-2-12", [a["due"]], 5, f"{iso(r)}T00:00:00Z", r.randrange(10**9, 2 * 10**9),
                 "09/09", "?", "", None, a["due"][:2], f"{a['due']}?", "1d", iso(r)[2:]]
            )  # fmt: skip
            args[props["due"].name] = wrong
            wrong = str(wrong)
            text = self.error_text(r.choice(errors["bad_date"]), world, action, "due", wrong)
        else:
            key = r.choice(list(args))
            wrong = r.choice(
                "name task id deadline prio when state taskid notes taskID task_title dueDate due_by "
                "desc description priorityLevel importance stage new_title number reminder "
                "assignee tags notes color project repeat category owner estimate parent done "
                "starred label list user_id remind_at due_time subtasks".split()
            )
            if wrong in args:
                return None
            if r.random() < 0.3:  # one too many
                value = r.choice(["", "user", True, False, None, 1, 30, title(r), "task", []])
                args = {**args, wrong: value}
            else:
                args = {wrong if k == key else k: v for k, v in args.items()}
            names = ", ".join(p.name for p in box.props[action.tool])
            values = {"field": wrong, "accepted": names, "tool": box.names[action.tool]}
            text = SLOT.sub(lambda m: values.get(m[1], m[0]), r.choice(errors["unknown_field"]))
        if r.random() < 0.35:
            # Whatever the error says: a call that is not what was asked for is to be mended. From
            # kinds of errors alone it would be learned which of them end in an apology.
            other = r.choice(["unavailable", "unavailable", *errors])
            shown = str(next(iter(args.values()), ""))
            text = self.error_text(r.choice(errors[other]), world, action, "task_id", shown)
        return action, args, text


def conversations(
    seed: int, pointing: float = POINTING
) -> Iterator[tuple[list[dict], list[dict] | None]]:
    """An endless stream of (messages, tools); the same for the same seed. `pointing` is the share
    of conversations in which a list is shown and its tasks are then referred to."""
    r = random.Random(seed)
    bad = blocked()
    while True:
        c = Conversation(r, pointing).build()
        if not c.messages:
            continue
        if any(m["role"] == "user" and fingerprint(m["content"]) in bad for m in c.messages):
            continue
        yield c.messages, c.tools
