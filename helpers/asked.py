"""What a request in words asks for: which tasks it names, and whether it wants a call at all.

A model's call is carried out only when the *request* asked for it, whatever a task's title has
talked the model into. This is no model and has never read a title as an order: it takes the
request apart into clauses and looks for words. Word lists err in both directions; what they refuse
has to be said again in plain words.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from helpers.dates import parse_due
from helpers.settings import today

_DELETING = re.compile(
    r"\b(delet\w*|del|rm|remov\w*|eras\w*|scrap\w*|scratch|trash\w*|bin|binn\w*|dump\w*|ditch\w*"
    r"|drop\w*|discard\w*|cancel\w*|purg\w*|axe?|nix|nuke|zap|yeet|prune|cull|cut|strike|chuck\w*"
    r"|toss\w*|throw\w*|wip(?:e|ed|ing)|kill|lose|forget|never ?mind|rid|shot of|clear|abandon\w*"
    r"|unwanted|pull|yank|shred|burn|flush|destroy|obliterate|annihilate|eliminate|eradicate|bury"
    r"|terminate|expunge|withdraw\w*|retract|rescind|revoke|void|undo|unadd|banish|dispense"
    r"|dismiss|dissolve|scrub|sweep|strip|spare me|free me|relieve me|kick|goodbye|bye|be ?gone"
    r"|gone|vanish|disappear|give up|giving up|decided against|skip\w*|call(?:ed)? off"
    r"|rub (?:\w+ ){0,2}?out|x out|(?:can|must|to|let|make it|and) go|go away|go of|away with"
    r"|out with|off with|leave out"
    r"|(?:take|get|tidy|put|clean|weed|cross|empty) (?:\w+ ){0,3}?(?:off|out|down|away|of)"
    r"|(?:off|from) (?:my|the|this) (?:list|plate|board|record)|mistake|misclick|accident|duplicate"
    r"|dupe|obsolete|dlt|rmv|annul\w*|dispose of|in the garbage|the chop|shredder|just clutter"
    r"|un add|no trace of|outta|blow (?:\w+ )?away|be taken off|out it goes|off it goes"
    r"|let (?:task )?\d+ go|leave (?:my|the) list|relieve my list|never existed"
    r"|never want to see|never have been added|should(?:nt| not) be on (?:my|the) list"
    r"|no longer has a place|(?:not|\w+nt|no longer|no) (?:\w+ ){0,3}?"
    r"(?:need\w*|want\w*|requir\w*|relevant|happening|necessary|doing|keep|use))\b"
)
# A report of something done counts as well: "I watered the plants", "I paid the rent".
_FINISHING = re.compile(
    r"\b(fin|fini\w*|finsh\w*|complet\w*|conclud\w*|done|did|close[ds]?|closing|tick\w*|check\w*"
    r"|cross\w*|wrap\w*|mark\w* (?:\w+ ){0,3}off|accomplish\w*|ready|over|behind"
    r"|in the (?:bag|can|books|past|box|bank)|out of the way|off (?:my|the) (?:plate|list|desk)"
    r"|knock\w*|nail\w*|kill\w*|crush\w*|smash\w*|ace[ds]?|sort|all set|through|victory"
    r"|achiev\w*|success\w*|resolv\w*|settled?|taken care|seen to|green|tied up|put to bed"
    r"|dealt|dun|donezo|dunzo|to bed|bought|paid|wrote|written|sent|made|took|taken|sold|built|met"
    r"|went|gone|gave|brought|found|told|fed|swept|cut|hung|drove|ran|flew|spoke|spoken|taught|got"
    r"|held|kept|left|lent|lost|read|rode|said|saw|seen|sewn|shut|spent|won|(?!(?:need|want"
    r"|unwant|delet|remov|cancel|cancell|mov|chang|renam|postpon|schedul|delay|add|creat|updat"
    r"|pleas|overdu|nam|call|titl|suppos|start|stopp|reopen|paus|unticked|unchecked|reject"
    r"|forgott|ne|unfinish|uncomplet|ask|plann|intend|expect|requir|relat|tir|worri|bor|interest"
    r"|confus|wonder|look|propos|remind|list|assign|block|fe|se|spe|b|r|f)ed\b)[a-z]{2,}ed)\b"
)
_CREATING = re.compile(
    r"\b(add\w*|creat\w*|new|remind\w*|note|noted|jot|log|todo|to do|to dos|remember|dont forget"
    r"|do not forget|open (?:a|me)|write|pencil|stick|chuck|throw|pop|bung|whack|slap|schedul\w*"
    r"|register|record|track|file|enter|insert|include|append|queue|capture|save|book in|task"
    r"|start a|set up|raise|get|need\w*|must|gotta|have to|has to|should|ought|want|make (?:me|a)"
    r"|put|on (?:the|my|to|there|it)|forgot to)\b"
)
# Of these the ones that leave no doubt, also where a task that exists is named.
_SURELY_CREATING = re.compile(
    r"\b(add|adding|creat\w*|new|remind\w*|jot|note down|dont forget|do not forget|todo|(?:make"
    r"|open) (?:me )?an? (?:\w+ )?(?:task|todo|item)|(?:put|stick|pop|chuck|throw|bung"
    r"|get) (?:\w+ ){0,6}?on (?:there|(?:the|my) (?:\w+ ){0,2}?(?:list|todos?|agenda|board)))\b"
)
_CHANGING = re.compile(
    r"\b(renam\w*|retitl\w*|chang\w*|mov(?:e|ed|ing)|updat\w*|edit\w*|amend\w*|postpon\w*|push\w*"
    r"|resched\w*|shift\w*|bump\w*|set|make|mark\w*|reopen\w*|start\w*|stop\w*|paus\w*|upgrad\w*"
    r"|downgrad\w*|priorit\w*|promot\w*|lower|raise|put)\b"
)
_RENAMING = re.compile(
    r"->|=>|\u2192|\b(renam\w*|re ?titl\w*|titl\w*|nam(?:e|ed|ing)|call\w*|chang\w*|reads?|says?"
    r"|word\w*|re ?word\w*|text|edit\w*|mak(?:e|ing)|replac\w*|correct\w*|fix\w*|updat\w*|turn"
    r"|switch\w*|amend\w*|revis\w*|set|put|to|as|into|be|is|should|instead|spell\w*|typo"
    r"|describ\w*|label\w*|re ?phras\w*|becomes?|means?|writ\w*|modif\w*|adjust\w*|alter\w*"
    r"|swap\w*|want\w*|need\w*)\b"
)
_NAMING = re.compile(
    r"\b(?:renam|re ?titl|titl|nam(?:e|ed|ing)\b|call|re ?word|word|text|re ?phras|label|spell"
    r"|say)"
)
_UNDATED = re.compile(
    r"\b(no (?:longer )?(?:\w+ )?(?:date|due|deadline|rush|hurry)|undated?|whenever|any ?time"
    r"|none|open ended|someday|dateless|timeless|unschedul\w*|(?:due|date|deadline"
    r"|schedule)\w*.*\b(?:off|out|away|go|gone|nothing|blank|empty|null|not|nt|\w+nt|removed?"
    r"|dropped|cleared?|deleted?|cancell?ed|unnecessary|obsolete|scrap\w*|forget|erase\w*|wipe\w*"
    r"|disappear|matters?)|(?:off|without|lose|loses|drop\w*|remov\w*|clear\w*|delet\w*|take"
    r"|strip\w*|forget|scrap\w*|cancel\w*|rid|unset|eras\w*|wip\w*|kill\w*|ditch\w*|no|not|\w+nt"
    r"|away|out|free|cut|scratch|axe?|nix|void|bin|trash|toss|reset|undo|empty|blank|nuke|zap"
    r"|strike|discard|lift|release)\b.*\b(?:dates?|due|deadline|time|schedul\w*|limit))\b"
)
# What people say for the values of priority and status.
_VALUES = {
    "low": r"low\w*|un ?important|minor|trivial|least|back ?burner|depriori\w*|downgrad\w*|can wait"
    r"|whenever|no (?:rush|hurry|big deal)|nice to have|not \w*\s?(?:important|urgent|pressing)"
    r"|\w+nt (?:\w+ )?(?:important|urgent|pressing|matter)|some ?day|bottom|relax\w*|calm"
    r"|insignificant|far from urgent|(?:nothing|no longer|stopped being|not a|\w+nt a|zero|little"
    r"|no great) (?:urgen\w*|important|importance|pressing|priority)|reduce\w*|down|eventually"
    r"|leisurely|optional|less",
    "medium": r"med|medium|mid|middl\w*|normal\w*|moderate|average|regular|standard|ordinary"
    r"|default|usual|neutral|so ?so|in ?between",
    "high": r"high\w*|hi|important|importance|prioriti[sz]e|big|top|significant|matters?|key"
    r"|serious|upgrad\w*|major|main|escalat\w*|up|raise|bump|essential|more|front|boost\w*"
    r"|elevat\w*",
    "urgent": r"red alert|code red|stat|urgen\w*|asap|a s a p|critical\w*|immediate\w*|emergency"
    r"|now|right away|straight away|burning|top|highest|crucial\w*|pressing|everything|fire|hurry"
    r"|cant wait|cannot wait|vital|p0|p1|max\w*|instantly|first|life|quick\w*|rush|wait"
    r"|yesterday|pronto|once|soon\w*|alarm",
    "pending": r"pend\w*|to ?do|not (?:yet )?(?:started|begun|touched|done|finished|complete\w*"
    r"|over)|\w+nt (?:\w+ )?(?:start\w*|begun|begin|touch\w*|done|finish\w*|do|complete\w*)"
    r"|re ?open\w*|open|back|undo\w*|un ?finish\w*|in ?complete|restart|paus\w*|hold"
    r"|wait\w*|stopp?\w*|halt\w*|park\w*|shelv\w*|un ?tick\w*|un ?check\w*|un ?complet\w*"
    r"|unmark\w*|reset|still|again|queue|suspend\w*|untouched|yet|not|later|mistake|premature"
    r"|outstanding|revert|restore",
    "in_progress": r"progress|start\w*|begun|began|begin\w*|work\w*|on it|on|under ?way"
    r"|doing|going|wip|ongoing|busy|half\w*|part\w*|mid\w*|tackl\w*|active\w*|motion|into|got to"
    r"|rolling|run\w*|current\w*|now|hands|onto|process|kick\w*|pick\w*|resum\w*|continu\w*|at it",
}
# Of these the ones that say little beside a word for another thing.
_VAGUE = re.compile(
    r"\b(?:now|once|first|life|quick\w*|wait|everything|up|down|more|less|on|into|run\w*|hi|top|key"
    r"|big|front|rush|soon\w*|yesterday|hands|onto|at it|current\w*|again|main|bottom)\b"
)
_NOT = (
    r"(?:dont|never|not|wont|shouldnt|mustnt|cant|cannot|didnt|havent|hasnt|isnt|arent|wasnt|aint)"
)
_NEGATED_VALUE = re.compile(
    rf"\b(?:{_NOT}|no longer|nothing|stopped) (?:(?:that|so|really|very|too|at|all|being|be|a|an"
    rf"|yet"
    r"|even|any|more) )*(?:urgent|important|pressing|critical|high|low|medium|in progress|pending"
    r"|priority)\b"
)
# A question asks for an answer, not for a change. "Could you", "would you mind" do ask for one.
_FILLER = re.compile(
    r"^(?:(?:hi|hey|hello|ok|okay|so|and|well|oh|um|please|pls|but|now|right|then|also|just|sorry"
    r"|actually|hm+|btw|yo) )+"
)
_QUESTION = re.compile(
    r"^(?:what (?!a\b|an\b|if we\b|about\b)|whats\b|which\b|whos?\b|why (?!not\b|dont (?:you|we)\b)"
    r"|wheres?\b|how (?!about (?:we|i|you|\w+ing)\b)|hows\b|(?:did|have|has|had) (?:i|you|we|they"
    r"|he|she|the|my|any\w*|some\w*|task)\b|(?:is|are|was|am) (?!it possible|you able"
    r"|there a(?:ny)? (?:way|chance)|done\b|complete\b|finished\b)|does\b|do (?:i|we|they"
    r"|you (?!mind|think you))|(?:should|shall|must) (?:i|we)\b|check (?:if|whether)\b|(?:(?:can"
    r"|could|would|will) you )?(?:please )?(?:tell|show|let me know|say|see (?:if|whether))\b)"
)
_ASKING = re.compile(
    r"\b(?:can|could|would|will|wont|cant|couldnt|may|might|mind|please|pls|let|lets|want|wanna"
    r"|possible|able|favou?r|chance|(?:how|what) about|why not|why dont|wouldnt)\b"
)
_VERBS = (
    r"(?:delet\w*|remov\w*|eras\w*|scrap\w*|trash\w*|bin|dump\w*|drop\w*|discard\w*|cancel\w*"
    r"|purg\w*|get rid|throw\w*|wip(?:e|ed|ing)|kill|clear\w*|toss\w*|ditch\w*|finish\w*"
    r"|complet\w*|done|clos\w*|tick\w*|check\w*|cross\w*|mark\w*|wrap\w*|add|adding"
    r"|creat\w*|make|making|put|set|chang\w*|mov(?:e|ed|ing)|renam\w*|retitl\w*|updat\w*|touch\w*"
    r"|postpon\w*|reopen\w*|forget|ready|over|gone|take|strike|cut|lose|call|remind\w*|did|do"
    r"|been|bought|paid|sent|written|(?!need|want|requir)[a-z]{3,}ed)"
)
# "don't delete the milk one", "14 is not done": what follows is not asked for.
_NEGATED = re.compile(
    rf"\b(?:(?:{_NOT}|do not|nobody|no one|avoid|refrain from|instead of|rather than|without"
    r"|far from|stop) (?:(?:you|ever|yet|even|just|please|to|be|been|want|wants|wanted|me|us|go"
    r"|and|really|actually|dare|it|quite|should|may|must|whatever|under|any|circumstances|all|at"
    r"|a|that|this|them|ask\w*|like|need|said|saying|mean|accidentally|anything|anyone) ){0,6}?"
    + _VERBS
    + r"\b(?! of mind)"
    r"|(?:dont|do not|never|not) (?:want|need) (?:the |my |task |it "
    r"|that )?(?:\w+ ){0,3}?(?:deleted|removed|gone|erased|cancelled|completed|finished|closed"
    r"|changed|moved|touched)\b|(?:^|(?:we|please|pls|to|lets|must|should|just|still"
    r"|rather) )(?:keep|leave)\b(?! (?:out|me|us)\b)(?<!not to keep)(?<!nt to keep)).*"
)
# Verbs with two letters swapped; of long ones also with one left out: "delte", "remvoe", "dnoe".
_SLIPPED = (
    "delete deleted remove removed cancel cancelled erase scrap trash complete completed "
    "finish finished done check tick"
).split()
_SLIPS = {
    slip: verb
    for verb in _SLIPPED
    for at in range(1, len(verb))
    for slip in (
        verb[:at] + verb[at + 1 : at + 2] + verb[at] + verb[at + 2 :],
        verb[:at] + verb[at + 1 :] if len(verb) > 5 else verb,
    )
    if slip not in (*_SLIPPED, "compete", "competed")  # the last two are other verbs
}
_NUMBERS = {
    word: n
    for n, word in enumerate(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty".split(),
        1,
    )
}
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
_TIMES = re.compile(
    r"\b\d{4}-\d\d?-\d\d?\b|\b\d{1,2}:\d\d\b|\b\d{1,2} ?[ap]m\b"
    rf"|\b\d{{1,2}} (?:of )?{_MONTH}\b|\b{_MONTH} \d{{1,2}}\b"
    r"|\b(?:to|by|on|until|till|before|for|due) \d{1,2} may\b"  # "task 3 may go" is no date
    r"|\b\d+ (?:out )?of \d+\b|\b\d+ ?(?:minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?)\b"
)
_JOINING = frozenset("task tasks number also both too the as well".split())
# Words that name no task: grammar, the words of the domain, and the verbs of the five tools.
_EMPTY = frozenset(
    """a about again all already also an and any are as at away be been by can could do does for
    from get go got has have i im in is it item items ive just list make me my need no not now of
    off on one ones our out over please put set so some task tasks that the them then there thing
    things this to todo todos too up us want was we with would you your high low medium urgent
    priority status pending progress completed due today tomorrow new change move rename call
    called name named add create update finish finished complete done mark close delete remove
    everything every both ignore previous instructions instruction show tell what which am he hi id
    if oh ok or pm re th uh um ve ll xx yo nd rd st ha hm""".split()
)


def words(text: str) -> list[str]:
    """The words of a text, folded: lower case, no apostrophes, no punctuation."""
    return re.findall(r"\w+", re.sub(r"['\u2019]", "", text.casefold()))


_IRREGULAR = {
    past: verb
    for line in (
        "bleed bled", "break broke broken", "bring brought", "build built", "burn burnt",
        "buy bought", "catch caught", "choose chose chosen", "dig dug", "do did",
        "draw drew drawn", "drive drove driven", "eat ate eaten", "feed fed", "find found",
        "fly flew flown", "freeze froze frozen", "get got gotten", "give gave given",
        "go went gone", "hang hung", "hold held", "keep kept", "lay laid", "lead led",
        "learn learnt", "lend lent", "make made", "meet met", "mow mown", "pay paid",
        "ride rode ridden", "ring rang rung", "run ran", "sell sold", "send sent", "sew sewn",
        "sing sang sung", "speak spoke spoken", "spend spent", "stick stuck", "sweep swept",
        "swim swam swum", "take took taken", "teach taught", "tell told", "throw threw thrown",
        "win won", "write wrote written",
    )
    for verb, *forms in [line.split()]
    for past in forms
}  # fmt: skip


_ES = re.compile(r"(?:[sxz]|[cs]h|...o)es$")  # boxes, dishes, potatoes; not cakes, shoes
_SHORT = "[^aeiou]*[aeiou][^aeiouwxy]"


def stem(word: str) -> str:
    """Rather too short than too long: plan, plans, planning; write, writes, writing, wrote."""
    word = _IRREGULAR.get(word, word)
    if len(word) > 5 and word.endswith(("ies", "ied")):
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es" if _ES.search(word) else "s"):
        root = word[: -len(ending)]
        if word.endswith(ending) and len(root) >= 3 and re.search("[aeiouy]", root):  # shred
            word = root
            doubled = len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeilosz"
            if ending in ("ing", "ed") and doubled:
                word = word[:-1]
            elif ending in ("ing", "ed") and re.fullmatch(_SHORT, word):
                word += "e"  # baking is of bake: one consonant alone would have been doubled
            break
    return word[:-1] if word.endswith("e") and len(word) > 4 else word  # a car is no care


def is_past(word: str) -> bool:
    """Whether a word is a verb's past form: "wrote", "planted"."""
    return word in _IRREGULAR or (word.endswith("ed") and stem(word) != word)


def telling(text: str) -> set[str]:
    """The words by which a task can be told from others."""
    return {stem(w) for w in words(text) if w not in _EMPTY and not w[0].isdigit() and len(w) > 1}


def names(title: str) -> frozenset[str]:
    """The words that may name a task in a request: "the backup" may be "Back up the photos"."""
    return _title(title)[0]


@functools.lru_cache(maxsize=2048)  # each request is compared with every title, and more than once
def _title(title: str) -> tuple[frozenset[str], frozenset[str], str]:
    """Of a title: the words that may name it, all of them, and what it begins with."""
    said = words(title)
    joined = {a + b for a, b in itertools.pairwise(said)}
    return frozenset(telling(title) | joined), frozenset(said), stem(said[0]) if said else ""


def numbers(text: str, tasks: Sequence[Mapping[str, Any]] = ()) -> set[int]:
    """The numbers in a text that can be a task's: ``14``, ``#14``, ``task three``.

    Dates, times of day and lengths of time are none, and neither is a number of a title.

    Args:
        text: What the person said.
        tasks: Those whose titles may have one: "the hive 2 one".
    """
    text = _TIMES.sub(" ", text.casefold())
    for word, number in _in_titles(text, tasks):
        text = re.sub(rf"\b{re.escape(word)}\W+{number}\b", " ", text)
    found = {int(n) for n in re.findall(r"(?<![\w.])#?(\d{1,18})(?![\w]|\.\d)", text)}
    named = re.findall(r"\btask (?:number )?([a-z]+)\b", text)
    return found | {_NUMBERS[word] for word in named if word in _NUMBERS}


def _in_titles(text: str, tasks: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """The numbers that stand in a text behind a word as they do in a title, each with the word."""
    said = set(itertools.pairwise(words(text)))
    return {
        (word, number)
        for task in tasks
        for word, number in itertools.pairwise(words(task["title"]))
        if re.fullmatch(r"[0-9]{1,18}", number) and telling(word) and (word, number) in said
    }


def _clauses(request: str, tasks: Sequence[Mapping[str, Any]] = ()) -> list[tuple[str, str]]:
    """A request in its parts: "finish 14 and remove 15" is two.

    A part that names no task belongs to the part before it: "14 is obsolete, delete it". A part
    of nothing but numbers goes on with the verb before: "delete 3, 4 and 5".

    Returns:
        Of each part all that it says, by which a task is named, and what it asks for: bare
        questions and what is negated are left out there.
    """
    parts: list[tuple[str, str]] = []
    for part, asks in _segments(request):
        if parts and not numbers(part) and not meant(part, tasks):
            parts[-1] = f"{parts[-1][0]} {part}", f"{parts[-1][1]} {asks}"
        elif parts and all(w.isdigit() or w in _JOINING or w in _NUMBERS for w in words(part)):
            parts.append((f"{parts[-1][0]} {part}", f"{parts[-1][1]} {asks}"))
        elif parts and not numbers(parts[0][0]) and not meant(parts[0][0], tasks):
            parts[-1] = f"{parts[-1][0]} {part}", f"{parts[-1][1]} {asks}"
        else:
            parts.append((part, asks))
    return parts


_SPLIT = re.compile(r"([,;:.!?\n]+|\b(?:and|then|plus|but|so)\b|&|\+| - )")


@functools.lru_cache(maxsize=256)  # each check of a turn reads the same request
def _segments(request: str) -> tuple[tuple[str, str], ...]:
    """What stands between commas and joining words, and what of it asks for something.

    A word that is negated begins with an underscore there.
    """
    text = re.sub(
        r"\b(do not|don['\u2019]?t|never|not) ?,([^,.;!?]*),", r"\1\2", request.casefold()
    )
    pieces = [*_SPLIT.split(text), ""]
    made = []
    first, asking = True, False  # in the sentence
    for part, mark in zip(pieces[::2], pieces[1::2], strict=True):
        said = _FILLER.sub("", f"{_plain(part)} ").strip()
        if said:
            asking = asking or bool(_ASKING.search(said))
            begins = re.match(rf"{_VERBS}\b", said) or _DELETING.match(said)
            question = (first and _QUESTION.match(said)) or (
                "?" in mark and not asking and not begins
            )
            made.append((part, "" if question else _affirmed(part)))
            first = False
        if re.search(r"[.!?;\n]", mark):
            first, asking = True, False
    return tuple(made)


def _affirmed(part: str) -> str:
    part = re.sub("[\U0001f5d1]", " delete ", part)
    said = re.sub(r"[\u2713\u2714\u2705\u2611]|\[x\]|\b100 ?(?:%|percent)", " done ", part)
    said = _plain(re.sub("->|=>|\u2192", " to ", said)).replace("_", " ")
    said = " ".join(_SLIPS.get(word, word) for word in said.split())
    said = re.sub(rf"\b(?:{_NOT}|do not|must not|not to) forget\b", "remember", said)
    said = re.sub(
        r"\b(back (?:to|as)(?: being)?) not (?:yet )?(?:done|finished)\b", r"\1 pending", said
    )
    for negated in (_NEGATED, _NEGATED_VALUE):
        said = negated.sub(lambda found: re.sub(r"\b(?=\w)", "_", found[0]), said)
    return said


def _plain(text: str) -> str:
    return " ".join(words(text))


def meant(request: str, tasks: Sequence[Mapping[str, Any]]) -> list[int]:
    """The tasks whose titles a request names in words, best first; ties are all there.

    Of titles with as many of its words, those with a number of it are meant: "chapter 3"; then
    those that begin with its verb: "painting" is rather "Paint the table" than "Buy paint".

    Args:
        request: What the person said.
        tasks: The tasks there are.
    """
    said = telling(request)
    digits = {word for word in words(request) if word.isdigit()}
    verbs = {stem(word) for word in words(request) if re.search("(ing|ed)$", word)}

    def score(title: str) -> tuple[int, int, bool]:
        named, every, first = _title(title)
        return len(said & named), len(digits & every), first in verbs

    scored = [(score(task["title"]), task) for task in tasks]
    best = max((score for score, _ in scored), default=(0, 0, False))
    return [task["task_id"] for score, task in scored if score == best] if best[0] else []


def titled(request: str, tasks: Sequence[Mapping[str, Any]]) -> set[int]:
    """The tasks whose titles the parts of a request name in words: of each part the best.

    Args:
        request: What the person said.
        tasks: The tasks there are.
    """
    return {number for part, _ in _segments(request) for number in meant(part, tasks)}


def before_name(request: str, titles: Iterable[str]) -> str:
    """What a request says before the first word that names a task; all, where none does.

    Args:
        request: What the person said.
        titles: Of the tasks that it names.
    """
    names = set().union(*map(telling, titles))
    for word in re.finditer(r"[\w'\u2019]+", request):
        if telling(word[0]) & names:
            return request[: word.start()]
    return request


_COURTESY = frozenset(
    """hi hello hey there good morning afternoon evening night day bye goodbye thanks thank thx ty
    cheers you very much so a lot ok okay great cool nice perfect wonderful lovely awesome super
    brilliant well thats all again and welcome sorry for the your help""".split()
)


# What else people say when they leave; not alone, for "tonight" may be a date that was missing.
_LEAVING = frozenset(
    """thats me for tonight today now going off to bed sleep see later soon tomorrow x xx im ill be
    have must run then talk speak and take care catch""".split()
)


def only_courtesy(request: str) -> bool:
    """Whether a request is nothing but a greeting, thanks or a goodbye."""
    said = set(words(request))
    leaves = said & {"night", "bye", "goodbye", "thanks", "thx", "bed"}
    return bool(said) and said <= (_COURTESY | _LEAVING if leaves else _COURTESY)


def only_asks(request: str) -> bool:
    """Whether a request is a bare question, which wants an answer and no change.

    "What is due next week?" is one; "could you move it to next week?" is none.
    """
    parts = _segments(request)
    return bool(parts) and not any(asks for _, asks in parts)


def surely_creates(request: str) -> bool:
    """Whether a request says beyond doubt that a new task is wanted: "add a task to ..."."""
    return any(_SURELY_CREATING.search(asks) for _, asks in _segments(request))


def asking_parts(request: str) -> list[str]:
    """The parts of a request that ask for something, or report it; none that is negated."""
    return [part.strip() for part, asks in _segments(request) if asks and "_" not in asks]


def parts_about(request: str, tasks: Sequence[Mapping[str, Any]]) -> list[tuple[str, set[int]]]:
    """The parts of a request that ask for something, each with the tasks that it names."""
    return [
        (part, numbers(part, tasks) | set(meant(part, tasks))) for part in asking_parts(request)
    ]


def reports(part: str) -> bool:
    """Whether a part of a request has a word for something finished: "the radiators are bled"."""
    return bool(_FINISHING.search(_affirmed(part)))


def numbered(request: str, tasks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tasks that a request names by a number in their titles, and a word of them: "bug 421".

    A number that is a task's own names that task, and no title.

    Args:
        request: What the person said.
        tasks: The tasks there are.
    """
    other = numbers(request) - {task["task_id"] for task in tasks}
    said = {str(n) for n in other} | {number for _, number in _in_titles(request, tasks)}
    return [
        task
        for task in tasks
        if said & set(words(task["title"])) and telling(request) & telling(task["title"])
    ]


def asked_for(
    request: str, name: str, arguments: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]
) -> str:
    """Whether a request asks for a call, judged from the request alone.

    The model may have been talked into something by what it read in a task's title. This
    function has read the request only, and is no model: what it lets through does not depend on
    how convincing a title is. It uses titles for one thing, to see which one the request names.

    A call passes when

    * its task is named, by number or by words that no other title has as many of;
    * the part of the request that names the task asks for it: a deletion with a deleting word, a
      completion with a finishing one, a change with a word for each new value;
    * a new task is asked for, or nothing else can be meant;
    * the words of a new title and of a date come from the request.

    A bare question asks for nothing, and neither does what is negated ("don't delete 14"). What
    stands between quotation marks names things, and asks for nothing. These are word lists: a
    request in unusual words is refused, and has to be said again in plain ones.

    Args:
        request: What the person said.
        name: The tool.
        arguments: Its arguments, checked against the schema.
        tasks: The tasks there are.

    Returns:
        An empty text, or the reason why not, for the model of whoever sent the request.
    """
    if name == "list_tasks":
        return ""
    said = {*words(request), *map(str, numbers(request))}
    for key in ("title", "due"):
        strange = [w for w in words(str(arguments.get(key, ""))) if w not in said]
        if strange and not (key == "due" and arguments[key] == "none"):
            return f"The request does not say {strange[0]!r}, which the model wrote as {key}."
    if name == "create_task":
        return _create_asked_for(request, arguments, tasks)
    task_id = arguments["task_id"]
    commands = _QUOTED.sub(" ", request)
    parts = _clauses(commands, tasks)
    clauses = [part for part in parts if task_id in numbers(part[0])]
    if not clauses:
        by_number = [task["task_id"] for task in numbered(commands, tasks)]
        candidates = by_number or meant(request, tasks)
        if task_id not in candidates or (numbers(commands) and not by_number):
            return f"The request does not name task {task_id}. Name it: 'task {task_id}'."
        if len(candidates) > 1:
            ids = ", ".join(map(str, candidates))
            return f"It is not clear which task is meant: {ids} all fit. Name one by its number."
        title = next(task["title"] for task in tasks if task["task_id"] == task_id)
        clauses = [part for part in parts if telling(part[0]) & telling(title)]
        clauses = clauses or parts
    asks = [asking for _, asking in clauses]
    deleting = any(_DELETING.search(part) for part in asks)
    finishing = any(_FINISHING.search(part) for part in asks)
    if name == "delete_task" and not deleting:
        return f"The request does not ask to delete task {task_id}. Say: 'delete {task_id}'."
    if name == "complete_task" and not finishing:
        if deleting:
            return f"The request asks to delete task {task_id}, not to complete it."
        return f"The request does not ask to complete task {task_id}. Say: 'finish {task_id}'."
    if name == "update_task":
        # What names no task of the list can go on with any part: "move 14 to 9, 15 december".
        known = {task["task_id"] for task in tasks}
        loose = [a for p, a in parts if not known & numbers(p) and not meant(p, tasks)]
        return _changes_asked_for(request, arguments, " ".join([*asks, *loose]))
    return ""


_QUOTED = re.compile(r'"[^"]*"|\u201c[^\u201d]*\u201d|(?<!\w)\'[^\']*\'(?!\w)')


def _create_asked_for(
    request: str, arguments: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]
) -> str:
    """Whether a request asks for this new task; the reason why not."""
    quoted: list[str] = []

    def keep(found: re.Match[str]) -> str:
        quoted.append(found[0])
        return f" quoted{len(quoted) - 1}q "

    known = {task["task_id"] for task in tasks}
    segments = _segments(_QUOTED.sub(keep, request))
    creating = any(_CREATING.search(asks) for _, asks in segments)
    allowed: set[str] = set()
    other = False  # this segment is about a task that exists
    for part, asks in segments:
        named = bool(known & numbers(part) or _only_names(part, tasks))
        acts = any(verb.search(asks) for verb in (_DELETING, _FINISHING, _CHANGING))
        if _SURELY_CREATING.search(asks):
            other = False
        elif (acts and (numbers(part) or meant(part, tasks))) or (named and not creating):
            other = True
        elif _CREATING.search(asks) and not named:
            other = False
        talk = not creating and (not asks or _TALK.match(_plain(part)))
        if not (other or talk or "_" in asks or (not asks and named)):
            text = re.sub(r"quoted(\d+)q", lambda found: quoted[int(found[1])], part)
            allowed |= {*words(text), *map(str, numbers(text))}
    strange = [word for word in words(arguments["title"]) if word not in allowed]
    if not allowed or not set(strange) <= _EMPTY or len(strange) == len(words(arguments["title"])):
        return (
            f"The request does not ask for a new task. Say: 'add a task to {arguments['title']}'."
        )
    priority = arguments.get("priority", "medium")
    if priority != "medium" and not _says(priority, " ".join(asks for _, asks in segments)):
        return f"The request does not say that the task is {priority}."
    return ""


_TALK = re.compile(r"(?:hello|hi|hey|thanks?|bye|show|list|tell|display|view|see|read|give|help)\b")


def _only_names(part: str, tasks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a part of a request says nothing but words of one task's title."""
    said = telling(part)
    return bool(said) and any(said <= telling(task["title"]) for task in tasks)


_SMALL = frozenset(
    "the a an my our his her their and one ones task tasks thing also too of for".split()
)


def bare_name(part: str, tasks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a part of a request is a name and says nothing: "the toner one", not "toner bought".

    Args:
        part: The part.
        tasks: The tasks there are.
    """
    said = set(words(part)) - _SMALL
    return bool(said) and any(said <= set(words(task["title"])) for task in tasks)


def _changes_asked_for(request: str, arguments: Mapping[str, Any], asks: str) -> str:
    """Whether a part of a request says each new value; the reason why not."""
    task_id = arguments["task_id"]
    # "finish the plants one now" does not make it urgent, although "make it now" could.
    elsewhere = (_FINISHING.search(asks) or _DELETING.search(asks)) and not _CHANGING.search(asks)
    for key in ("priority", "status"):
        value = arguments.get(key)
        if value is None:
            continue
        if value == "completed":
            said = bool(_FINISHING.search(asks))
        elif elsewhere and value != "pending":
            said = _says(value, _VAGUE.sub(" ", asks))
        else:
            said = _says(value, asks)
        if not said:
            return f"The request does not ask to set the {key} of task {task_id} to {value}."
    due = arguments.get("due")
    if due == "none" and not _UNDATED.search(asks):
        return f"The request does not ask to take the date off task {task_id}."
    if due and due != "none":
        near = {*words(asks), *map(str, numbers(asks))}
        strange = [word for word in words(due) if word not in near]
        if strange:
            return f"The request does not say {strange[0]!r} of task {task_id}."
    title = arguments.get("title")
    if title is not None:
        lead = re.sub(r"->|=>|\u2192|[:=\n\"\u201c]|(?<!\w)'", " to ", request.casefold())
        into = rf"\b{_INTO}(?: \w+){{0,3}} {re.escape(_plain(title))}\b"
        plainly = _NAMING.search(asks) or not _is_value(title)
        if not (plainly and _RENAMING.search(asks) and re.search(into, _plain(lead))):
            return f"The request does not ask to rename task {task_id}. Say: 'rename {task_id} to'."
    return ""


def _is_value(title: str) -> bool:
    """Whether a title is rather a date, a priority or a status: "mark it as done"."""
    said = _plain(title)
    if not telling(title) or _FINISHING.fullmatch(said):
        return True
    if any(re.fullmatch(pattern, said) for pattern in _VALUES.values()):
        return True
    try:
        parse_due(title, today())
    except ValueError:
        return False
    return True


_INTO = (
    r"(?:to|as|into|says?|reads?|reading|saying|called?|named?|title\w*|retitle\w*|rename\w*|text"
    r"|word\w*|be|is|should|becomes?|with|by|make|for|label\w*|about|means?|now|instead|write|it)"
)


def _says(value: str, text: str) -> bool:
    """Whether a text has a word for a value, also one with two letters changed: "hihg"."""
    if value in ("low", "pending"):  # "not important", "not started"
        text = text.replace("_", "")
    if re.search(rf"\b(?:{_VALUES[value]})\b", text):
        return True
    near = [word for word in text.split() if word[0] == value[0] and len(word) <= len(value) + 1]
    return bool(difflib.get_close_matches(value.replace("_", " "), near, 1, 0.75))
