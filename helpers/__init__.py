"""The shared module of the course: what would distract from a lesson, importable and tested.

Importing it costs milliseconds: every heavy library is imported where it is used.
``python3 -m helpers`` is the command line and runs on a bare Python.
"""
