# SPDX-License-Identifier: Apache-2.0
"""Requests that schemathesis makes of the server's own description: none of them may be answered with a failure."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
import pytest
from serving import serving

CHECKS = ",".join(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "unsupported_method",
    ]
)


@pytest.mark.slow
def test_no_request_makes_it_fail(tmp_path):
    pytest.importorskip("schemathesis", reason="pip install schemathesis fuzzes the server")
    with serving(max_wait_ms=0) as address:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--checks", CHECKS),
            *("--max-examples", "25", "--seed", "1", "--request-timeout", "10", "--no-color"),
            *("--generation-database", "none", "--suppress-health-check", "all"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        metrics = httpx.get(f"{address}/metrics").text
    asked = [line for line in metrics.splitlines() if line.startswith("hmsa_requests_total")]
    assert not any('status="5' in line for line in asked)
    assert any('"/segment",status="200"' in line or '"/segment",status="400"' in line for line in asked)
