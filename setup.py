"""Installs the plugin as ``capt``, the Dassl bridge as ``capt_compat``, and the tools as ``capt_tools``.

All other metadata is in pyproject.toml. ``trainers/capt`` is the folder that is copied into other CoOp-style
repositories, and ``compat`` carries a bundled Dassl for whoever has none. The tools need more of the checkout, under
names that are too general for site-packages: it goes into their package, as ``capt_tools/checkout``.
"""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
VERSION = "0.1.0"
CHECKOUT = "capt_tools.checkout"
FOLDERS = {"capt": "trainers/capt", "capt_compat": "compat", "capt_tools": "capt_tools"}
FOLDERS |= {f"{CHECKOUT}.{folder}": folder for folder in ("trainers", "datasets", "compat")}
# The shell scripts are those that drop_in.py puts into other repositories.
FILES = ["configs/**/*.yaml", "descriptions/*.json", "assets/*.pt", "scripts/_run.sh", "scripts/capt/*.sh"]


def packages_of(name: str, folder: str) -> list[str]:
    """Package names for `folder` and every folder below it that holds Python files, itself a package or not."""
    base = ROOT / folder
    holders = {path.parent for path in base.rglob("*.py")} | {base}
    # compat/bundled has no Python file of its own, but its children do
    holders |= {parent for holder in holders for parent in holder.parents if base in parent.parents}
    return sorted(".".join((name, *holder.relative_to(base).parts)) for holder in holders)


setup(
    script_name="setup.py",  # a module of the root as well; so named, it is left out
    version=VERSION,
    packages=[CHECKOUT, *(package for name, folder in FOLDERS.items() for package in packages_of(name, folder))],
    package_dir={**FOLDERS, CHECKOUT: "."},  # the root's own modules are train.py and parse_test_res.py
    include_package_data=False,
    package_data={
        "capt": ["py.typed", "*.json", "**/*.json"],
        "capt_compat": ["py.typed"],
        "capt_tools": ["report/*.jinja", "comparison/*.csv"],
        CHECKOUT: [*FILES, "trainers/capt/py.typed", "trainers/capt/**/*.json"],
    },
)
