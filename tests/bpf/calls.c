/* Calls a function of its own, which rte_bpf cannot. */
__attribute__((noinline)) static int parity(unsigned n) { return __builtin_parity(n * 2654435761u); }

__attribute__((section("flowgate")))
int by_parity(const unsigned char *frame, unsigned length) { return parity(length); }
