# SPDX-License-Identifier: Apache-2.0
"""Prints, as JSON, how far the network in training mode is from the golden vectors.

A program of its own because the vectors hold the rounding of Paddle's default matrix path: at 1x2 pixels the batch
normalisation of the smallest branch amplifies it to 2e-5, so the same path must be chosen before Paddle starts.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent
sys.path.insert(0, str(GOLDEN.parent))
sys.path.insert(0, str(GOLDEN.parent.parent))


def relative_error(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def main():
    import cv2  # noqa: F401  before Paddle
    import paddle
    from golden.reference_weights import GAIN, reference_image, reference_label, reference_state
    from with_defaults import BootstrappedCrossEntropyLoss, DiceLoss

    from hmsa.losses import WeightedLoss
    from hmsa.models import BACKBONES, MscaleOCRNet
    from hmsa.weights.loading import load_weights
    from hmsa.weights.names import released_name

    golden = np.load(GOLDEN / "golden_w18_small_v1.npz")
    keys = json.loads((GOLDEN / "released_keys_w18_small_v1.json").read_text())
    model = MscaleOCRNet(num_classes=19, backbone=BACKBONES["HRNet_W18_NV_Small_V1"](), dropout=0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.pdparams"
        paddle.save({k: paddle.to_tensor(v) for k, v in reference_state(keys, GAIN["w18_small_v1"]).items()}, path)
        load_weights(model, path)
    model.train()
    outputs = model(paddle.to_tensor(reference_image(2, 64, 128)))
    statistics = np.load(GOLDEN / "golden_statistics_w18_small_v1.npz")
    state = {released_name(name): value for name, value in model.state_dict().items()}
    of_statistics = {
        f"statistics:{name}": relative_error(state[name].numpy(), statistics[name]) for name in statistics.files
    }
    errors = {f"train_{name}": relative_error(x.numpy(), golden[f"train_{name}"]) for name, x in outputs.items()}
    errors.update(of_statistics)

    loss = WeightedLoss(
        terms={"dice": DiceLoss(), "bootstrapped_ce": BootstrappedCrossEntropyLoss(min_K=4000, loss_th=0.05)},
        weights={"joint": 1, "joint_aux": 0.4, "low": 0.05, "high": 0.05},
    )
    label = reference_label(2, 64, 128)
    label_tensor = paddle.to_tensor(label)
    total, terms = loss(outputs, label_tensor)
    values = {"_".join(name.split("/")): value for name, value in terms.items()}
    for name, value in {**values, "total": total}.items():
        errors[f"loss_{name}"] = relative_error(float(value), float(golden[f"loss_{name}"]))
    errors["label_written"] = float((label_tensor.numpy() != label).sum())

    total.backward()
    for name, parameter in model.named_parameters():
        expected = golden.get(f"grad:{released_name(name)}")
        if expected is not None:
            gradient = parameter.grad.numpy()
            gradient = gradient if gradient.shape == expected.shape else gradient.ravel()[: expected.size]
            errors[f"grad:{name}"] = relative_error(gradient, expected)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
