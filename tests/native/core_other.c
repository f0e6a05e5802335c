/* A second translation unit: the core's state must be one for both. */
#include "../../shmlog/native/core/crc32c.h"

uint32_t other_unit_crc(const void *data, size_t bytes);

uint32_t other_unit_crc(const void *data, size_t bytes) { return crc32c(0, data, bytes); }
