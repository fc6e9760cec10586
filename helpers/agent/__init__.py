"""The Task API agent of lesson L07: one core, and three surfaces over it.

``guardrails``  what a request and a call must keep to
``spelling``    the request without capitals, courtesy, and slips in the words that decide
``pointing``    what "the other one" or "same for the car" means, put into the text
``reported``    which tasks a request reports as done
``titles``      a title as far as it goes in the request
``second_look`` what a model overlooked, and how it is asked for once more
``memory``      conversations in SQLite, cut to what the model can read
``models``      who is asked, in which order, and who answered
``core``        one turn: guard, model, checked tools, an answer that claims only what happened
``service``     what the surfaces share: tasks, conversations, the outbox, limits, counters
``cli`` ``rest`` ``over_mcp``  the surfaces: command line, web, MCP
``criteria``    the specification as checks, run against any of them, near or far
``export``      all of it as a folder that runs without a notebook

``python -m helpers.agent`` runs it; ``--help`` says how.
"""
