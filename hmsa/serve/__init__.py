# SPDX-License-Identifier: Apache-2.0
"""An export behind HTTP: FastAPI for the routes, uvicorn for the connections, one engine that is fed in batches."""
