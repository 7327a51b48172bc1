"""Orders in which a loader visits its data."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data.sampler import RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from .datasets import Datum

__all__ = ["RandomClassSampler", "RandomDomainSampler", "SeqDomainSampler", "build_sampler"]


def _indices_by(data_source: Sequence[Datum], attribute: str) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for index, item in enumerate(data_source):
        groups[getattr(item, attribute)].append(index)
    return groups


class _DomainSampler(Sampler[int]):
    """Batches made of equal parts of several domains, until one of them has too few images left."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int | None) -> None:
        self.data_source = data_source
        self.domain_dict = _indices_by(data_source, "domain")
        self.domains = list(self.domain_dict)
        self.n_domain = len(self.domains) if n_domain is None or n_domain <= 0 else n_domain
        assert batch_size % self.n_domain == 0, (
            f"batch size {batch_size} must be a multiple of the number of domains {self.n_domain}"
        )
        self.batch_size = batch_size
        self.n_img_per_domain = batch_size // self.n_domain
        self.length = sum(1 for _ in self)

    def select_domains(self) -> list[int]:
        """Return the domains of the next batch."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        """Yield indices; draws come from the global ``random``."""
        left = dict(self.domain_dict)
        order: list[int] = []
        has_enough = True
        while has_enough:
            selected = self.select_domains()
            for domain in selected:
                drawn = random.sample(left[domain], self.n_img_per_domain)
                order.extend(drawn)
                taken = set(drawn)
                left[domain] = [index for index in left[domain] if index not in taken]
            has_enough = all(len(left[domain]) >= self.n_img_per_domain for domain in selected)
        return iter(order)

    def __len__(self) -> int:
        return self.length


class RandomDomainSampler(_DomainSampler):
    """Each batch takes ``n_domain`` domains at random.

    Args:
        data_source: List of ``Datum``.
        batch_size: A multiple of ``n_domain``.
        n_domain: Domains per batch; all if None or not above 0.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int | None) -> None:
        super().__init__(data_source, batch_size, n_domain)

    def select_domains(self) -> list[int]:
        """Return ``n_domain`` domains at random."""
        return random.sample(self.domains, self.n_domain)


class SeqDomainSampler(_DomainSampler):
    """Each batch takes all domains in sorted order.

    Args:
        data_source: List of ``Datum``.
        batch_size: A multiple of the number of domains.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int) -> None:
        super().__init__(data_source, batch_size, None)

    def select_domains(self) -> list[int]:
        """Return all domains."""
        return sorted(self.domains)


class RandomClassSampler(Sampler[int]):
    """Batches of ``n_ins`` images of each of ``batch_size // n_ins`` classes.

    Args:
        data_source: List of ``Datum``.
        batch_size: Images per batch.
        n_ins: Images per class in a batch; classes with fewer are topped up by drawing with replacement.

    Raises:
        ValueError: ``batch_size`` is below ``n_ins``.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int) -> None:
        if batch_size < n_ins:
            raise ValueError(f"the batch size must be at least N_INS ({n_ins}), got {batch_size}")
        self.data_source = data_source
        self.batch_size = batch_size
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.index_dic = _indices_by(data_source, "label")
        self.labels = list(self.index_dic)
        assert len(self.labels) >= self.ncls_per_batch, (
            f"{len(self.labels)} classes are too few for {self.ncls_per_batch} classes per batch"
        )
        # An estimate: which classes run out first is random, so a later pass can be longer or shorter.
        self.length = sum(1 for _ in self)

    def _chunks(self, indices: Sequence[int]) -> list[list[int]]:
        """Shuffle the indices of a class and cut them into chunks of ``n_ins``; the rest is dropped."""
        indices = list(indices)
        if len(indices) < self.n_ins:
            indices = list(np.random.choice(indices, size=self.n_ins, replace=True))  # noqa: NPY002
        random.shuffle(indices)
        return [indices[i : i + self.n_ins] for i in range(0, len(indices) - self.n_ins + 1, self.n_ins)]

    def __iter__(self) -> Iterator[int]:
        """Yield indices; draws come from the global ``random`` and ``numpy.random``."""
        chunks = {label: self._chunks(self.index_dic[label]) for label in self.labels}
        left = list(self.labels)
        order: list[int] = []
        while len(left) >= self.ncls_per_batch:
            for label in random.sample(left, self.ncls_per_batch):
                order.extend(int(index) for index in chunks[label].pop(0))
                if not chunks[label]:
                    left.remove(label)
        return iter(order)

    def __len__(self) -> int:
        return self.length


IndexSampler = RandomSampler | SequentialSampler | _DomainSampler | RandomClassSampler


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence[Datum] = None,  # type: ignore[assignment]  # Dassl's default, never used
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> IndexSampler:
    """Build the sampler ``sampler_type``.

    Raises:
        ValueError: Unknown name.
    """
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomDomainSampler":
        return RandomDomainSampler(data_source, batch_size, n_domain)
    if sampler_type == "SeqDomainSampler":
        return SeqDomainSampler(data_source, batch_size)
    if sampler_type == "RandomClassSampler":
        return RandomClassSampler(data_source, batch_size, n_ins)
    raise ValueError(f"Unknown sampler type: {sampler_type}")
