/* Reads at an offset that nothing bounds. */
__attribute__((section("flowgate")))
int at_end(const unsigned char *frame, unsigned length) { return frame[length - 1 + frame[0]]; }
