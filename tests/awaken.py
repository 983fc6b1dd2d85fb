# SPDX-License-Identifier: Apache-2.0
import numpy as np


def awaken(model, seed=0):
    """Give a model weights as large as trained ones; new ones are so small that every answer is the same."""
    rng = np.random.default_rng(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            classifier = tensor.shape[0] in (1, 5)
            value = rng.normal(size=tensor.shape) * (4 if classifier else 1.1) / np.sqrt(np.prod(tensor.shape[1:]))
        elif name.endswith("_variance"):
            value = rng.uniform(0.7, 1.3, tensor.shape)
        elif "cls_head" in name:
            value = np.zeros(tensor.shape)
        else:
            value = rng.normal(size=tensor.shape) * 0.1 + (tensor.numpy().mean() > 0.5)
        tensor.set_value(value.astype(np.float32))
    model.eval()
    return model
