#!/usr/bin/env bash
# Install from Debian's packages what pip cannot: a C++ compiler, CMake and libraries for deploy/cpp, and Chromium for
# deploy/web. Where there is no apt-get, or no right to use it, it says so and does nothing.
set -eu
packages="cmake g++ libjpeg-dev libpng-dev libssl-dev libyaml-cpp-dev chromium"
if ! command -v apt-get >/dev/null; then
    echo "Nothing installed, as there is no apt-get here: install what your system calls $packages"
elif [ "$(id -u)" != 0 ]; then
    echo "Nothing installed, as this needs root: sudo $0"
else
    apt-get update --quiet=2
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends $packages
    # ONNX Runtime's C++ package is in Debian from 13 on.
    if apt-cache show libonnxruntime-dev >/dev/null 2>&1; then
        DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends libonnxruntime-dev
    else
        echo "ONNX Runtime's C++ package is not in this system's packages: deploy/cpp takes its release archive instead"
    fi
fi
