"""The shared module of the course: what would distract from a lesson, importable and tested.

Importing it costs milliseconds: every heavy library is imported where it is used.
``python3 -m helpers`` is the command line and runs on a bare Python.
"""

import sys as _sys

# jsonschema, which the SDKs use too, would compile a grammar of internationalised addresses when it
# is imported: more than a second in every kernel and server, and no tool's schema asks for them.
_sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
