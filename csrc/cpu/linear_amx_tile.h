// What the tile unit of AMX does for `linear`: the sums of a group of rows over some chunks of k of
// a block of W, or of two. linear_amx.cpp alone includes this header.
#pragma once

#include <cstring>

#include "linear_weights.h"

namespace ce::CE_ISA {
namespace {

constexpr int kTileRows = 16, kLine = 64;               // of a tile, and bytes in each of its rows
constexpr int kChunkSteps = 16;                         // pairs of k in a tile
constexpr int kChunkBytes = kChunkSteps * kPairsBytes;  // of both tiles of a block
constexpr int kTileBytes = kTileRows * kLine;
constexpr int kGroupRows = 2 * kTileRows;  // that share what is loaded of W
constexpr int64_t kAheadChunks = 4;        // from what is read of W to what is fetched

// The shapes of the registers for a group of rows. Sums 0 and 1 are of the first 16 rows and a
// block's 32 columns; 2 and 3 of the other rows or, where there are none, of the block after. x is
// in 4 and 5, W in 6 and 7 and, of the block after, 5.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t line_bytes[16] = {};
  uint8_t lines[16] = {};

  explicit Shapes(int64_t rows) {
    const int64_t upper = rows < kTileRows ? rows : kTileRows, lower = rows - upper;
    set(0, upper), set(1, upper), set(4, upper);
    set(2, lower > 0 ? lower : upper), set(3, lower > 0 ? lower : upper);
    set(5, lower > 0 ? lower : kTileRows), set(6, kTileRows), set(7, kTileRows);
  }
  void set(int tile, int64_t count) {
    lines[tile] = static_cast<uint8_t>(count);
    line_bytes[tile] = kLine;
  }
};

// The compiler does not know that tile instructions read and write memory.
static inline void settle_memory() {
  asm volatile("" ::: "memory");
}

static void shape_tiles(int64_t rows) {
  const Shapes shapes(rows);
  settle_memory();
  _tile_loadconfig(&shapes);
}

// Reads a block of W from its beginning on, a chunk at a time, as pairs of bf16.
template <Mode kMode>
struct Reader {
  static constexpr int64_t kBytes = kChunkSteps * step_bytes(kMode);  // of a chunk

  const char* w;
  int64_t steps;  // left
  // Of coded weights.
  const uint8_t* table = nullptr;
  const uint32_t* exception = nullptr;
  uint32_t unit = 0;

  Reader(const PackedMatrix& matrix, int64_t block) : steps((matrix.k + 1) / 2) {
    const int64_t stored = kMode == Mode::coded ? 2 * coded_units(matrix.k) : steps;
    w = static_cast<const char*>(matrix.data) + block * stored * step_bytes(kMode);
    if (kMode == Mode::coded) {
      table = matrix.coded.tables + 16 * block;
      exception = matrix.coded.exceptions + matrix.coded.first[block];
    }
  }

  // Where the next chunk is: in place, or widened or filled up in `wide`.
  inline const char* next(char* wide) {
    const bool whole = steps >= kChunkSteps;
    const char* chunk = kMode == Mode::pairs && whole ? w : wide;
    if (chunk == wide) widen(wide, whole ? kChunkSteps : static_cast<int>(steps));
    w += kBytes;
    steps -= kChunkSteps;
    return chunk;
  }

  inline void widen(char* wide, int count) {
    if constexpr (kMode == Mode::pairs) {
      std::memcpy(wide, w, static_cast<size_t>(count * kPairsBytes));
    } else if constexpr (kMode == Mode::bytes) {
      for (int half = 0; half < 2 * count; ++half)
        store_pairs(wide + half * kLine, load_bytes(w + 32 * half), load_bytes(w + 32 * half + 16));
    } else {
      for (int step = 0; step < count; step += 2, ++unit) {
        char* out = wide + step * kPairsBytes;
        decode_unit(w + step / 2 * kUnitBytes, table, out);
        put_exceptions(exception, unit, out);
      }
    }
    const int bytes = count * kPairsBytes;
    std::memset(wide + bytes, 0, static_cast<size_t>(kChunkBytes - bytes));
  }
};

// The chunks of a slab that another group has read.
struct Kept {
  const char* const* chunk;
  inline const char* next(char*) { return *chunk++; }
};

// Where the four tiles of sums are in memory: 0 and 1, and 2 and 3.
struct Sums {
  float* first;
  float* second;
  int64_t row_bytes;
};

// x by tiles: bytes from a row to the next, from a chunk, and from 16 rows to the 16 after.
struct Tiles {
  const char* x;
  int64_t row_bytes, chunk_bytes, tile_bytes;
};

// A group of rows, over some of the chunks.
struct Group {
  Tiles x;  // the group's first row at the first chunk
  int64_t rows;
  int64_t chunks;
  bool first;  // no sums yet
  Sums from, to;
  char* wide;           // chunks, of both blocks
  int64_t wide_chunks;  // of a block, a power of two
  const char** kept;    // where to note the chunks, or null
  const char* fetched;  // of W, so many lines of each block with each chunk
  int64_t lines;
  int64_t block_bytes;
};

// Adds the chunks of `source` (and, of a second block, of `after`) to the sums of a group.
template <int kRowTiles, int kBlocks, typename Source>
static void add_chunks(const Group& args, Source& source, Source* after = nullptr) {
  constexpr bool kAllSums = kRowTiles * kBlocks == 2;
  settle_memory();
  if (args.first) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kAllSums) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    const Sums& sums = args.from;
    _tile_loadd(0, sums.first, sums.row_bytes);
    _tile_loadd(1, sums.first + 16, sums.row_bytes);
    if constexpr (kAllSums) {
      _tile_loadd(2, sums.second, sums.row_bytes);
      _tile_loadd(3, sums.second + 16, sums.row_bytes);
    }
  }
  const char *x = args.x.x, *fetched = args.fetched;
  for (int64_t chunk = 0; chunk < args.chunks; ++chunk, x += args.x.chunk_bytes) {
    char* wide = args.wide + (chunk & (args.wide_chunks - 1)) * kChunkBytes;
    const char* w = source.next(wide);
    if (args.kept != nullptr) args.kept[chunk] = w;
    // Behind two blocks come the next ones.
    if (kBlocks == 2 && chunk + kAheadChunks == args.chunks) fetched += args.block_bytes;
    for (int64_t line = 0; line < args.lines; ++line, fetched += kLine)
      for (int block = 0; block < kBlocks; ++block)
        __builtin_prefetch(fetched + block * args.block_bytes, 0, 3);
    settle_memory();
    _tile_loadd(4, x, args.x.row_bytes);
    _tile_loadd(6, w, kPairsBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + kLine, kPairsBytes);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(5, x + args.x.tile_bytes, args.x.row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else if constexpr (kBlocks == 2) {
      w = after->next(wide + args.wide_chunks * kChunkBytes);
      settle_memory();
      _tile_loadd(5, w, kPairsBytes);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(6, w + kLine, kPairsBytes);
      _tile_dpbf16ps(3, 4, 6);
    }
  }
  const Sums& sums = args.to;
  _tile_stored(0, sums.first, sums.row_bytes);
  _tile_stored(1, sums.first + 16, sums.row_bytes);
  if constexpr (kAllSums) {
    _tile_stored(2, sums.second, sums.row_bytes);
    _tile_stored(3, sums.second + 16, sums.row_bytes);
  }
  settle_memory();
}

template <typename Source>
static void multiply_rows(const Group& group, Source& source) {
  if (group.rows > kTileRows)
    add_chunks<2, 1>(group, source);
  else
    add_chunks<1, 1>(group, source);
}

}  // namespace
}  // namespace ce::CE_ISA
