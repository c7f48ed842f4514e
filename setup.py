"""Packaging for cadjax: `pip install -e .[test]`."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'^__version__ = "(.+)"$',
  (ROOT / "cadjax" / "__init__.py").read_text(),
  re.MULTILINE,
).group(1)

setuptools.setup(
  name="cadjax",
  version=VERSION,
  description=(
    "Coronary artery disease from CT coronary angiography with a 3D"
    " ResNet-50 in JAX/Flax, and where it looked"
  ),
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(
    include=["cadjax*", "configs*", "data_prep*"]
  ),
  package_data={
    "data_prep.ctca": ["*.md", "*.txt", "*.bib"],
    "cadjax.report": ["schemas/*", "templates/*"],
    "cadjax.weights": ["*.safetensors", "*.md"],
  },
  entry_points={"console_scripts": ["cadjax = cadjax.__main__:main"]},
  install_requires=[
    "absl-py",
    "array-record; platform_system != 'Windows'",
    "etils[epath]",
    "flatbuffers",  # Of jax.export.
    "flax>=0.11",
    "grain>=0.2.10",
    "importlib_resources",
    "jax>=0.7",
    "jinja2",
    "matplotlib",
    "ml-collections",
    "nibabel>=5",
    "nilearn>=0.13",
    "numpy",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.20",
    "safetensors",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "SimpleITK>=2.3",
    "tensorboardX",
    "tensorflow-datasets>=4.9.9",
    "threadpoolctl",
    "tqdm",
  ],
  extras_require={
    "test": [
      "pytest",
      "pytest-xdist",
      "ruff",
      "setuptools>=70.1",  # Builds the wheel that a test installs.
      "shtab",
      "pydicom",
      "slicerio",  # Reads what is written for 3D Slicer.
      "jsonschema>=4.18",
      "pypdf",
      "nbclient",
      "nbformat",
      "ipykernel",
    ],
    "bench": ["torch", "monai"],
    "completion": ["shtab"],
    # Beside which explanations and their measures are tested.
    "explain-parity": ["captum", "quantus>=0.6", "torch"],
    # Later ones need protobuf 6, do not say so, and meet Colab's protobuf 5:
    # github.com/tensorflow/metadata/issues/68
    "colab": ["tensorflow-metadata<1.18"],
    "cuda": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    "tpu-aot": ["libtpu"],
  },
  classifiers=[
    "Intended Audience :: Science/Research",
    "License :: OSI Approved :: Apache Software License",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Medical Science Apps.",
  ],
)
