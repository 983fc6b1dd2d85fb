# SPDX-License-Identifier: Apache-2.0
"""Weight files, whoever wrote them, and the names of tensors in them."""

from hmsa.former import names_of

__getattr__ = names_of(__name__)
