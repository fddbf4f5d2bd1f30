// y = x W^T on the tile unit of AMX: for any number of rows at about seven times what the vector
// units multiply. The products are of bf16; i8 and coded weights are widened on the way. f32 is as
// on the vector units.
//
// Row invariance: a tile holds up to 16 rows of 32 k of x. The unit adds to a sum, for each such
// chunk of k, the sum of two chains of fused multiply-adds from zero, over the even and over the odd
// k, denormals flushed. Neither depends on the other rows of the tile. The chunks are added in
// ascending order, the last filled up with zeros.
#include <cstring>

#include "linear_weights.h"

namespace ce::avx512bf16 {
void linear(const LinearArgs& args, ThreadPool& pool);
}

namespace ce::CE_ISA {

void linear(const LinearArgs& args, ThreadPool& pool);

namespace {

constexpr int kTileRows = 16, kLine = 64;      // of a tile, and bytes in each of its rows
constexpr int kChunkSteps = 16;                // pairs of k in a tile
constexpr int kChunkBytes = kChunkSteps * kPairsBytes;  // of both tiles of a block
constexpr int kGroupRows = 2 * kTileRows;      // that share what is loaded of W
constexpr int kSlabChunks = 16;                // of W between groups: 32 KB stay in the first cache
constexpr int64_t kSumRows = 256;              // whose sums wait on the stack between slabs
constexpr int64_t kNearBytes = 1 << 20;        // of x that stay in the second cache
constexpr int64_t kAheadSteps = 4 * kChunkSteps;  // from what is read of W to what is fetched
constexpr int64_t kPiecesPerWorker = 3;        // of the blocks

// The shapes of the registers for a group of rows. Sums 0 and 1 are of the first 16 rows and a block's
// 32 columns; 2 and 3 of the other rows or, where there are none, of the block after. x is in 4 and
// 5, W in 6 and 7 and, of the block after, 5.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t line_bytes[16] = {};
  uint8_t lines[16] = {};

  explicit Shapes(int64_t rows) {
    const int64_t upper = rows < kTileRows ? rows : kTileRows, lower = rows - upper;
    const int64_t wanted[] = {upper, upper, lower > 0 ? lower : upper, lower > 0 ? lower : upper,
                              upper, lower > 0 ? lower : kTileRows,    kTileRows, kTileRows};
    for (int tile = 0; tile < 8; ++tile) {
      lines[tile] = static_cast<uint8_t>(wanted[tile]);
      line_bytes[tile] = kLine;
    }
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
    constexpr int kStep = step_bytes(kMode), kBytes = kChunkSteps * kStep;
    for (int line = 0; line < kBytes; line += kLine)
      __builtin_prefetch(w + kAheadSteps * kStep + line, 0, 3);
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
        for (; unit_of(*exception) == unit; ++exception)
          out[wide_byte(*exception >> 8 & (kUnitPlaces - 1)) + 1] = static_cast<char>(*exception);
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

// A group of rows, over some of the chunks.
struct Walk {
  const char* x;      // the group's first row at the first chunk
  int64_t row_bytes;  // of x
  int64_t rows;
  int64_t chunks;
  int64_t tail_bytes;  // of the last chunk of x, 0: all
  bool first;          // sums hold nothing yet
  float* sums;         // [rows][32], or [2][16][32] of two blocks
  char* wide;          // [kSlabChunks] chunks
  int64_t wide_chunks; // of them in use, a power of two
  const char** kept;   // where to note the chunks, or null
};

template <int kRowTiles, int kBlocks, typename Source>
static void walk(const Walk& args, Source& source, Source* after = nullptr) {
  constexpr bool kFour = kRowTiles * kBlocks == 2;  // tiles of sums
  constexpr int kStride = 4 * kBlockColumns;
  float* others = args.sums + kTileRows * kBlockColumns;
  settle_memory();
  if (args.first) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kFour) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, args.sums, kStride);
    _tile_loadd(1, args.sums + 16, kStride);
    if constexpr (kFour) {
      _tile_loadd(2, others, kStride);
      _tile_loadd(3, others + 16, kStride);
    }
  }
  alignas(64) char edge[kGroupRows][kLine];
  const char* x = args.x;
  int64_t stride = args.row_bytes;
  for (int64_t chunk = 0; chunk < args.chunks; ++chunk, x += kLine) {
    char* wide = args.wide + (chunk & (args.wide_chunks - 1)) * kChunkBytes;
    const char* w = source.next(wide);
    if (args.kept != nullptr) args.kept[chunk] = w;
    if (args.tail_bytes > 0 && chunk + 1 == args.chunks) {
      std::memset(edge, 0, sizeof edge);
      for (int64_t r = 0; r < args.rows; ++r)
        std::memcpy(edge[r], x + r * args.row_bytes, static_cast<size_t>(args.tail_bytes));
      x = edge[0];
      stride = kLine;
    }
    settle_memory();
    _tile_loadd(4, x, stride);
    _tile_loadd(6, w, kPairsBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + kLine, kPairsBytes);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(5, x + kTileRows * stride, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else if constexpr (kBlocks == 2) {
      w = after->next(wide + 2 * kChunkBytes);
      settle_memory();
      _tile_loadd(5, w, kPairsBytes);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(6, w + kLine, kPairsBytes);
      _tile_dpbf16ps(3, 4, 6);
    }
  }
  _tile_stored(0, args.sums, kStride);
  _tile_stored(1, args.sums + 16, kStride);
  if constexpr (kFour) {
    _tile_stored(2, others, kStride);
    _tile_stored(3, others + 16, kStride);
  }
  settle_memory();
}

template <typename Source>
static void multiply_rows(const Walk& group, Source& source) {
  if (group.rows > kTileRows)
    walk<2, 1>(group, source);
  else
    walk<1, 1>(group, source);
}

// The rows of a call that one worker multiplies by its blocks.
struct Rows {
  const LinearArgs& args;
  int64_t chunks = (args.w.k + 2 * kChunkSteps - 1) / (2 * kChunkSteps);
  int64_t row_bytes = 2 * args.w.k;

  Walk walk(int64_t row, int64_t rows, int64_t chunk, int64_t count) const {
    const char* x = static_cast<const char*>(args.x) + row * row_bytes + chunk * kLine;
    const int64_t tail = chunk + count == chunks ? row_bytes % kLine : 0;
    return {x, row_bytes, rows, count, tail, chunk == 0, nullptr, nullptr, 1, nullptr};
  }
};

// No more rows than a group has, by blocks begin..end-1: all of k with the sums in registers.
template <Mode kMode>
static void multiply_group(const Rows& call, int64_t begin, int64_t end) {
  using Source = Reader<kMode>;
  const LinearArgs& args = call.args;
  alignas(64) float sums[kGroupRows * kBlockColumns];
  alignas(64) char wide[4 * kChunkBytes];
  Walk group = call.walk(0, args.rows, 0, call.chunks);
  group.sums = sums;
  group.wide = wide;
  group.wide_chunks = 2;
  shape_tiles(args.rows);
  for (int64_t block = begin; block < end; ++block) {
    Source source(args.w, block);
    if (args.rows <= kTileRows && block + 1 < end) {
      Source after(args.w, block + 1);
      walk<1, 2>(group, source, &after);
      finish(args, block++, 0, args.rows, sums);
      finish(args, block, 0, args.rows, sums + kTileRows * kBlockColumns);
    } else {
      multiply_rows(group, source);
      finish(args, block, 0, args.rows, sums);
    }
  }
}

// Rows first..last-1 by one block: a slab of it for one group after the other.
template <Mode kMode>
static void multiply_groups(const Rows& call, int64_t block, int64_t first, int64_t last) {
  alignas(64) float sums[kSumRows * kBlockColumns];
  alignas(64) char wide[kSlabChunks * kChunkBytes];
  const char* kept[kSlabChunks];
  Reader<kMode> reader(call.args.w, block);
  int64_t shaped = 0;
  for (int64_t chunk = 0; chunk < call.chunks; chunk += kSlabChunks) {
    const int64_t left = call.chunks - chunk, count = left < kSlabChunks ? left : kSlabChunks;
    for (int64_t row = first; row < last; row += kGroupRows) {
      const int64_t rows = last - row < kGroupRows ? last - row : kGroupRows;
      if (rows != shaped) shape_tiles(shaped = rows);
      Walk group = call.walk(row, rows, chunk, count);
      group.sums = sums + (row - first) * kBlockColumns;
      group.wide = wide;
      group.wide_chunks = kSlabChunks;
      if (row == first) {
        group.kept = kept;
        multiply_rows(group, reader);
      } else {
        Kept slab{kept};
        multiply_rows(group, slab);
      }
    }
  }
  finish(call.args, block, first, last - first, sums);
}

template <Mode kMode>
static void multiply(const LinearArgs& args, ThreadPool& pool) {
  const Rows call{args};
  const int64_t near = kNearBytes / call.row_bytes / kGroupRows * kGroupRows;
  const int64_t at_once = near < kGroupRows ? kGroupRows : near < kSumRows ? near : kSumRows;
  const int64_t blocks = packed_blocks(args.w.n), pieces = kPiecesPerWorker * pool.size();
  const int64_t unit = args.rows <= kTileRows && 2 * pool.size() <= blocks ? 2 : 1;
  const int64_t grain = ((blocks + pieces - 1) / pieces + unit - 1) / unit * unit;
  pool.parallel_for(blocks, grain, [&](int64_t begin, int64_t end, int) {
    if (args.rows <= kGroupRows) {
      multiply_group<kMode>(call, begin, end);
    } else {
      for (int64_t row = 0; row < args.rows; row += at_once) {
        const int64_t last = row + at_once < args.rows ? row + at_once : args.rows;
        for (int64_t block = begin; block < end; ++block)
          multiply_groups<kMode>(call, block, row, last);
      }
    }
    _tile_release();
  });
}

}  // namespace

void linear(const LinearArgs& args, ThreadPool& pool) {
  if (args.rows == 0) return;
  switch (mode_of(args.w.dtype)) {
    case Mode::pairs:
      return multiply<Mode::pairs>(args, pool);
    case Mode::bytes:
      return multiply<Mode::bytes>(args, pool);
    case Mode::coded:
      return multiply<Mode::coded>(args, pool);
    default:
      return avx512bf16::linear(args, pool);
  }
}

}  // namespace ce::CE_ISA
