"""The checks of the exercises, one module per lesson: ``l01.py``, ``l02.py`` …

A check takes what the learner made and returns when it is right, with a sentence of praise if
there is something to say, or raises a :class:`helpers.lesson.Hint` that says what is wrong::

    from helpers.lesson import check, expect

    @check("L01", "choose-pattern", look="Three patterns, one table")
    def choose_pattern(choose):
        expect(choose, {"private": True}, equals="direct")
        expect(choose, {"private": False, "requests": 10}, equals="cloud")
        return "Private data never leaves the machine."

In the notebook it is one line: ``lesson.check("choose-pattern", choose_pattern)``.
"""
