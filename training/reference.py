"""Features of real images and what is derived from them, cached."""

import re
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from sparsegen.common.files import cache_folder
from sparsegen.common.progress import OnProgress, ProgressBar, no_progress_bar
from sparsegen.training.cache import computed_once
from sparsegen.training.data import Images
from sparsegen.training.features import FeatureNetwork, check_images
from sparsegen.training.metrics import Statistics
from sparsegen.training.neighbors import nearest
from sparsegen.training.probe import Probe, fit_probe

FORMAT = "1"  # of a cache file; increase it when the computation of features changes
CHUNK = 500  # images between two calls of a progress callback


def reference_features(
    images: np.ndarray,
    fingerprint: str,
    features: FeatureNetwork,
    cache_dir: Path | None = None,
    progress: OnProgress | None = None,
) -> np.ndarray:
    """Computes the feature of each real image, or reads them from the cache.

    Args:
        images: uint8 (N, H, W, 3), N >= 2.
        fingerprint: Name of these images in the cache, e.g. a hash: letters, digits and . _ -
        cache_dir: None: reference/ in `cache_folder()`. A damaged file is computed again. If the folder cannot be
            written, a warning is logged and the features are returned.
        progress: Called with the images done and N; not called if the features are cached.

    Shape: float32 (N, D).

    Raises:
        ValueError: On other images or another fingerprint.
    """
    check_images(images, least=2)

    def compute() -> dict[str, torch.Tensor]:
        found = np.empty((len(images), features.dimension), np.float32)
        for start in range(0, len(images), CHUNK):
            found[start : start + CHUNK] = features(images[start : start + CHUNK])
            if progress is not None:
                progress(min(start + CHUNK, len(images)), len(images))
        return {"features": torch.from_numpy(found)}

    path = _path(cache_dir, features, fingerprint, len(images), "features")
    return computed_once(path, FORMAT, compute)["features"].numpy()


def reference_statistics(
    images: np.ndarray,
    fingerprint: str,
    features: FeatureNetwork,
    cache_dir: Path | None = None,
    progress: OnProgress | None = None,
) -> Statistics:
    """Computes the statistics of `reference_features`, or reads them.

    Args, Raises: As `reference_features`.
    """
    check_images(images, least=2)

    def compute() -> dict[str, torch.Tensor]:
        found = Statistics.of(reference_features(images, fingerprint, features, cache_dir, progress))
        return {"mean": torch.from_numpy(found.mean), "covariance": torch.from_numpy(found.covariance)}

    path = _path(cache_dir, features, fingerprint, len(images))
    tensors = computed_once(path, FORMAT, compute)
    return Statistics(tensors["mean"].numpy(), tensors["covariance"].numpy(), len(images))


class Reference:
    """The features of training images, and of test images if there are any, in one feature network.

    Everything is computed on first use and cached.

    Args:
        test: None if there are no test images that differ from the training images.
        bar: Progress bar of the computations.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        train: Images,
        test: Images | None = None,
        bar: ProgressBar = no_progress_bar,
    ):
        self.network, self.train, self.test, self._bar = network, train, test, bar

    def require_test(self) -> Images:
        """Returns the test images. Raises: ValueError if there are none."""
        if self.test is None:
            raise ValueError(f"{self.train.name} has no test images: give test images")
        return self.test

    @cached_property
    def statistics(self) -> Statistics:
        with self._bar(f"{self.network.metric}: statistics of {self.train.name}", len(self.train)) as show:
            return reference_statistics(
                self.train.numpy(),
                self.train.fingerprint,
                self.network,
                progress=lambda done, _: show(done),
            )

    @cached_property
    def train_features(self) -> np.ndarray:
        return self._features(self.train)

    @cached_property
    def test_features(self) -> np.ndarray:
        """Raises: ValueError without test images."""
        return self._features(self.require_test())

    @cached_property
    def probe(self) -> Probe | None:
        """A linear classifier of the training images; None without labels of at least two classes."""
        labels = self.train.labels
        if labels is None or labels.min() == labels.max():
            return None
        path = _path(None, self.network, self.train.fingerprint, len(self.train), "probe")
        features = self.train_features  # before the bar, because they have their own
        with self._bar(f"{self.network.metric}: linear classifier of {self.train.name}", None):
            return Probe(**computed_once(path, FORMAT, lambda: vars(fit_probe(features, labels.numpy()))))

    @cached_property
    def test_distances(self) -> np.ndarray:
        """The distance from each test image to its nearest training image.

        Shape: (N,).

        Raises:
            ValueError: Without test images.
        """

        def compute() -> dict[str, torch.Tensor]:
            return {"distances": torch.from_numpy(self.nearest_train(self.test_features)[0][:, 0])}

        part = f"nearest-{self.require_test().fingerprint}"
        path = _path(None, self.network, self.train.fingerprint, len(self.train), part)
        return computed_once(path, FORMAT, compute)["distances"].numpy()

    def nearest_train(self, features: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Returns distances and rows of the nearest training images. Shape: (N, count) each."""
        references = self.train_features  # before the bar, because they have their own
        with self._bar(f"{self.network.metric}: nearest training images", len(features)) as show:
            return nearest(features, references, count, show)

    def _features(self, images: Images) -> np.ndarray:
        with self._bar(f"{self.network.metric}: features of {images.name}", len(images)) as show:
            return reference_features(
                images.numpy(), images.fingerprint, self.network, progress=lambda done, _: show(done)
            )


def _path(
    folder: Path | None, features: FeatureNetwork, fingerprint: str, count: int, part: str = ""
) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", fingerprint):
        raise ValueError(f"a fingerprint must be 1 to 100 letters, digits and . _ - ; got {fingerprint!r}")
    folder = cache_folder() / "reference" if folder is None else Path(folder)
    name = "-".join(filter(None, (features.key, fingerprint, str(count), part)))
    return folder / f"{name}.safetensors"
