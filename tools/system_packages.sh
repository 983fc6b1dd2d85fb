#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Install from Debian's packages what pip cannot: a C++ compiler, CMake and libraries for deploy/cpp, and Chromium for
# deploy/web. Where there is no apt-get, or no right to use it, it says so and does nothing.
set -eu
cd "$(dirname "$0")/.."
packages="cmake g++ libjpeg-dev libpng-dev libssl-dev libyaml-cpp-dev chromium"
headers=build/onnxruntime/include

if ! command -v apt-get >/dev/null; then
    echo "Nothing installed, as there is no apt-get here: install what your system calls $packages"
    exit 0
elif [ "$(id -u)" != 0 ]; then
    echo "Nothing installed, as this needs root: run tools/system_packages.sh as root"
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
install="apt-get install --quiet=2 --yes --no-install-recommends"
apt-get update --quiet=2
$install $packages

# ONNX Runtime's headers; its library is in the Python package as well. Debian has both from 13 on: to an older one come
# the headers alone, into this project's folder, as nothing there fits them together with the rest of the system.
if apt-cache show libonnxruntime-dev >/dev/null 2>&1; then
    $install libonnxruntime-dev
elif [ ! -d $headers ]; then
    site=$(apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Origin: Debian" "Component: main" |
        grep --invert-match security | head -n 1)
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    mkdir -p "$folder"/lists/partial "$folder"/cache/archives/partial build/onnxruntime
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site trixie main" >"$folder/sources.list"
    apt="-o Dir::Etc::SourceList=$folder/sources.list -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$folder/lists
        -o Dir::Cache=$folder/cache -o APT::Sandbox::User=root"
    if (cd "$folder" && apt-get $apt update --quiet=2 && apt-get $apt download --quiet=2 libonnxruntime-dev); then
        dpkg -x "$folder"/libonnxruntime-dev_*.deb "$folder/unpacked"
        mv "$folder/unpacked/usr/include/onnxruntime" $headers
    else
        echo "ONNX Runtime's headers are not among Debian's packages here: deploy/cpp takes them from its release archive"
    fi
fi
