// Blocks that are built on their own (see BLOCK_ROWS in build.py) live in the default context: their
// registers and memories start with random words too.
#include "verilated.h"

namespace {

const bool ready = [] {
    Verilated::threadContextp()->randReset(2);
    return true;
}();

}  // namespace
