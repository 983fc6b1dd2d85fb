# SPDX-License-Identifier: Apache-2.0
"""One 2048x1024 pair from its files through the recipe's transforms, on one thread."""

import tempfile
from pathlib import Path

from hmsa.environment import prepare

prepare()
import numpy as np  # noqa: E402
from paddleseg import transforms as theirs  # noqa: E402
from timing import compare  # noqa: E402

from hmsa import builder, load_config  # noqa: E402
from hmsa.config import arguments  # noqa: E402
from hmsa.datasets.dataset import SegmentationDataset  # noqa: E402
from hmsa.datasets.toy import label_ids, street  # noqa: E402
from hmsa.files import write_atomically  # noqa: E402

RECIPE = Path(__file__).parents[1] / "configs/mscale_ocr_cityscapes_autolabel_mapillary.yml"


def png(pixels: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


def main() -> None:
    specs = load_config(RECIPE).train_dataset.transforms
    with tempfile.TemporaryDirectory() as folder:
        objects, picture = street(np.random.default_rng(0), 1024, 2048)
        image, label = f"{folder}/image.png", f"{folder}/label.png"
        write_atomically(image, png(picture))
        write_atomically(label, png(label_ids(objects, 1024, 2048) % 19))
        dataset = SegmentationDataset(
            pairs=[(image, label)],
            num_classes=19,
            shuffle=True,
            label_transforms=True,
            transforms=builder.build_transforms(specs),
        )
        pipeline = theirs.Compose([getattr(theirs, spec.type)(**arguments(spec)) for spec in specs])
        samples = iter(range(10**6))
        compare(
            "loading five 2048x1024 pairs through the recipe, one thread",
            ours=lambda: [dataset[next(samples)] for _ in range(5)],
            theirs=lambda: [pipeline({"img": image, "label": label, "gt_fields": ["label"]}) for _ in range(5)],
            their_name="paddleseg 2.8.0",
        )


if __name__ == "__main__":
    main()
