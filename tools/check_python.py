"""Says in one line what is missing before a virtual environment can be made. Runs on any Python 3."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before the right Python is there
    sys.exit("perilune needs Python 3.11 or newer. Try: make PYTHON=python3.12")
try:
    import ensurepip
    import venv
except ImportError:
    sys.exit("Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv")
assert ensurepip
assert venv
