// The layout described as data, made from the structs themselves: what docs/pool-format.md, the Python reader
// and the CRC in every superblock are generated from.
#pragma once

#include <cstdint>
#include <string>

namespace maru {

// JSON: {"format": 1, "structs": [{"name", "bytes", "fields": [{"name", "offset", "bytes"}]}], "constants":
// {..}}.
const std::string& layout_description();

// CRC-32 (ISO-HDLC, as zlib's) of that text.
uint32_t layout_crc();

}  // namespace maru
