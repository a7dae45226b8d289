// Prints the words of Philox4x32-10 for counters and keys given as hexadecimal words, from one lane and from sixteen.
//
//   philox_kat C0 C1 C2 C3 K0 K1
#include <cstdio>
#include <cstdlib>

#ifdef GMK_CUDA_ON_HOST
#include "cuda_on_host.h"
#endif
#include "gmk/philox.h"

using namespace gmk::GMK_ISA;

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr, "usage: philox_kat C0 C1 C2 C3 K0 K1\n");
    return 2;
  }
  uint64_t in[6];
  for (int i = 0; i < 6; ++i) in[i] = std::strtoull(argv[i + 1], nullptr, 16);
  const uint64_t seed = in[4] | in[5] << 32;

  uint64_t one[4] = {in[0], in[1], in[2], in[3]};
  philox4x32(one, seed);
  for (uint64_t word : one) std::printf("%08x ", uint32_t(word));
  std::printf("\n");

  pack<uint64_t> many[4];
  for (int i = 0; i < 4; ++i) many[i] = pack<uint64_t>(in[i]);
  philox4x32(many, seed);
  uint64_t lanes[4][kLanes];
  for (int i = 0; i < 4; ++i) store(lanes[i], many[i]);
  for (int l = 0; l < kLanes; ++l) {
    for (int i = 0; i < 4; ++i) std::printf("%08x ", uint32_t(lanes[i][l]));
    std::printf("\n");
  }
}
