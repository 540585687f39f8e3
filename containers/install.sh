#!/bin/sh
# What all three recipes do: mlindex from the sources in $1, with the extras $2, in a virtual environment in /opt/mlindex.
# It ends with a check, so that an image that does not work is not built.
set -eu
source=$1
extras=$2
home=/opt/mlindex

python3 -m venv "$home"
"$home/bin/pip" install --no-cache-dir --disable-pip-version-check --only-binary :all: "$source[$extras]"

# pip, test suites and bytecode are two hundred megabytes that no run reads; headers and static libraries are for compilers
"$home/bin/pip" uninstall --yes --quiet --disable-pip-version-check setuptools pip
site=$(echo "$home"/lib/python3.*/site-packages)
find "$site" -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} +
find "$home" -type f \( -name '*.a' -o -name '*.pyi' -o -name '*.pxd' \) -delete
rm -rf "$home/include" "$home/share/man"

"$home/bin/mlindex" --version
JAX_PLATFORMS=cpu "$home/bin/python" -c 'import h5py, jax, matplotlib, mpi4py, scipy.optimize; jax.numpy.ones(3).sum().block_until_ready()'
find "$site" -type d -name __pycache__ -prune -exec rm -rf {} +
