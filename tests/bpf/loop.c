/* Loops, which rte_bpf's verifier does not allow. */
__attribute__((section("flowgate")))
int sum(const unsigned char *frame, unsigned length)
{
	unsigned total = 0;

#pragma clang loop unroll(disable)
	for (unsigned i = 0; i < 64; i++)
		total = total * 31 + frame[i];
	return total != 0;
}
