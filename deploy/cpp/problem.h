// SPDX-License-Identifier: Apache-2.0
// What ends the program, or the work on one image, in a sentence: expected, found, what to do.
#pragma once

#include <stdexcept>

struct Problem : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Of the command line.
struct UsageProblem : Problem {
    using Problem::Problem;
};
