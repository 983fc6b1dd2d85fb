# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, for people and for programs."""
