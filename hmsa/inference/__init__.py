# SPDX-License-Identifier: Apache-2.0
"""From images to logits: what runs a network, and what is averaged over."""
