"""One profile of hypothesis for all tests: reproducible, and without deadlines, because the machine is shared."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("mlindex", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("mlindex")
