"""The long tier's tests of modules: they want PyTorch, or a foreign server."""

import pytest

pytest.register_assert_rewrite("store_suite")
