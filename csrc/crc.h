// CRC-32 of bytes in memory.
#pragma once
#include <cstdint>

namespace perilune {

// How many bytes this processor takes at a time: 256, 64, or 0 if it has no instruction for it.
int64_t crc32_block();

// The CRC of what `crc` is of, 0 for nothing, followed by n bytes; `block` is crc32_block() or less.
uint32_t crc32(uint32_t crc, const uint8_t* p, int64_t n, int64_t block);

}  // namespace perilune
