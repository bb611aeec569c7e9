"""Processor time of one training slice: the detector's kernels and TorchIO's transforms in their place, on one thread.

Run: python tests/training/time_augmentations.py [repetitions]. Numbers: docs/decisions/0008-training.md.
"""

import sys
import warnings
from time import process_time

import numpy as np
import torch
import torchio

from spine_engine.detection import DetectorSpec
from spine_training.detector import augment
from spine_training.detector.phantoms import exams_from_phantom

CANVAS = (192, 160)
SPEC = DetectorSpec()
PICTURE = {
    # The chances and sizes of detector/augment.py, as near as TorchIO has them: no shear, no tilted plane, no free or
    # inverted curve; a turn in the picture's plane is one about the third axis.
    "affine": torchio.RandomAffine(
        scales=(0.8, 1.25, 0.8, 1.25, 1, 1), degrees=(0, 0, 0, 0, -16, 16)
    ),
    "gamma": torchio.RandomGamma(log_gamma=0.7),
    "bias field": torchio.RandomBiasField(coefficients=0.3, order=2, p=0.6),
    "noise": torchio.RandomNoise(std=(0, 0.08), p=0.5),
}


def median_ms(work, repetitions):
    work(0)  # compiles, fills caches
    took = []
    for number in range(repetitions):
        began = process_time()
        work(number)
        took.append(process_time() - began)
    return 1000 * float(np.median(took)), 1000 * float(np.mean(took))


def slice_of(exam):
    """The middle slice on the canvas in [0, 1], as the picture that TorchIO changes."""
    picture = torch.from_numpy(
        exam.volume[None, :, :, exam.volume.shape[2] // 2, None] / np.float32(255)
    )
    return torchio.CropOrPad((*CANVAS, 1))(torchio.ScalarImage(tensor=picture))


def main(repetitions):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torchio.transforms.augmentation.spatial.random_affine.sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(
        1
    )
    exam = augment.arrays_from_exam(exams_from_phantom(1)[0], SPEC)
    picture, whole = (
        slice_of(exam),
        torchio.ScalarImage(tensor=torch.from_numpy(exam.volume[None]).float()),
    )
    volume = exam.volume
    extent = (np.array(volume.shape) - 1) * exam.spacing_mm

    def kernels(number):
        augment.sample(exam, CANVAS, np.random.default_rng(number), SPEC)

    def picture_alone(number):
        rng = np.random.default_rng(number)
        place = augment._placement(
            rng, exam.discs, extent, np.array(CANVAS) * SPEC.pixel_mm
        )
        augment._sampled_image(
            exam,
            rng,
            SPEC,
            place,
            augment._slice_plane(rng, exam.discs, extent),
            CANVAS,
        )

    ways = {"kernels: picture and targets": kernels, "kernels: picture": picture_alone}
    ways |= {
        f"TorchIO: {name}": lambda _, change=change: change(picture)
        for name, change in PICTURE.items()
    }
    together = torchio.Compose(list(PICTURE.values()))
    ways["TorchIO: picture (all four)"] = lambda _: together(picture)
    ways["TorchIO: affine of the volume, for a tilted plane"] = lambda _: PICTURE[
        "affine"
    ](whole)
    print(
        f"exam {volume.shape}, canvas {CANVAS}, torchio {torchio.__version__}, {repetitions} repetitions"
    )
    for name, way in ways.items():
        median, mean = median_ms(way, repetitions)
        print(f"{name:52} median {median:7.2f} ms, mean {mean:7.2f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
