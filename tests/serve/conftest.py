# SPDX-License-Identifier: Apache-2.0
from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("fastapi") else ["test_*.py"]


@pytest.fixture(scope="package")
def address():
    """Of a server as it comes."""
    from serving import serving

    with serving() as address:
        yield address
