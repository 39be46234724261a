"""kill -9 of every process that flowbook consists of, at many points of a run: nothing committed is lost, doubled or done again."""

import pytest

pytest.register_assert_rewrite("tests.kills.story")
