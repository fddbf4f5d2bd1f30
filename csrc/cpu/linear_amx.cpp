// y = x W^T on the tile unit of AMX: for any number of rows at about seven times what the vector
// units multiply. The products are of bf16; i8 and coded weights are widened on the way. f32 is as
// on the vector units.
//
// Row invariance: a tile holds up to 16 rows of 32 k of x. The unit adds to a sum, for each such
// chunk of k, the sum of two chains of fused multiply-adds from zero, over the even and over the
// odd k, denormals flushed. Neither depends on the other rows of the tile. The chunks are added in
// ascending order, the last filled up with zeros.
#include "ce/cpu_kernels.h"
#include "linear_amx_tile.h"

namespace ce::avx512bf16 {
void linear(const LinearArgs& args, ThreadPool& pool);
}

namespace ce::CE_ISA {
namespace {

constexpr int kSlabChunks = 8;              // of W between groups: 16 KB stay in the first cache
constexpr int64_t kSumRows = 256;           // whose sums wait on the stack between slabs
constexpr int64_t kNearBytes = 1536 << 10;  // of x that stay in the second cache
constexpr int64_t kPartRows = 48;           // that are worth reading W for
constexpr int64_t kAloneChunks = 64;        // of W by groups of rows: not worth another's cache
constexpr int64_t kPiecesPerWorker = 3;     // of the blocks

static Sums sums_at(float* sums) {
  return {sums, sums + kTileRows * kBlockColumns, 4 * kBlockColumns};
}

struct Call {
  const LinearArgs& args;
  int64_t chunks;
  Tiles x;

  Group group(int64_t row, int64_t rows, int64_t chunk, int64_t count) const {
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
  Group group = call.group(0, args.rows, 0, call.chunks);
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
      add_chunks<1, 2>(group, reader, &after);
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
      Group group = call.group(row, rows, chunk, count);
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

// How a call is cut: `parts` of the rows, each by `columns` pieces of `grain` blocks. Few rows
// share the reading of W by columns alone; many are shared out, so that each worker finds in its
// own cache the rows of x that it wrote.
struct Cut {
  int64_t parts, columns, grain;
  bool alone;  // what is so small that another's cache is too far

  Cut(const Call& call, int64_t workers) {
    const int64_t rows = call.args.rows, blocks = packed_blocks(call.args.w.n);
    const int64_t worth = rows / kPartRows;
    parts = worth < 1 ? 1 : worth < workers ? worth : workers;
    const int64_t pieces = kPiecesPerWorker * workers / parts;
    const int64_t unit = rows <= kTileRows && 2 * workers <= blocks ? 2 : 1;
    grain = ((blocks + pieces - 1) / pieces + unit - 1) / unit * unit;
    columns = (blocks + grain - 1) / grain;
    alone = blocks * call.chunks * ((rows + kGroupRows - 1) / kGroupRows) <= kAloneChunks;
  }
};

// Rows of a part by blocks begin..end-1, so many rows at once that their x stays near.
template <Mode kMode>
static void multiply_part(const Call& call, int64_t first, int64_t last, int64_t begin,
                          int64_t end) {
  const int64_t near = kNearBytes / (2 * call.args.w.k) / kGroupRows * kGroupRows;
  const int64_t at_once = near < kGroupRows ? kGroupRows : near < kSumRows ? near : kSumRows;
  for (int64_t row = first; row < last; row += at_once)
    for (int64_t block = begin; block < end; ++block)
      multiply_groups<kMode>(call, block, row, row + at_once < last ? row + at_once : last);
}

template <Mode kMode>
static void multiply(const LinearArgs& args, ThreadPool& pool) {
  const int64_t row_bytes = 2 * args.w.k, chunks = (row_bytes + kLine - 1) / kLine;
  Call call{
      args, chunks, {static_cast<const char*>(args.x), row_bytes, kLine, kTileRows * row_bytes}};
  if (row_bytes % kLine != 0) call.x = pack(args, chunks, pool);
  const Cut cut(call, pool.size());
  const int64_t blocks = packed_blocks(args.w.n), tiles = (args.rows + kTileRows - 1) / kTileRows;
  const int64_t pieces = cut.parts * cut.columns;
  pool.parallel_for(pieces, cut.alone ? pieces : 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t part = piece / cut.columns, first = piece % cut.columns * cut.grain;
      const int64_t last = first + cut.grain < blocks ? first + cut.grain : blocks;
      if (args.rows <= kGroupRows) {
        multiply_group<kMode>(call, first, last);
        continue;
      }
      const int64_t row = tiles * part / cut.parts * kTileRows;
      const int64_t after = tiles * (part + 1) / cut.parts * kTileRows;
      multiply_part<kMode>(call, row, after < args.rows ? after : args.rows, first, last);
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
