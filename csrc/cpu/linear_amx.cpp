// y = x W^T on the tile unit of AMX: for any number of rows at about seven times what the vector
// units multiply. The products are of bf16; i8 and coded weights are widened on the way. f32 is as
// on the vector units.
//
// Row invariance: a tile holds up to 16 rows of 32 k of x. The unit adds to a sum, for each such
// chunk of k, the sum of two chains of fused multiply-adds from zero, over the even and over the
// odd k, denormals flushed. Neither depends on the other rows of the tile. The chunks are added in
// ascending order, the last filled up with zeros.
#include <algorithm>
#include <cstring>

#include "linear_weights.h"

namespace ce::avx512bf16 {
void linear(const LinearArgs& args, ThreadPool& pool);
}

namespace ce::CE_ISA {

void linear(const LinearArgs& args, ThreadPool& pool);

namespace {

constexpr int kTileRows = 16, kLine = 64;               // of a tile, and bytes in each of its rows
constexpr int kChunkSteps = 16;                         // pairs of k in a tile
constexpr int kChunkBytes = kChunkSteps * kPairsBytes;  // of both tiles of a block
constexpr int kTileBytes = kTileRows * kLine;
constexpr int kGroupRows = 2 * kTileRows;  // that share what is loaded of W
constexpr int kSlabChunks = 8;             // of W between groups: 16 KB stay in the first cache
constexpr int64_t kSumRows = 256;          // whose sums wait on the stack between slabs
constexpr int64_t kNearBytes = 3 << 19;    // of x that stay in the second cache
constexpr int64_t kAheadChunks = 4;        // from what is read of W to what is fetched
constexpr int64_t kPartRows = 48;          // that are worth reading W for
constexpr int64_t kAloneChunks = 64;       // of W by groups of rows: not worth another's cache
constexpr int64_t kPiecesPerWorker = 3;    // of the blocks

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
struct Walk {
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

template <int kRowTiles, int kBlocks, typename Source>
static void walk(const Walk& args, Source& source, Source* after = nullptr) {
  constexpr bool kFour = kRowTiles * kBlocks == 2;  // tiles of sums
  settle_memory();
  if (args.first) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kFour) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    const Sums& sums = args.from;
    _tile_loadd(0, sums.first, sums.row_bytes);
    _tile_loadd(1, sums.first + 16, sums.row_bytes);
    if constexpr (kFour) {
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
  if constexpr (kFour) {
    _tile_stored(2, sums.second, sums.row_bytes);
    _tile_stored(3, sums.second + 16, sums.row_bytes);
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

static Sums sums_at(float* sums) {
  return {sums, sums + kTileRows * kBlockColumns, 4 * kBlockColumns};
}

struct Call {
  const LinearArgs& args;
  int64_t chunks;
  Tiles x;

  Walk walk(int64_t row, int64_t rows, int64_t chunk, int64_t count) const {
    Tiles part = x;
    part.x += row / kTileRows * x.tile_bytes + chunk * x.chunk_bytes;
    return {part, rows, count, chunk == 0, {}, {}, nullptr, 1, nullptr, nullptr, 0, 0};
  }

  // Whether sums of `count` blocks are y as they are.
  bool plain(int64_t block, int64_t count) const {
    return args.w.scales == nullptr && args.bias == nullptr && !args.accumulate &&
           (block + count) * kBlockColumns <= args.w.n;
  }
  Sums result(int64_t row, int64_t block, int64_t count) const {
    float* y = args.y + row * args.w.n + block * kBlockColumns;
    return {y, count == 2 ? y + kBlockColumns : y + kTileRows * args.w.n, 4 * args.w.n};
  }
};

// No more rows than a group has, by blocks begin..end-1: all of k with the sums in registers.
template <Mode kMode>
static void multiply_group(const Call& call, int64_t begin, int64_t end) {
  const LinearArgs& args = call.args;
  alignas(64) float sums[kGroupRows * kBlockColumns];
  alignas(64) char wide[4 * kChunkBytes];
  Walk group = call.walk(0, args.rows, 0, call.chunks);
  group.wide = wide;
  group.wide_chunks = 2;
  shape_tiles(args.rows);
  for (int64_t block = begin, count; block < end; block += count) {
    count = args.rows <= kTileRows && block + 1 < end ? 2 : 1;
    const bool plain = call.plain(block, count);
    group.to = plain ? call.result(0, block, count) : sums_at(sums);
    Reader<kMode> reader(args.w, block);
    group.fetched = reader.w + kAheadChunks * reader.kBytes;
    group.lines = reader.kBytes / kLine;
    if (count == 2) {
      Reader<kMode> after(args.w, block + 1);
      group.block_bytes = after.w - reader.w;
      walk<1, 2>(group, reader, &after);
    } else {
      multiply_rows(group, reader);
    }
    for (int64_t i = 0; i < count && !plain; ++i)
      finish(args, block + i, 0, args.rows, sums + i * kTileRows * kBlockColumns);
  }
}

// Rows first..last-1 by one block: a slab of it for one group after the other.
template <Mode kMode>
static void multiply_groups(const Call& call, int64_t block, int64_t first, int64_t last) {
  alignas(64) float sums[kSumRows * kBlockColumns];
  alignas(64) char wide[kSlabChunks * kChunkBytes];
  const char* kept[kSlabChunks];
  Reader<kMode> reader(call.args.w, block);
  const int64_t groups = (last - first + kGroupRows - 1) / kGroupRows;
  const int64_t lines = (reader.kBytes / kLine + groups - 1) / groups;
  int64_t shaped = 0;
  for (int64_t chunk = 0; chunk < call.chunks; chunk += kSlabChunks) {
    const int64_t left = call.chunks - chunk, count = left < kSlabChunks ? left : kSlabChunks;
    const char* fetched = reader.w + count * reader.kBytes;  // the slab after this one
    const bool ends = count == left, plain = ends && call.plain(block, 1);
    for (int64_t row = first; row < last; row += kGroupRows) {
      const int64_t rows = last - row < kGroupRows ? last - row : kGroupRows;
      if (rows != shaped) shape_tiles(shaped = rows);
      float* waiting = sums + (call.chunks > kSlabChunks ? row - first : 0) * kBlockColumns;
      Walk group = call.walk(row, rows, chunk, count);
      group.from = sums_at(waiting);
      group.to = plain ? call.result(row, block, 1) : group.from;
      group.wide = wide;
      group.wide_chunks = kSlabChunks;
      group.fetched = fetched;
      group.lines = lines;
      fetched += count * lines * kLine;
      if (row == first) {
        group.kept = kept;
        multiply_rows(group, reader);
      } else {
        Kept slab{kept};
        multiply_rows(group, slab);
      }
      if (ends && !plain) finish(call.args, block, row, rows, waiting);
    }
  }
}

// x in tiles one after the other, [tiles][chunks][16][64 bytes], the last of k filled up with
// zeros.
static Tiles pack(const LinearArgs& args, int64_t chunks, ThreadPool& pool) {
  const int64_t row_bytes = 2 * args.w.k, tile_bytes = chunks * kTileBytes;
  char* packed = static_cast<char*>(args.scratch);
  pool.parallel_for(args.rows, kTileRows, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const char* x = static_cast<const char*>(args.x) + row * row_bytes;
      char* out = packed + row / kTileRows * tile_bytes + row % kTileRows * kLine;
      for (int64_t left = row_bytes; left > 0; left -= kLine, x += kLine, out += kTileBytes) {
        const __mmask32 there = left >= kLine ? ~__mmask32{0} : (__mmask32{1} << (left / 2)) - 1;
        _mm512_store_si512(out, _mm512_maskz_loadu_epi16(there, x));
      }
    }
  });
  return {packed, kLine, kTileBytes, tile_bytes};
}

template <Mode kMode>
static void multiply(const LinearArgs& args, ThreadPool& pool) {
  const int64_t row_bytes = 2 * args.w.k, chunks = (row_bytes + kLine - 1) / kLine;
  Call call{
      args, chunks, {static_cast<const char*>(args.x), row_bytes, kLine, kTileRows * row_bytes}};
  if (row_bytes % kLine != 0) call.x = pack(args, chunks, pool);
  const int64_t near = kNearBytes / row_bytes / kGroupRows * kGroupRows;
  const int64_t at_once = near < kGroupRows ? kGroupRows : near < kSumRows ? near : kSumRows;
  // Few rows share the reading of W by columns. Many are shared out, so that each worker finds the
  // rows of x that it wrote in its own cache.
  const int64_t tiles = (args.rows + kTileRows - 1) / kTileRows;
  const int64_t parts = std::clamp<int64_t>(args.rows / kPartRows, 1, pool.size());
  const int64_t blocks = packed_blocks(args.w.n), pieces = kPiecesPerWorker * pool.size() / parts;
  const int64_t unit = args.rows <= kTileRows && 2 * pool.size() <= blocks ? 2 : 1;
  const int64_t grain = ((blocks + pieces - 1) / pieces + unit - 1) / unit * unit;
  const int64_t columns = (blocks + grain - 1) / grain;
  const int64_t groups = (args.rows + kGroupRows - 1) / kGroupRows;
  const int64_t together = blocks * chunks * groups <= kAloneChunks ? parts * columns : 1;
  pool.parallel_for(parts * columns, together, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t part = piece / columns, first = piece % columns * grain;
      const int64_t last = std::min(first + grain, blocks);
      if (args.rows <= kGroupRows) {
        multiply_group<kMode>(call, first, last);
        continue;
      }
      const int64_t rows_end = std::min(tiles * (part + 1) / parts * kTileRows, args.rows);
      for (int64_t row = tiles * part / parts * kTileRows; row < rows_end; row += at_once)
        for (int64_t block = first; block < last; ++block)
          multiply_groups<kMode>(call, block, row, std::min(row + at_once, rows_end));
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
