# SPDX-License-Identifier: Apache-2.0

import hmsa.system.prepared  # noqa: F401
