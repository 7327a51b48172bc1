"""Installs the plugin as ``capt`` and the Dassl bridge as ``capt_compat``; all other metadata is in pyproject.toml.

``trainers/capt`` is the folder that is copied into other CoOp-style repositories, and ``compat`` carries a
bundled Dassl for whoever has none. Their names in the checkout are too general for site-packages, hence the mapping.
"""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
VERSION = "0.1.0"
FOLDERS = {"capt": "trainers/capt", "capt_compat": "compat"}


def packages_of(name: str, folder: str) -> list[str]:
    """Package names for `folder` and every folder below it that holds Python files, itself a package or not."""
    base = ROOT / folder
    holders = {path.parent for path in base.rglob("*.py")} | {base}
    # compat/bundled has no Python file of its own, but its children do
    holders |= {parent for holder in holders for parent in holder.parents if base in parent.parents}
    return sorted(".".join((name, *holder.relative_to(base).parts)) for holder in holders)


setup(
    version=VERSION,
    packages=[package for name, folder in FOLDERS.items() for package in packages_of(name, folder)],
    package_dir=dict(FOLDERS),
    package_data={"capt": ["py.typed", "*.json", "**/*.json"], "capt_compat": ["py.typed"]},
)
