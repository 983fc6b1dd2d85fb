# SPDX-License-Identifier: Apache-2.0
"""`python -m hmsa`: the command `hmsa`, also for Paddle's launcher."""

from hmsa.commands import main

if __name__ == "__main__":
    main()
