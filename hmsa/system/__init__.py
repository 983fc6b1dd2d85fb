# SPDX-License-Identifier: Apache-2.0
"""The machine: environment, memory, devices, files, signals."""
