# SPDX-License-Identifier: Apache-2.0
"""Weight files, whoever wrote them, and the names of tensors in them."""
