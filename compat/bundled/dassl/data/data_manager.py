"""From a data set to loaders."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from yacs.config import CfgNode

from ..utils import read_image
from .datasets import Datum, build_dataset
from .samplers import build_sampler
from .seeding import EpochLoader, SeededSampler, sample_seed
from .transforms import INTERPOLATION_MODES, build_transform

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]

Transform = Callable[[Image.Image], Any]
Transforms = Transform | list[Transform] | tuple[Transform, ...]


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] = None,  # type: ignore[assignment]  # Dassl's default, never used
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transforms | None = None,
    is_train: bool = True,
    dataset_wrapper: "type[DatasetWrapper] | None" = None,
) -> EpochLoader:
    """Build the loader of one split.

    Training loaders give each sample a seed (see ``seeding``), so the images do not depend on the number of workers.
    Workers stay alive between epochs.

    Args:
        cfg: Configuration.
        sampler_type: Name for ``build_sampler``.
        data_source: List of ``Datum``.
        batch_size: Images per batch; in training an incomplete last batch is dropped if there is a complete one.
        n_domain: For the domain samplers.
        n_ins: For the class sampler.
        tfm: Transform, or list of transforms.
        is_train: Training or test.
        dataset_wrapper: Class to use instead of ``DatasetWrapper``.
    """
    sampler = build_sampler(
        sampler_type, cfg=cfg, data_source=data_source, batch_size=batch_size, n_domain=n_domain, n_ins=n_ins
    )
    wrapper = DatasetWrapper if dataset_wrapper is None else dataset_wrapper
    num_workers = cfg.DATALOADER.NUM_WORKERS
    loader = EpochLoader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=SeededSampler(sampler) if is_train else sampler,
        num_workers=num_workers,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
        persistent_workers=num_workers > 0,
    )
    assert len(loader) > 0, "the loader is empty; the split has no images"
    return loader


class DataManager:
    """Data set, transforms and loaders of a run.

    Args:
        cfg: Configuration.
        custom_tfm_train: Transform to use instead of the configured one in training.
        custom_tfm_test: The same for testing.
        dataset_wrapper: Class to use instead of ``DatasetWrapper``.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Transforms | None = None,
        custom_tfm_test: Transforms | None = None,
        dataset_wrapper: "type[DatasetWrapper] | None" = None,
    ) -> None:
        dataset = build_dataset(cfg)
        tfm_train = _transform(cfg, custom_tfm_train, is_train=True)
        tfm_test = _transform(cfg, custom_tfm_test, is_train=False)
        common = {"tfm": tfm_train, "is_train": True, "dataset_wrapper": dataset_wrapper}
        loader_u_cfg = cfg.DATALOADER.TRAIN_X if cfg.DATALOADER.TRAIN_U.SAME_AS_X else cfg.DATALOADER.TRAIN_U
        test_common = {"tfm": tfm_test, "is_train": False, "dataset_wrapper": dataset_wrapper}

        self.dataset = dataset
        self.train_loader_x = _loader(cfg, cfg.DATALOADER.TRAIN_X, dataset.train_x, common)
        self.train_loader_u = _loader(cfg, loader_u_cfg, dataset.train_u, common) if dataset.train_u else None
        self.val_loader = _loader(cfg, cfg.DATALOADER.TEST, dataset.val, test_common) if dataset.val else None
        self.test_loader = _loader(cfg, cfg.DATALOADER.TEST, dataset.test, test_common)

        self._num_classes = dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = dataset.lab2cname
        if cfg.VERBOSE:
            self._print_summary(cfg)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._num_classes

    @property
    def num_source_domains(self) -> int:
        """Number of source domains in the configuration."""
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        """Label -> class name."""
        return self._lab2cname

    def _print_summary(self, cfg: CfgNode) -> None:
        """Print the table of sizes."""
        data = self.dataset
        rows = [("Dataset", cfg.DATASET.NAME)]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(("Source", str(cfg.DATASET.SOURCE_DOMAINS)))
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(("Target", str(cfg.DATASET.TARGET_DOMAINS)))
        rows.append(("# classes", f"{self.num_classes:,}"))
        rows.append(("# train_x", f"{len(data.train_x):,}"))
        if data.train_u:
            rows.append(("# train_u", f"{len(data.train_u):,}"))
        if data.val:
            rows.append(("# val", f"{len(data.val):,}"))
        rows.append(("# test", f"{len(data.test):,}"))
        print(_table(rows))


def _transform(cfg: CfgNode, custom: Transforms | None, is_train: bool) -> Transforms | None:
    if custom is None:
        return build_transform(cfg, is_train=is_train)
    print(f"* Using custom transform for {'training' if is_train else 'testing'}")
    return custom


def _loader(cfg: CfgNode, loader_cfg: CfgNode, data_source: Sequence[Datum], common: dict[str, Any]) -> EpochLoader:
    domain_keys = {"n_domain": loader_cfg.N_DOMAIN, "n_ins": loader_cfg.N_INS} if common["is_train"] else {}
    return build_data_loader(
        cfg,
        sampler_type=loader_cfg.SAMPLER,
        data_source=data_source,
        batch_size=loader_cfg.BATCH_SIZE,
        **domain_keys,
        **common,
    )


def _table(rows: list[tuple[str, str]]) -> str:
    """Two left-aligned columns between two rules, as tabulate's "simple" style has them."""
    left, right = (max(len(row[i]) for row in rows) for i in (0, 1))
    rule = f"{'-' * left}  {'-' * right}"
    return "\n".join([rule, *(f"{key:<{left}}  {value:<{right}}".rstrip() for key, value in rows), rule])


class DatasetWrapper(TorchDataset[dict[str, Any]]):
    """Images of a list of ``Datum``, read and transformed.

    Args:
        cfg: Configuration.
        data_source: List of ``Datum``.
        transform: Callable, or a list of them: the results are ``img``, ``img2``, ``img3``, ...
        is_train: Training or test.

    Raises:
        ValueError: K_TRANSFORMS is above 1 and there is no transform.
    """

    def __init__(
        self, cfg: CfgNode, data_source: Sequence[Datum], transform: Transforms | None = None, is_train: bool = False
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform: Any = transform  # one, or several
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"Cannot augment the image {self.k_tfm} times because transform is None")
        steps = [T.Resize(cfg.INPUT.SIZE, interpolation=INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]), T.ToTensor()]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            steps.append(T.Normalize(mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD))
        self.to_tensor = T.Compose(steps)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a dict: label, domain, impath, index, the image(s) and, with RETURN_IMG0, ``img0``."""
        item = self.data_source[idx]
        output: dict[str, Any] = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": int(idx)}
        image = read_image(item.impath)
        if self.transform is None:
            output["img"] = image
        else:
            with sample_seed(idx):
                output.update(self._transformed(self.transform, image))
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def _transformed(self, transform: Transforms, image: Image.Image) -> dict[str, Any]:
        if not isinstance(transform, (list, tuple)):
            return {"img": self._apply(transform, image)}
        return {f"img{i + 1}" if i else "img": self._apply(tfm, image) for i, tfm in enumerate(transform)}

    def _apply(self, tfm: Transform, image: Image.Image) -> Any:
        """One tensor, or a list of K of them."""
        return tfm(image) if self.k_tfm == 1 else [tfm(image) for _ in range(self.k_tfm)]
