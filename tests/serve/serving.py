# SPDX-License-Identifier: Apache-2.0
"""Servers of a network that a test can look through: it tells light pixels from dark ones."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np

from hmsa.deploy.runtime import Deployment
from hmsa.serve.app import Limits, make_app
from hmsa.serve.model import ServedModel
from hmsa.serve.server import bound, make_server
from hmsa.system.signals import StopRequest

DEPLOYMENT = {
    "model": "model.pdmodel",
    "params": "model.pdiparams",
    "transforms": [{"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}],
    "input_shape": [None, 3, None, None],
    "output_op": "argmax",
    "outputs": [
        {"name": "label", "dtype": "int32", "layout": "NHW"},
        {"name": "confidence", "dtype": "float32", "layout": "NHW"},
    ],
    "class_names": ["dark", "light"],
    "class_colors": [[10, 20, 30], [200, 100, 50]],
}


def light(images):
    """Whether each pixel is light in red, and how red it is: the network."""
    red = images[:, 0]
    return {"label": (red > 0).astype(np.int32), "confidence": np.abs(red).astype(np.float32)}


def make_model(run=light, *, max_pixels=1 << 21, **changes):
    deployment = Deployment.model_validate({**DEPLOYMENT, **changes})
    return ServedModel(run, deployment, name="light", max_pixels=max_pixels)


@contextmanager
def serving(run=light, *, folder=None, web=None, changes=(), **limits):
    """A server in a thread -> its address."""
    limits = Limits(**limits)
    model = make_model(run, max_pixels=limits.max_pixels, **dict(changes))
    app = make_app(model, limits, folder=folder, web=web)
    stop, ready = StopRequest(), threading.Event()
    with bound("127.0.0.1", 0) as listener:
        server = make_server(app, limits.timeout, stop, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(10)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.number = 15
            thread.join()
            app.state.server.close()
