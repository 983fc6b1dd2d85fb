# SPDX-License-Identifier: Apache-2.0

import hmsa.prepared  # noqa: F401
