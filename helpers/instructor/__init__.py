"""For instructors: the course as a batch, and the graded class.

``batch`` runs the notebooks with papermill; ``release`` and ``grading`` stand on nbgrader
(generate, autograde, feedback); ``sandbox`` runs one submission where it can hurt nobody;
``classroom`` grades many, over Dask; ``report`` says what came of it. See INSTRUCTORS.md.
"""
