"""Which build is under test (``make test-compiled``)."""

from __future__ import annotations

import pytest

from proxy.version import is_compiled

# Compiled classes check the types of what they hold, and their methods cannot be replaced.
interpreted_only = pytest.mark.skipif(is_compiled(), reason="replaces a part, which the compiled build does not allow")
